"""The cache of features: its format, and reading it. Loads no model."""
