"""Features and scores to colours: PCA and palettes. Pure maths on tensors."""
