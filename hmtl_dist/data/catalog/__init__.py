"""Adapters from folders of originals to samples, one module a data set."""
