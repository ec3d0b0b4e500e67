"""A trained run answers as its dataset's truth says; points and pictures agree with the model."""

import math
import re

import numpy as np
import pytest
import torch
from scipy.spatial import KDTree
from torch.nn import functional

from f3rm.backbones.calibration import Calibration
from f3rm.camera_render import RenderRequest
from f3rm.errors import F3rmError
from f3rm.evaluation.finding import score_finding, true_box
from f3rm.evaluation.means import MEANS, mean_over
from f3rm.language.relevancy import make_query, similarity
from f3rm.language.text_encoder import TextEncoder
from f3rm.scene import PROMPT_TEMPLATES
from f3rm.scene.boxes import box_iou
from tests.scene.known_surface import SCATTERED
from tests.viewer.colour_backbone import COLOURS

OUTPUTS = ["rgb", "depth", "accumulation", "pca", "similarity", "composite", "mask", "labels"]


@pytest.fixture(scope="module")
def points(scene):
    return scene.surface_points(frame="nerfstudio").positions[:300]


@pytest.fixture(scope="module")
def camera(scene):
    camera = scene.cameras("eval")[0]
    camera.rescale_output_resolution(0.5)
    return camera


def _things(run, name):
    return [thing for thing in run.truth.objects if thing.name == name]


def test_answers_do_not_depend_on_the_frame_that_points_are_given_in(scene, points):
    expected = scene.features(points, frame="nerfstudio")
    assert expected.shape == (300, scene.head().spec.channels)
    for name, frame in scene.frames.known.items():
        there = frame.from_scene(points.double())
        torch.testing.assert_close(
            scene.features(there, frame=name), expected, atol=1e-3, rtol=1e-3
        )
        density = scene.density(there, frame=name) / frame.scene_per_unit
        expected_density = scene.density(points, frame="nerfstudio")
        torch.testing.assert_close(density, expected_density, atol=1e-2, rtol=2e-2)
    as_numbers = scene.features(points.tolist(), frame="nerfstudio")
    torch.testing.assert_close(as_numbers, expected, atol=1e-5, rtol=1e-5)


def test_similarity_is_that_of_the_full_features(scene, points):
    head = scene.head("colours")
    features = scene.features(points, "colours", frame="nerfstudio")
    phrases = ["a red thing", "grey", "blue"]
    text = TextEncoder(head.spec.backbone).encode(phrases)
    expected = similarity(features, make_query(text[:1], text[1:], temperature=0.2))[:, 0]
    options = {"negatives": phrases[1:], "temperature": 0.2, "rule": "lerf"}
    found = scene.similarity(points, "a red thing", **options, frame="nerfstudio")
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)
    cosine = scene.similarity(points, "a red thing", negatives=[], frame="nerfstudio")
    torch.testing.assert_close(
        cosine, functional.cosine_similarity(features, text[:1]), atol=1e-4, rtol=1e-4
    )
    named = scene.similarity(points, "red", templates=PROMPT_TEMPLATES, frame="nerfstudio")
    torch.testing.assert_close(
        named, scene.similarity(points, "red", frame="nerfstudio"), atol=1e-4, rtol=1e-4
    )


def test_the_scenes_rule_contrasts_with_the_mean_of_its_surface(scene, points):
    head = scene.head("colours")
    features = functional.normalize(head(scene.cells.hidden), dim=-1)
    text = TextEncoder(head.spec.backbone).encode(["red"])
    centred = scene.features(points, "colours", frame="nerfstudio")
    centred = functional.normalize(centred, dim=-1) - features.mean(0)
    expected = functional.cosine_similarity(centred, text - features.mean(0))
    options = {"rule": "scene", "frame": "nerfstudio"}
    found = scene.similarity(points, "red", negatives=[], **options)
    torch.testing.assert_close(found, expected.detach(), atol=1e-3, rtol=1e-3)
    plain = scene.similarity(points, "red", rule="lerf", frame="nerfstudio")
    both = scene.similarity(points, "red", **options)
    torch.testing.assert_close(both, (plain * found.clamp_min(0)).sqrt(), atol=1e-3, rtol=1e-3)
    assert torch.equal(scene.similarity(points, "red", frame="nerfstudio"), both)  # the default
    with pytest.raises(F3rmError, match="rule must be one of lerf, scene, backbone, got 'otsu'"):
        scene.similarity(points, "red", rule="otsu")


