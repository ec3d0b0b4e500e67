"""Further feature heads for a trained run."""
