"""Asked by examples and by several questions at once: what comes back is what was asked."""

import json
import shutil

import numpy as np
import open3d
import pytest
import torch
from PIL import Image

from f3rm.errors import BackboneRef, F3rmError
from f3rm.language.heads import LanguageError
from f3rm.language.relevancy import make_query, similarity
from f3rm.language.text_map import TextMap, TextMapError
from f3rm.scene.export import export_labels
from f3rm.scene.export.points import Sampling
from f3rm.scene.export.sightings import best_views
from f3rm.scene.found import NONE_OF_THESE
from f3rm.scene.views import find_view
from tests.viewer.colour_backbone import COLOURS, ColourBackbone


@pytest.fixture(scope="module")
def orange(run):
    (thing,) = [thing for thing in run.truth.objects if thing.name == "orange box"]
    return thing


@pytest.fixture(scope="module")
def click(scene, run, orange):
    """A training view that shows the orange box well, and a pixel in the middle of it."""
    masks = {view: run.truth.view(view).mask([orange.id]) for view in scene.views()}
    view = max(masks, key=lambda name: masks[name].sum())
    y, x = np.argwhere(masks[view]).mean(axis=0).round()
    return view, (x, y)


def test_a_clicked_thing_is_found_where_it_is_with_every_head(scene, click, orange):
    for head in ("colours", "mute"):
        found = scene.find(like=click, head=head, frame="metres")
        assert found.certainty in ("found", "uncertain")
        errors = [np.linalg.norm(instance.centre - orange.centre) for instance in found]
        assert min(errors) < 0.1


def test_a_pixel_of_a_view_is_that_of_its_camera_and_of_its_picture(scene, click):
    view, (x, y) = click
    camera = scene.cameras()[scene.views().index(view)]
    by_name, by_camera = scene.like(click), scene.like((camera, (x, y)))
    assert by_name.label == f"{view.rpartition('/')[2]} at {x:g}, {y:g}"
    hidden = scene.render(camera, ["hidden"])["hidden"][int(y), int(x)]
    for question in (by_name, by_camera):
        best = float(question.scores(hidden))
        assert best == pytest.approx(float(by_name.scores(hidden)), abs=1e-4)
        assert best > 0.9  # nothing is more like it than itself


def test_a_part_of_a_photograph_is_an_example_too(scene, run, click, orange):
    view, (x, y) = click
    file = find_view(scene.run, view).file
    question = scene.like((file, (x - 4, y - 4, x + 4, y + 4)), head="colours", name="crop")
    found = scene.find(question, frame="metres")
    assert found.question == "crop"
    by_name = scene.like((view, (x - 4, y - 4, x + 4, y + 4)), head="colours")
    assert torch.equal(by_name.scores(scene.cells.hidden), question.scores(scene.cells.hidden))
    assert min(np.linalg.norm(each.centre - orange.centre) for each in found) < 0.1
    whole = scene.like(file, head="colours")
    assert whole.label == file.name
    assert not whole.is_present


def test_points_of_a_thing_are_like_the_thing(known, orange):
    inside = known.find("orange", frame="metres")[0].points[:5]
    question = known.like(inside, frame="metres")
    assert question.label == "5 points"
    scores = known.similarity(inside, question, frame="metres")
    assert float(scores.min()) > 0.5


def test_two_clicks_label_the_other_views_and_the_points(scene, run, click, orange, tmp_path):
    view, _ = click
    truth = run.truth.view(view)
    names = [thing for thing in run.truth.objects if thing.kind == "object"]
    largest = max(
        (thing for thing in names if thing.id != orange.id and "orange" not in thing.name),
        key=lambda thing: truth.mask([thing.id]).sum(),
    )
    y, x = np.argwhere(truth.mask([largest.id])).mean(axis=0).round()
    labels = [scene.like(click, name="orange box"), scene.like((view, (x, y)), name="other")]
    counts = export_labels(
        scene, tmp_path, labels, views=["eval"], sampling=Sampling(4000), downscale=2.0
    )
    assert list(counts) == [NONE_OF_THESE, "orange box", "other"]
    listed = json.loads((tmp_path / "labels.json").read_text())["labels"]
    assert [row["label"] for row in listed] == list(counts)
    cloud = open3d.t.io.read_point_cloud(tmp_path / "points.ply")
    values = cloud.point.label.numpy()[:, 0]
    assert [int((values == value).sum()) for value in range(3)] == list(counts.values())
    for name in scene.views("eval"):
        with Image.open(tmp_path / f"{name.rpartition('/')[2]}") as picture:
            drawn = np.asarray(picture)
            palette = picture.getpalette()
        assert palette is not None
        assert palette[3:6] == listed[1]["colour"]
        thing = run.truth.view(name).mask([orange.id])[::2, ::2]
        if thing.sum() > 50:
            assert (drawn[thing] == 1).mean() > 0.5
            assert (drawn[~thing] == 1).mean() < 0.2


def test_a_place_belongs_to_the_best_of_several_questions(known):
    pink, orange, both = known.find(["pink", "orange", "pink or orange"])
    assert (len(pink), len(orange)) == (2, 1)
    assert not both  # as good as the others everywhere, and asked after them
    assert both.certainty == "absent"
    assert both.reason == "'pink or orange' not found: all that matches it fits 'pink' better"
    alone = known.find("pink; orange; pink or orange", compete=False)
    assert [len(found) for found in alone] == [2, 1, 3]
    camera = known.cameras("eval")[0]
    camera.rescale_output_resolution(0.25)
    query = ["pink", "orange", "pink or orange"]
    mask = known.render(camera, ["mask"], query=query)["mask"]
    assert int(mask.sum(-1).max()) <= 1
    options = {"compete": False, "thresholds": [0.5] * 3}
    apart = known.render(camera, ["mask"], query=query, **options)["mask"]
    assert torch.equal(apart[..., 2], apart[..., :2].any(-1))