def test_the_backbones_rule_needs_its_calibration(scene, points, monkeypatch):
    head = scene.head("colours")
    options = {"rule": "backbone", "frame": "nerfstudio"}
    with pytest.raises(F3rmError, match="needs a calibration, and 'colours' has none"):
        scene.similarity(points, "red", **options)
    features = scene.features(points, "colours", frame="nerfstudio")
    calibration = Calibration.of(features + torch.rand_like(features))
    monkeypatch.setattr(TextEncoder, "calibration", lambda _: calibration)
    text = TextEncoder(head.spec.backbone).encode(["red"])
    found = scene.similarity(points, "red", **options)
    expected = similarity(features, make_query(text, calibration=calibration))[:, 0]
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-3)


def test_points_are_named_by_what_they_lie_on_or_by_none(scene, run):
    boxes = {thing.name: true_box(thing) for thing in run.truth.objects if thing.kind == "object"}
    surface = scene.surface_points(frame="metres")
    right: list[bool] = []
    for name, box in boxes.items():
        inside = torch.from_numpy(box.contains(surface.positions.double().numpy(), margin=-0.01))
        colour = next((word for word in name.split() if word in COLOUR_WORDS), None)
        is_full = "ring" not in name  # what lies on the table in a ring's box is not the ring
        if colour is None or "striped" in name or not is_full or not inside.any():
            continue
        labels = scene.identify(surface.positions[inside], COLOUR_WORDS, frame="metres")
        right += [label == colour for label in labels.names]
        assert (labels.margins >= 0).all()
    assert np.mean(right) > 0.8
    floor = scene.identify(surface.positions, "red; blue", none_threshold=1.1, frame="metres")
    assert set(floor.names) == {"none of these"}
    assert floor.labels == ("red", "blue")


COLOUR_WORDS = ["orange", "purple", "turquoise", "pink", "yellow", "blue", "green"]


def test_things_are_found_in_metres_and_apart(known, run):
    found = known.find("orange", frame="metres")
    (thing,) = _things(run, "orange box")
    assert len(found) == 1
    assert found.reason == ""
    assert np.linalg.norm(found[0].centre - thing.centre) < 0.04
    assert box_iou(found[0].box, true_box(thing)) > 0.5
    assert found[0].score > 0.6
    assert 0.5 < found[0].confidence <= 1


def test_what_is_smaller_than_asked_for_is_left_out(known):
    pink = known.find("pink", frame="metres")
    widths = sorted(float(one.extent[:2].max()) for one in pink)
    area = [np.pi * width**2 for width in widths]  # of a ball, which the truth's box surrounds
    assert len(known.find("pink", frame="metres", smallest=0.01)) == len(pink) == 2
    assert not known.find("pink", frame="metres", smallest=3 * area[-1] ** 0.5)
    assert known.find("pink", frame="metres", smallest=1.0).reason.endswith("over a few points")


def test_a_closer_look_has_more_points_of_the_same_surface(scene):
    scores = scene.surface.smoothed(scene.question("orange").scores(scene.cells.hidden))
    matching = np.flatnonzero(scores > 0.5)
    closer = scene._look_closer(scene.surface, matching, [matching])
    box = scene.find("orange", frame="nerfstudio")[0].visible
    before, after = (
        box.contains(points.positions.double().numpy(), margin=0.01)
        for points in (scene.cells, closer.points)
    )
    assert after.sum() > 1.3 * before.sum() > 100
    gaps = KDTree(scene.cells.positions.numpy()).query(closer.points.positions.numpy())[0]
    assert np.median(gaps) < 0.02  # two cells
    assert closer.sightings.views.max() < len(scene.views())


def test_every_thing_of_a_colour_is_found_best_first(known, run):
    for colour, names in (
        ("orange", ["orange box"]),
        ("pink", ["shiny pink ball", "checkered pink ball"]),
        ("turquoise", ["turquoise bottle", "turquoise box"]),  # two bottles
    ):
        found = known.find(colour, frame="metres")
        boxes = [true_box(thing) for name in names for thing in _things(run, name)]
        overlaps = [[box_iou(one.box, box) for one in found] for box in boxes]
        assert len(found) == len(boxes)
        assert all(max(row) > 0.9 for row in overlaps)
        scores = [one.score for one in found]
        assert scores == sorted(scores, reverse=True)


