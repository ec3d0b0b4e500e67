"""Instances that answer a question, found on the points of a surface."""
