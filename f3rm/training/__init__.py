"""What the data manager needs for a batch: features at pixels, prefetching, images left out."""
