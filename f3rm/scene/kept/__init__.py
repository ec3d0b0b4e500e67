"""What is kept of a run in files of this program: the whole of it, or its sampled surface."""
