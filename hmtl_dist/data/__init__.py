"""Shards, their index, the plan of samples and the stream of batches."""