def test_answers_and_scenes_say_what_they_hold(known, scene):
    found = known.find("pink", frame="metres")
    lines = str(found).splitlines()
    assert len(lines) == len(found) == 2
    assert lines[0].startswith(f"pink 1: found, score {found[0].score:.2f}, centre (")
    assert lines[0].endswith(" m")
    nothing = known.find("yellow")
    assert str(nothing) == nothing.verdict
    assert nothing.verdict.startswith("yellow: absent, best score 0.")
    assert "tensor" not in repr(found)
    assert "heads colours (9 channels, text), mute (9 channels)" in repr(scene)
    assert "22 training and 2 held-out photographs" in repr(scene)


def test_the_views_of_a_picture_show_the_things(known, run):
    instances = [*known.find("pink", frame="metres"), *known.find("orange", frame="metres")]
    seen = set()
    for view, shown in best_views(known, instances):
        seen |= set(shown)
        for number in shown:
            camera = known.cameras()[known.views().index(view.name)]
            corners = torch.from_numpy(instances[number].box.corners())
            scene_corners = known.frames.get("metres").to_scene(corners).float()
            xy, depth = view.file_camera(view.size).project(scene_corners)
            middle = xy.mean(dim=0)
            assert float(depth.min()) > 0
            assert 0 < float(middle[0]) < int(camera.width)
            assert 0 < float(middle[1]) < int(camera.height)
    assert seen == set(range(3))


@pytest.mark.parametrize(
    ("example", "message"),
    [
        (("frame_00001", (500, 30)), r"must be inside its 160 x 120 pixels, got x = 500, y = 30"),
        (("frame_00001", (-1, 30)), "got x = -1"),
        (("frame_0001", (1, 1)), r"no view 'frame_0001' in the dataset. Did you mean 'frame_0"),
        (("frame_00001", (1, 2, 3)), r"must be \(camera or view, \(x, y\)\) or \(file"),
        (
            ("frame_0001", (1, 2, 3, 4)),
            r"no view 'frame_0001' in the dataset. Did you mean 'frame_0",
        ),
        ("nowhere.png", "nowhere.png"),
        ([[0.0, 0.0]], r"shape \(points, 3\)"),
        ([[0.0, 0.0, 1e6]], "must be in the view of a training camera"),
    ],
)
def test_examples_that_cannot_be_used_are_refused(scene, example, message):
    with pytest.raises(F3rmError, match=message):
        scene.find(like=example, frame="metres")


def test_a_crop_without_pixels_is_refused(scene, click):
    file = find_view(scene.run, click[0]).file
    with pytest.raises(F3rmError, match="Crop must be inside the image of 160 x 120 pixels"):
        scene.find(like=(file, (10, 10, 10, 20)))


def test_either_words_or_an_example_is_asked(scene, click):
    for arguments in ({}, {"question": "red", "like": click}):
        with pytest.raises(F3rmError, match="either a question or like="):
            scene.find(**arguments)
    with pytest.raises(F3rmError, match="at least one example"):
        scene.like()


def test_questions_that_are_too_long_too_many_or_empty_are_refused_at_once(scene):
    for question, message in [
        ("red." * 2500, r"may have 1000 letters, got 10000: 'red\.red"),
        (["red"] * 500, "may hold 255 questions, got 500"),
        ("; ".join(["red"] * 500), "may hold 255 questions, got 500"),
        ("", "at least one phrase"),
        ([], "at least one phrase"),
        (["red", ""], "nothing where a phrase should be"),
        (["red; blue"], "';' where it should end"),
    ]:
        with pytest.raises(F3rmError, match=message):
            scene.find(question)


def test_a_head_without_texts_is_asked_in_a_language(scene, run, tmp_path):
    """``mute`` sees what ``colours`` sees, so the identity is a language of it, and so is what a
    network has learnt of the identity."""
    channels = len(COLOURS)
    text = BackboneRef("colours", "colours", "none")
    TextMap({"linear.weight": torch.eye(channels)}, text).save(tmp_path / "plain.safetensors")
    points = scene.surface_points(frame="nerfstudio").positions[:200]
    expected = similarity(
        scene.features(points, "mute", frame="nerfstudio"),
        make_query(*ColourBackbone(text).encode_text(["orange", "grey", "blue"]).split((1, 2))),
    )[:, 0]
    with pytest.raises(LanguageError, match="'mute' has no text tower"):
        scene.question("orange", head="mute")
    options = {"negatives": ["grey", "blue"], "rule": "lerf"}
    own = scene.similarity(points, "orange", **options, frame="nerfstudio")
    try:
        scene.language = tmp_path / "plain.safetensors"
        assert scene.language.name == "plain"
        asked = scene.question("orange", **options)  # mute is asked by default
        scored = scene.similarity(points, asked, frame="nerfstudio")
        torch.testing.assert_close(scored, expected, rtol=0, atol=1e-5)
        folder = run.config.parent / "languages"
        shutil.copytree(tmp_path, folder)
        scene.language = "plain"
        assert scene.find("orange thing", head="mute").certainty in ("found", "uncertain")
        with pytest.raises(TextMapError, match=r"no language 'plane'; did you mean plain\?"):
            scene.language = "plane"
    finally:
        scene.language = None
        shutil.rmtree(run.config.parent / "languages", ignore_errors=True)
    again = scene.similarity(points, "orange", **options, frame="nerfstudio")
    torch.testing.assert_close(again, own)
