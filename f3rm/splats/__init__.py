"""Gaussians: their files, rasterising them, and lifting features onto them."""
