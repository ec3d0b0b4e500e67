"""A splat as a scene: its dataset's cameras, its frame, and its answers."""
