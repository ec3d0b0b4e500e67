"""Names of f3rm's earlier extractor, at their earlier place."""
