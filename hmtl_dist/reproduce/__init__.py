"""Suites of recipes over several seeds: run what is missing, and say what came of it with intervals."""
