"""DINO, DINOv2 and DINOv3 through transformers."""
