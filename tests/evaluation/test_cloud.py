"""The points of a page: what their data says, and a person who turns and clicks them."""

import base64
import dataclasses
import io
import json

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.spatial import KDTree

from f3rm.evaluation.cloud import CHANNELS, SceneAnswers, cloud_json, owners, reduced
from f3rm.evaluation.page import page_html
from f3rm.evaluation.pictures import boxed_picture
from tests.run_fixtures import colours
from tests.view.conftest import cone, scene, truth

__all__ = ["colours", "cone", "scene", "truth"]

PATIENCE = 120_000
"""Milliseconds that a change of the page may take."""


@pytest.fixture(scope="module")
def answers(scene):
    return SceneAnswers.of(scene, ["pink", "yellow"], "colours")


@pytest.fixture(scope="module")
def cloud(scene, answers):
    return cloud_json(scene, answers, "colours")


def unpacked(text, kind):
    return np.frombuffer(base64.b64decode(text), kind)


def test_points_are_where_the_scene_has_them_and_say_what_was_found(scene, answers, cloud, cone):
    data = json.loads(cloud)
    steps = unpacked(data["positions"], "<u2").reshape(-1, 3) / 65535
    positions = np.array(data["low"]) + steps * np.array(data["span"])
    own = scene.frames.get("metres").from_scene(scene.cells.positions.double()).numpy()
    distances, cells = KDTree(own).query(positions)
    assert distances.max() <= np.max(data["span"]) / 65535
    assert len(np.unique(cells)) == len(positions)
    near = np.linalg.norm(positions - np.array(cone.centre), axis=1) < 0.08
    owner, first = unpacked(data["owners"], "u1"), data["instances"][0]
    assert (owner[near] == 1).mean() > 0.8
    assert first["label"].startswith("pink 1, ")
    assert data["prompts"][first["prompt"]]["text"] == "pink"
    inside = answers.found[0][0].box.contains(positions[owner == 1], margin=0.03)
    assert inside.all()
    scores = unpacked(data["scores"][0], "u1")
    assert np.median(scores[owner == 1]) > 128 > np.median(scores[owner != 1])
    edges = np.array(first["edges"]).reshape(12, 2, 3)
    lengths = np.sort(np.linalg.norm(edges[:, 0] - edges[:, 1], axis=1))
    expected = np.sort(np.repeat(answers.found[0][0].extent, 4))
    np.testing.assert_allclose(lengths, expected, atol=1e-3)


def test_nothing_is_part_of_an_instance_where_none_was_found(scene, answers):
    absent = dataclasses.replace(answers.found[0], instances=())
    nothing = dataclasses.replace(answers, found=(absent, absent))
    assert not owners(scene.cells.positions.numpy().astype(float), nothing).any()


def test_reduced_vectors_have_the_cosines_of_features_without_their_mean():
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(600, CHANNELS - 2, generator=generator)
    weight = torch.randn(96, CHANNELS - 2, generator=generator)
    rows = torch.from_numpy(reduced(hidden, weight)).float()
    features = torch.nn.functional.normalize(hidden @ weight.T, dim=-1)
    features -= features.mean(dim=0)
    expected = torch.nn.functional.cosine_similarity(features[:1], features)
    found = torch.nn.functional.cosine_similarity(rows[:1], rows)
    assert (found - expected).abs().max() < 0.05


def test_a_box_is_drawn_where_its_object_is_seen(scene, answers, truth):
    (found,) = answers.found[0]
    corners = scene.frames.get("metres").to_scene(torch.from_numpy(found.box.corners()))
    cameras, colour = scene.run.train.cameras, (255, 0, 255)
    drawn, black = 0, np.zeros((72, 96, 3), np.uint8)
    for index, name in enumerate(scene.views()):
        mask = truth.view(name).mask([each.id for each in truth.objects if "pink" in each.name])
        picture = boxed_picture(black, cameras, index, [(corners, "pink 1, 0.1 m", colour)])
        factor = picture.shape[1] // mask.shape[1]
        rows, columns = np.nonzero((picture == colour).all(axis=-1))
        y, x = (factor * np.median(where) for where in np.nonzero(mask)) if mask.any() else (0, 0)
        if mask.sum() > 20:
            drawn += 1
            assert rows.min() < y < rows.max()
            assert columns.min() < x < columns.max()
    assert drawn > 2
    behind = scene.frames.get("metres").to_scene(torch.full((8, 3), 1e3, dtype=torch.float64))
    fisheye = dataclasses.replace(cameras, camera_type=torch.full_like(cameras.camera_type, 2))
    assert not boxed_picture(black, fisheye, 0, [(corners, "", colour)]).any()
    shapes = [boxed_picture(black, cameras, 0, [(sign * behind, "", colour)]) for sign in (1, -1)]
    assert min(picture.sum() for picture in shapes) == 0  # one of them is behind the camera


def test_data_cannot_end_their_script(scene, answers):
    odd = dataclasses.replace(answers.questions[0], label="</script><b>")
    text = cloud_json(scene, dataclasses.replace(answers, questions=(odd, odd)), "colours")
    assert text is not None
    assert "<" not in text
    assert json.loads(text)["prompts"][0]["text"] == "</script><b>"


def seen(canvas):
    return np.asarray(Image.open(io.BytesIO(canvas.screenshot())).convert("RGB")).astype(int)


@pytest.mark.slow
def test_a_person_turns_the_points_clicks_one_and_is_answered(browser, answers, cloud, tmp_path):
    path = tmp_path / "page.html"
    path.write_text(page_html([], {}, "", answers=answers, cloud=cloud), encoding="utf-8")
    page = browser.new_page(viewport={"width": 390, "height": 844})  # a phone's
    page.set_default_timeout(PATIENCE)
    failures = []
    page.on("pageerror", lambda error: failures.append(error))  # noqa: PLW0108
    page.goto(path.as_uri())
    canvas = page.locator("#cloud canvas")
    canvas.wait_for()
    assert page.evaluate("document.documentElement.scrollWidth") == 390
    before, box = seen(canvas), canvas.bounding_box()
    assert before.std() > 5
    x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
    page.mouse.move(x, y)
    page.mouse.down()
    page.mouse.move(x + 40, y + 30, steps=4)
    page.mouse.up()
    page.wait_for_timeout(500)
    assert np.abs(seen(canvas) - before).mean() > 1
    page.get_by_role("button", name="pink").click()
    page.wait_for_timeout(500)
    assert page.locator("#cloud-scale").is_visible()
    red, green, blue = np.moveaxis(seen(canvas), -1, 0)
    rows, columns = np.nonzero((red > 150) & (green > 110) & (blue < 120))  # a high score
    assert len(rows) > 10
    chosen = len(rows) // 2
    page.mouse.click(box["x"] + int(columns[chosen]), box["y"] + int(rows[chosen]))
    page.get_by_text("This is pink 1, ").wait_for()
    assert "% of the points are like it" in page.inner_text("#cloud-answer")
    page.get_by_role("button", name="yellow").click()
    page.get_by_text("yellow: ").first.wait_for()
    assert failures == []
    page.close()
