"""Data sets: shards and their index, built, indexed, verified."""
