"""What a page shows of a splat: its Gaussians in the page's frame, and answers as colours."""

import dataclasses
import re

import numpy as np
import pytest
import torch

import f3rm
from f3rm.colours.palette import palette
from f3rm.errors import F3rmError
from f3rm.language.questions import LanguageError
from f3rm.splats.gaussians import scaled_axes
from f3rm.view.answers import Answer
from f3rm.view.shown import PAGE, shown_splat


def on_page(scene, positions):
    """Positions in metres as those of the page."""
    metres = scene.frames.get("metres")
    return PAGE.from_scene(metres.to_scene(torch.as_tensor(np.array(positions)).double())).numpy()


def distances(asking, thing):
    """How far each Gaussian is from the middle of a thing, in metres."""
    per_metre = asking.scene.frames.get("metres").scene_per_unit / PAGE.scene_per_unit
    offsets = asking.splat.centres() - on_page(asking.scene, thing.centre)
    return np.linalg.norm(offsets, axis=1) / per_metre


def looks_like(colours, question, count):
    """Which Gaussians have the tint of a question."""
    tint = colours - colours.mean(axis=1, keepdims=True)
    wanted = palette(count)[question].numpy()
    wanted = wanted - wanted.mean()
    along = tint @ wanted / np.linalg.norm(wanted)
    return (along > 0.1) & (along > 0.85 * np.linalg.norm(tint, axis=1))


def test_an_answer_colours_the_gaussians_of_its_object(asking, cone):
    answer = asking.ask("pink", "colours")
    colours = asking.colours("answer", "colours", answer)
    lit = looks_like(colours, 0, 1)
    near, far = distances(asking, cone) < 0.1, distances(asking, cone) > 0.3
    assert near.sum() > 5
    assert lit[near].mean() > 0.8
    assert lit[far].mean() < 0.02
    grey = colours[far & ~lit]
    assert np.allclose(grey, grey.mean(axis=1, keepdims=True), atol=1e-6)
    scores = asking.colours("score", "colours", answer)
    red, blue = scores[:, 0], scores[:, 2]
    assert (red[near] > blue[near]).mean() > 0.8


def test_an_answer_has_boxes_with_names_and_sizes(asking, cone):
    answer = asking.find(asking.ask("pink; yellow", "colours"))
    box, *unsure = asking.boxes(answer)
    assert all("(uncertain)" in other.label for other in unsure)
    assert box.label.startswith("pink 1: ")
    assert box.label.endswith(" m")
    sides = [float(side) for side in box.label.split(": ")[1][:-2].split(" x ")]
    assert np.sort(sides) == pytest.approx(np.sort(2 * np.array(cone.half_size)), abs=0.12)
    centre = box.corners.mean(axis=0)
    per_metre = asking.scene.frames.get("metres").scene_per_unit / PAGE.scene_per_unit
    assert np.linalg.norm(centre - on_page(asking.scene, cone.centre)) < 0.1 * per_metre
    red, green, blue = answer.colours[0]
    assert f"rgb({red}, {green}, {blue})" in answer.legend
    assert "1. pink: from" in answer.legend
    assert "2. yellow: found" not in answer.legend
    assert re.search(r"2\. yellow: (not found|uncertain)", answer.legend)
    assert answer.found[1].reason
    assert re.search(r"yellow: (absent|uncertain)", answer.legend)


def test_a_legend_before_the_search_names_the_questions(asking):
    legend = asking.ask("pink; {alert}", "colours").legend
    assert "1. pink" in legend
    assert "from" not in legend
    assert "{alert}" not in legend  # the page evaluates what is in braces