def test_the_same_things_are_found_in_every_frame(scene):
    metres, dataset = scene.find("orange", frame="metres"), scene.find("orange")
    frames = scene.frames
    moved = frames.get("dataset").to_scene(torch.from_numpy(dataset[0].centre)[None])
    there = frames.get("metres").from_scene(moved)[0].numpy()
    np.testing.assert_allclose(there, metres[0].centre, atol=0.02)
    per_metre = frames.get("metres").scene_per_unit / frames.get("dataset").scene_per_unit
    assert dataset[0].box.volume == pytest.approx(metres[0].box.volume * per_metre**3, rel=0.3)


def test_what_is_not_there_is_said_to_be_absent(scene, known):
    for asked in (scene, known):
        found = asked.find("yellow")
        assert not found
        assert re.fullmatch(PRESENCE, found.reason)
        assert found.threshold == math.inf
        assert asked.threshold("yellow") == math.inf
        reason = asked.find("orange", threshold=1.5).reason
        assert reason.endswith(" is below the threshold 1.50")
    assert known.find("yellow", rule="lerf").best_score == pytest.approx(LEAST_RELEVANCY, abs=1e-3)
    assert known.find("yellow", threshold=0.01)  # who says so gets it


PRESENCE = r"'yellow' not found: best score 0\.\d\d is below the presence threshold 0\.54"
LEAST_RELEVANCY = 1 / (1 + math.exp(1 / 3 / 0.1))
"""Cosine 0 to what is asked, 1/3 to words that name no colour; temperature 0.1."""


def test_questions_are_combined(known):
    both = known.find("pink or orange")
    assert len(both) == len(known.find("pink")) + len(known.find("orange")) == 3
    assert not known.find("pink and orange")
    assert len(known.find("(pink or orange) and not pink")) == len(known.find("orange"))
    assert not known.find("pink > orange")  # nothing orange on what is pink
    assert len(known.find("orange > orange")) == 1
    assert [found.question for found in known.find("pink; orange")] == ["pink", "orange"]


def _found(scene, truth):
    # LERF's: words without a colour have none of these colours, and so are none of what is there.
    finding = score_finding(scene, truth, None, "lerf")
    pairs = zip(truth.absent, finding.absent, strict=True)
    absent = [{"kind": prompt.kind} | row for prompt, row in pairs]
    rows = {"queries": finding.queries, "absent": absent}
    means = {name: mean_over(name, [rows]) for name in MEANS if "find_" in name or "not_" in name}
    return {name: mean.value for name, mean in means.items() if mean}


def test_the_evaluation_counts_what_was_found(known, run):
    """Words are asked by their colour: a name finds everything of its colour, and no more."""

    def answers(text):
        seen = [word for word in text.split() if word in COLOURS and word != SCATTERED]
        things = [thing for thing in run.truth.objects if thing.kind == "object"]
        return sum(bool(set(seen) & set(thing.name.split())) for thing in things)

    score = _found(known, run.truth)
    queries = run.truth.queries
    hits = sum(len(query.ids) for query in queries if answers(query.text))
    silent = sum(not answers(query.text) for query in queries)
    quiet = sum(not answers(prompt.text) for prompt in run.truth.absent)
    assert score["find_recall"] == hits / sum(len(query.ids) for query in queries)
    assert score["find_box_iou"] == pytest.approx(score["find_recall"], abs=0.02)
    assert score["find_centre_error"] == pytest.approx(0, abs=2e-3)
    assert score["find_precision"] == hits / sum(answers(query.text) for query in queries)
    assert score["not_found_precision"] == quiet / (quiet + silent)
    assert score["not_found_recall"] == quiet / len(run.truth.absent)


def test_a_trained_field_is_found_in_by_the_evaluation(scene, run):
    score = _found(scene, run.truth)
    assert score["find_centre_error"] < 0.1
    assert score["find_recall"] > 0.7
    assert 0 < score["find_precision"] <= 1
    assert 0 < score["find_box_iou"] < score["find_box_iou_ceiling"] < 1
    assert 0 < score["not_found_precision"] <= 1
    assert 0 < score["not_found_recall"] <= 1


