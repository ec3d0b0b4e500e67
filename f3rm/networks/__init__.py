"""Position in [0, 1]^3 to hidden vector: torch and tiny-cuda-nn behind one contract."""
