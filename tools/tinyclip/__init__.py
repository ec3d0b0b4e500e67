"""How TINYCLIP, the small CLIP that ships with f3rm, was made."""
