"""The training loop and what builds it for one rank."""
