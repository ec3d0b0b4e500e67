"""f3rm: feature fields, scenes you can ask questions."""

__version__ = "0.1.0"
