"""Who works on an unfinished cache, what is done, and what of older ones can be used again."""
