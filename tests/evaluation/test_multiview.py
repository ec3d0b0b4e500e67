"""Surface points: brute force beside the vectorised way, and a field that copies the truth."""

import numpy as np
import pytest
import torch
from torch.nn import functional

from f3rm.evaluation.multiview import (
    DEPTH_TOLERANCE,
    SeenView,
    SurfacePoints,
    compare_views,
    render_points,
    sample_pixels,
    sees,
    surface_points,
    teacher_mean,
)
from f3rm.evaluation.predictions import render_view
from f3rm.evaluation.surface_scores import (
    point_scores,
    score_points,
    seen_views,
)
from f3rm.evaluation.vocabulary import Label, Speaker, Vocabulary, open_language
from f3rm.language.relevancy import similarity
from f3rm.scene.casting import hidden_of
from f3rm.scene.frames import FileCamera
from f3rm.scene.run_loading import field_model, load_run
from f3rm.scene.source import FieldSource
from f3rm.store.reader import gather_reference
from f3rm.synthetic.truth import AbsentPrompt, SceneTruth, ViewTruth


@pytest.fixture(scope="module")
def run(runs):
    return load_run(runs.config, device=torch.device("cpu"))


@pytest.fixture(scope="module")
def truth(runs):
    return SceneTruth.read(runs.data)


@pytest.fixture(scope="module")
def scale(run, truth):
    return FieldSource(run).frames.get("metres").scene_per_unit


@pytest.fixture(scope="module")
def held_out(run, truth, scale):
    return list(seen_views(run.held_out, truth, scale))


@pytest.fixture(scope="module")
def points(held_out):
    return surface_points(held_out, 60, seed=3, per_object=False)


def _truth(ids, depth=None):
    ids = np.array(ids, dtype=np.int32)
    depth = np.where(ids >= 0, 1, np.inf) if depth is None else np.array(depth)
    return ViewTruth(ids, depth.astype(np.float32))


def test_pixels_are_drawn_from_what_is_seen_and_evenly_over_objects_if_asked():
    views = [_truth([[0, 0, 0], [0, 0, 1]]), _truth([[-1], [2]])]
    view, xy = sample_pixels(views, 90, seed=0, per_object=True)
    ids = [views[v].ids[y, x] for v, (x, y) in zip(view, xy, strict=True)]
    assert np.bincount(ids).tolist() == [30, 30, 30]
    view, xy = sample_pixels(views, 7000, seed=0, per_object=False)
    ids = [views[v].ids[y, x] for v, (x, y) in zip(view, xy, strict=True)]
    np.testing.assert_allclose(np.bincount(ids) / 1000, [5, 1, 1], atol=0.15)


def test_the_seed_decides_the_pixels():
    views = [_truth(np.arange(64).reshape(8, 8))]
    one, two, three = (sample_pixels(views, 20, seed=s, per_object=False)[1] for s in (1, 1, 2))
    assert np.array_equal(one, two)
    assert not np.array_equal(one, three)


@pytest.mark.parametrize("per_object", [True, False])
def test_views_that_show_nothing_give_no_points(per_object):
    view, xy = sample_pixels([_truth([[-1, -1]])], 5, seed=0, per_object=per_object)
    assert len(view) == len(xy) == 0


def test_every_view_sees_its_own_points(held_out, points):
    for number, view in enumerate(held_out):
        own = points.views == number
        seen, xy = sees(view, points.positions)
        assert seen[own].all()
        torch.testing.assert_close(xy[own], points.xy[own], atol=2e-2, rtol=0)


def test_what_stands_behind_another_surface_is_not_seen(held_out, points):
    view = held_out[0]
    own = points.views == 0
    eye = view.camera.unproject(points.xy[own], torch.zeros(int(own.sum())))
    for factor, expected in ((1 + 3 * DEPTH_TOLERANCE, False), (1 + DEPTH_TOLERANCE / 3, True)):
        moved = eye + factor * (points.positions[own] - eye)
        assert bool((sees(view, moved)[0] == expected).all())
    behind = eye - (points.positions[own] - eye)
    assert not sees(view, behind)[0].any()


def test_the_teachers_mean_is_the_loop_over_points_and_views(run, truth, points, scale):
    store = run.stores["clip"]
    mean, counts = teacher_mean(store, points, seen_views(run.train, truth, scale))
    views = list(seen_views(run.train, truth, scale))
    for number, position in enumerate(points.positions):
        found = []
        for view in views:
            xy, depth = view.camera.project(position[None])
            x, y = round(float(xy[0, 0])), round(float(xy[0, 1]))
            if depth > 0 and 0 <= x < 48 and 0 <= y < 36:
                there = float(truth.view(view.name).depth[y, x]) * scale
                if abs(there - float(depth)) <= DEPTH_TOLERANCE * float(depth):
                    row = torch.tensor([store.index(view.name)])
                    found.append(gather_reference(store, row, xy, mode="bilinear")[0])
        assert counts[number] == len(found)
        if found:
            torch.testing.assert_close(
                mean[number], torch.stack(found).mean(0), atol=1e-5, rtol=1e-4
            )
    assert counts.float().mean() > 2


