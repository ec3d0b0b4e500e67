"""What the data manager needs per batch: look-up by pixel, prefetching, images left out."""
