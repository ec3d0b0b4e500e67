"""The mark of tests that depend on something that a test trained."""

import os

import pytest

from tests.train_seed import TRAIN_SEED

# Triton reads it when it is imported, by torch among others: kernels then run on a CPU. Nothing
# chooses Triton there by itself.
os.environ.setdefault("TRITON_INTERPRET", "1")


@pytest.fixture(scope="session")
def train_seed() -> int:
    """The seed of what is trained.

    A test that takes it, directly or through another fixture, is marked ``trains``.
    """
    return TRAIN_SEED


@pytest.hookimpl(tryfirst=True)  # before pytest selects by marks
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if isinstance(item, pytest.Function) and "train_seed" in item.fixturenames:
            item.add_marker("trains")
