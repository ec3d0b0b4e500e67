"""The viewer's image box reads below one folder: whoever reaches the page may type into it."""

import pytest
import torch

from f3rm.errors import F3rmError
from f3rm.language.image_encoder import ImageEncoder, image_below
from f3rm.language.text_encoder import QueryText
from f3rm.viewer.controls import FeatureControls
from tests.nerf_fixtures import feature_model, head
from tests.viewer.viewer_fixtures import FakeViewer, install_towers, press, wait


@pytest.fixture
def folder(tmp_path):
    """A dataset's folder with an image, and an image beside the folder."""
    (tmp_path / "data" / "images").mkdir(parents=True)
    for name in ("data/images/a.png", "secret.png", "data-of-others.png"):
        (tmp_path / name).write_bytes(b"")
    (tmp_path / "data" / "link.png").symlink_to(tmp_path / "secret.png")
    (tmp_path / "data" / "out").symlink_to(tmp_path)
    (tmp_path / "data" / "loop").symlink_to("loop")
    (tmp_path / "data" / "inner.png").symlink_to("images/a.png")
    return tmp_path / "data"


@pytest.fixture
def seen(monkeypatch):
    """The paths that would be read."""
    paths = []
    monkeypatch.setattr(
        ImageEncoder, "encode", lambda _, path, crop: paths.append(path) or torch.ones(12)
    )
    return paths


def test_paths_below_the_folder_are_read_relative_absolute_and_linked(folder):
    image = (folder / "images" / "a.png").resolve()
    typed = ["images/a.png", " images/a.png ", "images/../images/a.png", str(image), "inner.png"]
    assert [image_below(folder, text) for text in typed] == [image] * len(typed)
    assert image_below(folder, "images/none.png") == image.parent / "none.png"  # read_image says so


@pytest.mark.parametrize(
    "typed",
    [
        "../secret.png",
        "images/../../secret.png",
        "/etc/passwd",
        "~/secret.png",
        "~nobody-of-that-name/secret.png",
        "link.png",
        "out/secret.png",
        "out/none.png",
        "loop/a.png",
        "../data-of-others.png",
        "a\0.png",
        "",
        ".",
    ],
)
def test_paths_that_lead_out_are_refused_whether_or_not_they_exist(folder, typed):
    with pytest.raises(F3rmError, match=r"Image file: .* is not below") as caught:
        image_below(folder, typed)
    assert "--pipeline.model.viewer-image-folder" in str(caught.value)


def _controls(folder, named=None):
    controls = FeatureControls(QueryText("", "", 0.1), lambda *_: {}, image_folder=named)
    controls.set_heads((head("clip"),))
    FakeViewer(controls, folder.parent)
    return controls


def _look(controls, typed):
    controls.point.c_image.value = typed
    press(controls.point.e_positive)


def test_the_box_reads_below_the_dataset(folder, seen, monkeypatch):
    install_towers(monkeypatch, channels=12)
    controls = _controls(folder)
    _look(controls, "../secret.png")
    wait(lambda: "is not below" in controls.ask.status.content)
    assert not seen
    _look(controls, "images/a.png")
    wait(lambda: "a.png is a positive" in controls.ask.status.content)
    assert seen == [(folder / "images" / "a.png").resolve()]


def test_another_folder_can_be_named(folder, seen, monkeypatch):
    install_towers(monkeypatch, channels=12)
    controls = _controls(folder, named=folder / "images")
    _look(controls, "../../secret.png")
    wait(lambda: "is not below" in controls.ask.status.content)
    _look(controls, "a.png")
    wait(lambda: "a.png is a positive" in controls.ask.status.content)
    assert seen == [(folder / "images" / "a.png").resolve()]


def test_the_option_reaches_the_controls(folder):
    assert feature_model(head()).controls._image_folder is None
    model = feature_model(head(), viewer_image_folder=folder)
    assert model.controls._image_folder == folder
