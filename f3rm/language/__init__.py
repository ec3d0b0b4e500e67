"""Text, clicked points and images to scores of features, for viewer, scene and evaluation."""
