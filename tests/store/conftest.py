"""Fixtures that these tests share with the extraction tests."""

from tests.extract.conftest import dataset, events, expected, python, toy_plugin

__all__ = ["dataset", "events", "expected", "python", "toy_plugin"]
