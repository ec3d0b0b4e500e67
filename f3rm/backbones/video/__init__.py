"""Video models: clips of frames to features with an axis of time."""
