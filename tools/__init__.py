"""Programs that make what ships with the package; not part of it."""
