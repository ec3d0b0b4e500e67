"""CLIP and its family through open_clip: dense value features, towers, ProxyCLIP."""