def test_points_are_rendered_as_the_picture_is(run, held_out):
    source = FieldSource(run)
    hidden = hidden_of(render_view(source, run.picture(1)[0]))
    xy = torch.tensor([[0.0, 0.0], [47.0, 35.0], [20.0, 11.0]])
    expected = hidden[xy[:, 1].long(), xy[:, 0].long()]
    torch.testing.assert_close(render_points(source, held_out[1].camera, xy), expected)
    assert render_points(source, held_out[1].camera, xy[:0]).shape == (0, 16)


def test_cosines_on_points_are_those_of_the_loop(run, truth, held_out, points, scale):
    source, store = FieldSource(run), run.stores["clip"]
    head = source.heads["clip"]
    measured = compare_views(
        source,
        "clip",
        store,
        points,
        held_out=held_out,
        training=seen_views(run.train, truth, scale),
    )
    mean, counts = teacher_mean(store, points, seen_views(run.train, truth, scale))
    same, reached, between = [], [], []
    for number in range(len(points.xy)):
        own = held_out[int(points.views[number])]
        target = _teacher(store, own, points.xy[number])
        rendered = head(render_points(source, own.camera, points.xy[number][None]))[0]
        if counts[number]:
            same.append(float(functional.cosine_similarity(rendered, target, dim=0)))
            reached.append(float(functional.cosine_similarity(mean[number], target, dim=0)))
        features = []
        for view in held_out:
            seen, xy = sees(view, points.positions[number][None])
            if seen:
                features.append(head(render_points(source, view.camera, xy))[0])
        if len(features) == 2:
            between.append(float(functional.cosine_similarity(*features, dim=0)))
    assert measured.points == int((counts > 0).sum())
    assert measured.same_points == pytest.approx(np.mean(same), abs=1e-4)
    assert measured.teacher_mean == pytest.approx(np.mean(reached), abs=1e-4)
    assert measured.consistency == pytest.approx(np.mean(between), abs=1e-3)
    assert measured.views_per_point == pytest.approx(float(counts[counts > 0].float().mean()))


def _teacher(store, view, xy):
    row = torch.tensor([store.index(view.name)])
    return gather_reference(store, row, xy[None], mode="bilinear")[0]


def test_without_points_there_are_no_cosines(run, truth, held_out, scale):
    nothing = SurfacePoints(
        torch.zeros(0, 3),
        torch.zeros(0, dtype=torch.long),
        torch.zeros(0, 2),
        torch.zeros(0, dtype=torch.long),
    )
    measured = compare_views(
        FieldSource(run),
        "clip",
        run.stores["clip"],
        nothing,
        held_out=held_out,
        training=seen_views(run.train, truth, scale),
    )
    assert measured.teacher_mean is measured.same_points is measured.consistency is None
    assert measured.points == 0


def test_answers_at_points_are_the_similarity_there(run, truth, points):
    model = field_model(run)
    language = open_language(Speaker((model.feature_field.head("clip"),)), truth)
    scores = point_scores(FieldSource(run), language.hidden_query, points)
    features = model.feature_field.head("clip")(model.feature_field.hidden(points.positions))
    expected = similarity(features, language.query).T.detach().numpy()
    np.testing.assert_allclose(scores, expected, atol=1e-4)


WORDS = Vocabulary(
    queries=(Label("mug", (0, 1)), Label("box", (2,)), Label("cat", (9,))),
    surfaces=(Label("table", (3,)),),
    absent=(AbsentPrompt("dog", "unknown_word", 0),),
)


def _points(ids):
    ids = torch.tensor(ids)
    return SurfacePoints(
        torch.zeros(len(ids), 3), torch.zeros_like(ids), torch.zeros(len(ids), 2), ids
    )


def test_a_copy_of_the_truth_is_right_at_every_point():
    points = _points([0, 1, 2, 3, 3, 5])
    scores = np.full((5, 6), 0.1, dtype=np.float32)
    for number, label in enumerate(WORDS.labels):
        scores[number, np.isin(points.ids.numpy(), label.ids)] = 0.9
    scores[4] = 0.99  # an absent phrase is no label
    found = score_points(scores, points, WORDS)
    assert found.accuracy == found.accuracy_objects == 1
    assert found.iou == (1, 1, None)
    wrong = score_points(1 - scores, points, WORDS)
    assert wrong.accuracy == wrong.accuracy_objects == 0
    assert wrong.iou == (0, 0, None)


def test_accuracy_of_objects_leaves_surfaces_out():
    points = _points([0, 3, 3, 3])
    scores = np.zeros((5, 4), dtype=np.float32)
    scores[0] = 0.8  # everything is a mug
    found = score_points(scores, points, WORDS)
    assert found.accuracy == 0.25
    assert found.accuracy_objects == 1
    assert found.iou[0] == 0.25


def test_cameras_know_the_size_of_their_file(held_out):
    assert all(isinstance(view, SeenView) for view in held_out)
    assert {view.camera.file_size for view in held_out} == {(36, 48)}
    assert all(isinstance(view.camera, FileCamera) for view in held_out)