def test_pictures_equal_the_models_own(scene, camera):
    wanted = RenderRequest(pca=True, similarity=False, features=True, hidden=True)
    known = scene.frames.get("dataset")
    expected = scene.source.model.get_outputs_for_camera(
        known.cameras_to_scene(camera), request=wanted
    )
    images = scene.render(camera, ["rgb", "accumulation", "pca", "depth", "features", "hidden"])
    pairs = {
        "rgb": expected["rgb"],
        "accumulation": expected["accumulation"][..., 0],
        "pca": expected["feature_pca"],
        "depth": expected["depth"][..., 0] / known.scene_per_unit,
        "features": expected[scene.source.model.key("feature", scene.heads[0])],
        "hidden": expected.hidden,
    }
    for name, picture in pairs.items():
        torch.testing.assert_close(images[name], picture.cpu(), atol=1e-4, rtol=1e-3)


def test_answers_are_drawn_with_one_threshold_for_all_views(scene, camera):
    query = ["pink", "orange", "yellow"]
    images = scene.render(camera, OUTPUTS, query=query)
    height, width = int(camera.height), int(camera.width)
    for name in ("similarity", "mask"):
        assert images[name].shape == (height, width, 3)
    thresholds = torch.tensor([scene.threshold(text) for text in query])
    on_surface = images["accumulation"] >= 0.5
    expected = (images["similarity"] >= thresholds) & on_surface[..., None]
    apart = scene.render(camera, ["mask"], query=query, compete=False)["mask"]
    assert torch.equal(apart, expected)
    own = functional.one_hot(images["labels"] + 1, 4)[..., 1:].bool()
    assert torch.equal(images["mask"], own)
    assert torch.equal(images["labels"] >= 0, expected.any(-1))
    assert not (images["labels"] == 2).any()  # nothing is yellow
    grey = images["composite"][images["labels"] < 0]
    assert float((grey - grey.mean(-1, keepdim=True)).abs().max()) < 1e-5
    same = scene.render(camera, ["labels"], query="pink; orange; yellow")
    assert torch.equal(same["labels"], images["labels"])


def test_the_mask_of_an_instance_is_where_the_photograph_shows_it(scene, run):
    instance = scene.find("orange")[0]
    (thing,) = _things(run, "orange box")
    ious = []
    for index, name in list(enumerate(scene.views()))[::5]:
        truth = run.truth.view(name).mask([thing.id])
        mask = scene.mask(instance, scene.cameras()[index]).numpy()
        if truth.sum() > 50:
            ious.append((mask & truth).sum() / (mask | truth).sum())
    assert len(ious) > 3
    # 0.82 to 0.87 in three runs of two seeds; two held-out views alone gave 0.29 once.
    assert np.mean(ious) > 0.5


@pytest.mark.parametrize("factor", [0.25, 0.5, 1.0])
def test_no_more_rays_are_rendered_at_once_in_a_larger_picture(scene, factor):
    camera = scene.cameras("eval", frame="nerfstudio")[0].reshape((1,))
    camera.rescale_output_resolution(factor)
    sizes = [bundle.origins.shape[:2] for bundle, _ in scene.source.bands(camera)]
    limit = max(scene.source.model.config.eval_num_rays_per_chunk, int(camera.width))
    assert all(rows * columns <= limit for rows, columns in sizes)
    assert sum(rows for rows, _ in sizes) == int(camera.height)


def test_a_surface_is_where_its_views_see_it(scene, run):
    surface = scene.surface_points(frame="metres", spacing=0.02)
    boxes = [true_box(thing) for thing in run.truth.objects]
    near = np.zeros(len(surface), dtype=bool)
    for box in boxes:
        near |= box.contains(surface.positions.double().numpy(), margin=0.03)
    assert near.mean() > 0.6
    assert surface.hidden.shape[1] == scene.source.model.feature_field.hidden_dim
    assert 0 <= float(surface.colours.min()) <= float(surface.colours.max()) <= 1
    again = scene.surface_points(frame="metres", spacing=0.02)
    assert torch.equal(again.positions, surface.positions)
