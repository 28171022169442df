"""Statistics of a study: the measurements table in, an `Analysis` out."""
