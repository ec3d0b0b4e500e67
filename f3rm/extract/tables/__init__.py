"""Extraction for any purpose: many taps, any output shape, images and videos, with labels."""
