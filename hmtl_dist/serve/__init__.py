"""A trained model behind HTTP: a REST interface, a page to try it on, and their limits, on Ray Serve."""
