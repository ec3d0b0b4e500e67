"""Pure maths on features: similarity to queries and PCA colours.

Everything here works from the composited hidden vector H and a head's weight W, so the C feature
channels ``f = W H`` need not be built; each such function has a C-channel twin that it equals.
"""
