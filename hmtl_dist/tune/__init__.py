"""Searches over a recipe's settings: spaces, what to try next, the trials of Ray Tune, and what came of them."""
