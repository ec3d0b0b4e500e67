"""The feature cache: its format, and reading it. Loads no model."""
