"""Storage, data sets, catalogue and stream of samples: the rooms, from the lowest to the highest."""
