"""Ways to place workers: this process, or Ray Train."""
