"""A small generated scene as a splat with features, asked without and with a browser."""

import pytest

import f3rm
from f3rm.scene.attach import AttachSettings, attach_to_splat
from f3rm.synthetic.truth import SceneTruth
from f3rm.view.answers import Asking
from f3rm.view.shown import shown_splat
from tests.run_fixtures import colours
from tests.scene_fixtures import write_splat_scene

__all__ = ["colours"]

GAUSSIANS = 4000
"""A browser without a GPU draws so many several times a second, if nothing else runs."""


@pytest.fixture(scope="session")
def truth(tmp_path_factory):
    folder = tmp_path_factory.mktemp("view") / "scene"
    write_splat_scene(folder, gaussians=GAUSSIANS, views=10, height=72, width=96)
    return SceneTruth.read(folder)


@pytest.fixture(scope="session")
def scene(colours, truth):
    ply = truth.folder / "splat.ply"
    settings = AttachSettings("COLOURS+MUTE")
    attach_to_splat(ply, settings, data=truth.folder, device="cpu")
    return f3rm.load(ply, data=truth.folder, device="cpu")


@pytest.fixture
def asking(scene):
    return Asking(scene, shown_splat(scene))


@pytest.fixture(scope="session")
def cone(truth):
    """The only pink thing of the scene."""
    (found,) = [each for each in truth.objects if each.name == "pink cone"]
    return found
