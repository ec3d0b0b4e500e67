"""``f3rm render``: the files are there, alike in their colours, and say what they show."""

import json
from dataclasses import replace

import av
import numpy as np
import pytest
import torch
from PIL import Image

from f3rm.errors import F3rmError
from f3rm.scene.drawing import Scale, draw_images
from f3rm.scene.paths import CameraPathError, choose_path
from f3rm.scene.writing import VideoFiles, make_writer
from f3rm.scripts.cli import main

SCALE = Scale(
    ("red mug", "bowl"), (0.6, float("inf")), ("found", "absent"), 0.0, 1.0, 3.0, "dataset units"
)


def _frames(path):
    with av.open(str(path)) as video:
        return [frame.to_ndarray(format="rgb24") for frame in video.decode(video=0)]


def test_pictures_are_written_for_every_view_and_output(run, tmp_path, capsys):
    words = ["--query", "orange; yellow", "--output", "rgb,similarity,labels,pca"]
    words += ["--downscale", "4", "--out", str(tmp_path), "--device", "cpu"]
    assert main(["render", str(run.config), *words]) == 0
    said = capsys.readouterr().out
    assert "orange: from 0." in said
    assert "yellow: not found ('yellow' not found: best score 0." in said
    folders = sorted(folder.name for folder in tmp_path.iterdir())
    assert folders == ["labels", "pca", "rgb", "similarity_1", "similarity_2"]
    for folder in tmp_path.iterdir():
        names = sorted(file.name for file in folder.iterdir())
        assert names == ["frame_00012.png", "frame_00023.png"]
    with Image.open(tmp_path / "rgb" / "frame_00012.png") as picture:
        assert picture.size == (40, 30)
    with Image.open(tmp_path / "labels" / "frame_00012.png") as picture:
        assert picture.size == (40, 30 + 2 * 14)  # one line of legend per question


def test_without_an_output_what_is_asked_is_shown_over_the_picture(run, tmp_path):
    words = ["--query", "red ball", "--downscale", "4", "--out", str(tmp_path / "asked")]
    assert main(["render", str(run.config), *words]) == 0
    assert [folder.name for folder in (tmp_path / "asked").iterdir()] == ["composite"]


def test_a_path_becomes_a_video(run, tmp_path, capsys):
    path = {
        "render_height": 21,
        "render_width": 33,
        "camera_path": [
            {"camera_to_world": np.eye(4).ravel().tolist(), "fov": 50 + n} for n in range(3)
        ],
    }
    (tmp_path / "path.json").write_text(json.dumps(path))
    words = ["--views", str(tmp_path / "path.json"), "--output", "rgb,pca", "--device", "cpu"]
    assert main(["render", str(run.config), *words, "--out", str(tmp_path / "v.mp4")]) == 0
    assert sorted(file.name for file in tmp_path.glob("*.mp4")) == ["v_pca.mp4", "v_rgb.mp4"]
    frames = _frames(tmp_path / "v_rgb.mp4")
    assert [frame.shape for frame in frames] == [(22, 34, 3)] * 3  # even sides
    assert "Wrote" in capsys.readouterr().out


def test_an_interpolated_path_starts_and_ends_at_photographs(scene):
    path = choose_path(scene, "interpolate", between=4, downscale=2.0)
    ends = path.cameras.camera_to_worlds[[0, -1]]
    held_out = scene.cameras("eval", frame="nerfstudio").camera_to_worlds
    distances = torch.cdist(ends.flatten(1), held_out.flatten(1)).amin(dim=1)
    assert float(distances.max()) < 1e-4
    assert len(path.names) == len(path.cameras) == 4
    assert (int(path.cameras.height[0]), int(path.cameras.width[0])) == (60, 80)


def test_paths_and_options_that_cannot_be_used_are_refused(scene, run, tmp_path, capsys):
    (tmp_path / "empty.json").write_text("{}")
    for views in ("evil", str(tmp_path / "empty.json")):
        with pytest.raises(CameraPathError, match=r"--views must be train, eval, interpolate or a"):
            choose_path(scene, views)
    for words, message in [
        (["--output", "mask"], "The output 'mask' needs a query"),
        (["--output", "features"], "'features' is no picture"),
        (["--output", "rgb,rbg"], "There is no output 'rbg'"),
        (["--fps", "0"], "--fps must be a number above 0, got 0"),
        (["--downscale", "0"], "--downscale must be a number above 0, got 0"),
        (["--between", "0"], "--between must be a number above 0, got 0"),
        (["--low", "1"], "--low must be below --high, got 1.0 and 1.0"),
        (["--views", "gone.json"], "--views must be train, eval, interpolate or a camera path"),
        (["--out", "tour.gif"], "ending in .mp4, got 'tour.gif'"),
    ]:
        assert main(["render", str(run.config), *words]) == 1
        assert message in capsys.readouterr().err


def test_a_score_has_the_same_colour_in_every_picture():
    dim = {"similarity": torch.full((4, 60, 1), 0.3)}
    mixed = {"similarity": torch.rand(4, 60, 1)}
    mixed["similarity"][0, 0] = 0.3
    first = draw_images(dim, SCALE, legend=False)["similarity"]
    second = draw_images(mixed, SCALE, legend=False)["similarity"]
    assert (first[0, 0] == second[0, 0]).all()
    assert (draw_images(dim, SCALE, legend=True)["similarity"][:4] == first).all()


def test_each_question_has_its_picture_and_the_legend_one_line():
    images = {
        "mask": torch.ones(4, 60, 2, dtype=torch.bool),
        "labels": torch.tensor([[-1, 0, 1] * 20] * 4),
        "depth": torch.full((4, 60), 1.5),
    }
    drawn = draw_images(images, SCALE, legend=False)
    assert list(drawn) == ["mask_1", "mask_2", "labels", "depth"]
    assert (drawn["labels"][0, 0] == 0).all()
    assert len(np.unique(drawn["labels"][0], axis=0)) == 3
    assert draw_images(images, SCALE, legend=True)["labels"].shape == (4 + 2 * 14, 60, 3)
    assert SCALE.named(0) == "red mug: from 0.60"
    assert SCALE.named(1) == "bowl: not found"
    doubtful = replace(SCALE, certainties=("uncertain", "unknown word"))
    assert doubtful.named(0) == "red mug: uncertain, from 0.60"
    assert doubtful.named(1) == "bowl: unknown word"


def test_frames_of_another_size_and_places_that_cannot_be_written_are_refused(tmp_path):
    video = VideoFiles(tmp_path / "v.mp4", 10.0)
    video.add("a", {"rgb": np.zeros((32, 32, 3), np.uint8)})
    with pytest.raises(
        F3rmError, match="All frames of a video must be of 32 x 32 pixels, got 64 x 32 in b"
    ):
        video.add("b", {"rgb": np.zeros((64, 32, 3), np.uint8)})
    video.abandon()
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "file").write_text("")
    for name in ("file/v.mp4", "file/pictures"):
        writer = make_writer(tmp_path / name, fps=10.0)
        with pytest.raises(F3rmError, match=r"Cannot write to .*--out"):
            writer.add("a", {"rgb": np.zeros((32, 32, 3), np.uint8)})
