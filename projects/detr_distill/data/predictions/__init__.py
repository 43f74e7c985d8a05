"""Predictions on disk, by the ids of the images that they are of."""
