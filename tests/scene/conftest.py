"""The small trained run, open for questions, and the same scene with known answers."""

import pytest

import f3rm
from tests.run_fixtures import colours, run
from tests.scene.known_surface import show_known_surface

__all__ = ["colours", "run"]


@pytest.fixture(scope="session")
def scene(run):
    return f3rm.load(run.config, device="cpu", surface_rays=20_000)


@pytest.fixture(scope="session")
def known(run):
    """The scene with a surface whose answers do not depend on how well the field was trained."""
    return show_known_surface(f3rm.load(run.config, device="cpu"), run.truth)
