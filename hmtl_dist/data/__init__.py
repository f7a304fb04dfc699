"""Storage, data sets, drawn faces, the catalogue of published sets, and the stream of samples: a room each."""
