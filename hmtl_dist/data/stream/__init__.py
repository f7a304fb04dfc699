"""What an epoch draws, which sample is seen where, and the batches of it."""
