"""The small trained run, open for questions."""

import pytest

import f3rm
from tests.run_fixtures import colours, run

__all__ = ["colours", "run"]


@pytest.fixture(scope="session")
def scene(run):
    return f3rm.load(run.config, device="cpu", surface_rays=20_000)
