"""What other programs open: point clouds, meshes, boxes, features."""