def test_a_click_asks_what_is_like_the_place(asking, scene, cone):
    camera = scene.cameras(frame="metres")[0:1]
    eye = camera.camera_to_worlds[0, :, 3].numpy()
    start, end = on_page(scene, [eye, cone.centre])
    ray, back = (start.tolist(), (end - start).tolist()), (start.tolist(), (start - end).tolist())
    answer = asking.ask_like(*ray, "mute")  # it needs no words
    assert answer.questions[0].label == "point 1"
    lit = looks_like(asking.colours("answer", "mute", answer), 0, 1)
    assert lit[distances(asking, cone) < 0.1].mean() > 0.8
    assert lit[distances(asking, cone) > 0.3].mean() < 0.1
    with pytest.raises(F3rmError, match="no surface where you clicked"):
        asking.ask_like(*back, "mute")
    assert asking.ask_like(*ray, "mute").questions[0].label == "point 2"


def test_a_ray_hits_where_a_picture_has_its_depth(asking, scene):
    camera = scene.run.train.cameras[3:4]
    depth = scene.render(camera, ["depth"], frame="nerfstudio")["depth"][..., None]
    bundle = camera.generate_rays(camera_indices=0, keep_shape=True)
    for y, x in ((36, 48), (50, 30), (60, 70)):
        origin, direction = bundle.origins[y, x].double(), bundle.directions[y, x].double()
        ends = PAGE.from_scene(torch.stack((origin, origin + direction)))
        hit = asking.splat.surface_at(ends[0].tolist(), (ends[1] - ends[0]).tolist())
        assert hit is not None
        expected = origin + float(depth[y, x, 0]) * direction
        assert torch.linalg.norm(hit - expected) < 0.05


def test_covariances_are_the_gaussians_own_on_the_page_and_never_singular(asking):
    splat = asking.splat
    scale = splat.frame.scene_per_unit / PAGE.scene_per_unit
    lengths = np.sqrt(np.linalg.eigvalsh(splat.covariances()))
    own = splat.gaussians.scales.double().numpy() * scale
    assert np.allclose(lengths, np.sort(own, axis=1), rtol=1e-3, atol=2e-4)
    rotation = splat.frame.scene_from_frame[:3, :3] / splat.frame.scene_per_unit
    axes = scaled_axes(splat.gaussians.quats, splat.gaussians.scales).double().numpy()
    axes = scale * rotation @ axes
    assert np.allclose(splat.covariances(), axes @ axes.swapaxes(1, 2), rtol=1e-3, atol=1e-6)
    flat = dataclasses.replace(splat.gaussians, scales=splat.gaussians.scales * 1e-9)
    thin = dataclasses.replace(splat, gaussians=flat).covariances()
    assert np.isfinite(np.linalg.cholesky(thin)).all()


def test_gaussians_without_features_match_nothing(asking):
    hidden = asking.splat.hidden.clone()
    hidden[:100] = 0
    bare = type(asking)(asking.scene, dataclasses.replace(asking.splat, hidden=hidden))
    assert not bare.ask("pink", "colours").scores[:100].any()


def test_other_colours_are_those_of_photographs_features_and_reliability(asking, scene):
    assert asking.heads == ("colours", "mute")
    assert asking.colourings == ("photographs", "answer", "score", "PCA", "reliability")
    plain = asking.colours("photographs", "colours", None)
    assert np.array_equal(plain, asking.colours("answer", "colours", None))
    shown = [asking.colours(each, "mute", None) for each in ("PCA", "reliability")]
    for colours in (plain, *shown):
        assert colours.shape == (len(asking.splat), 3)
        assert 0 <= colours.min() < colours.max() <= 1
    field_like = dataclasses.replace(asking.splat, reliability={})
    assert "reliability" not in type(asking)(scene, field_like).colourings


def test_a_head_without_language_says_so(asking):
    with pytest.raises(LanguageError, match="'mute' has no text tower"):
        asking.ask("pink", "mute")


def test_a_splat_without_features_is_not_shown(truth, tmp_path):
    bare = tmp_path / "bare.ply"
    bare.write_bytes((truth.folder / "splat.ply").read_bytes())
    with pytest.raises(F3rmError, match="f3rm attach"):
        shown_splat(f3rm.load(bare, data=truth.folder, device="cpu"))


def test_questions_have_the_colours_of_the_palette():
    answer = Answer((), torch.zeros(2, 0), ())
    assert answer.colours == []
    assert answer.legend == ""
