"""Panels show what was scored; tables and JSON cope with what was not."""

import json

import numpy as np
import pytest
import torch
from PIL import Image
from rich.console import Console

from f3rm.evaluation.held_out import HeldOutScores, ScoredView
from f3rm.evaluation.pictures import (
    FALSE_NEGATIVE,
    FALSE_POSITIVE,
    TRUE_POSITIVE,
    PictureFolder,
    heat_picture,
    legend,
    mask_picture,
    panel_name,
    query_panel,
)
from f3rm.evaluation.query_scores import QueryScores
from f3rm.evaluation.report import Evaluation, collect_rows, head_numbers, ratio, summarise
from f3rm.evaluation.surface_scores import SurfaceScores
from f3rm.evaluation.vocabulary import Label, Vocabulary
from f3rm.scene.drawing import to_picture

WORDS = Vocabulary((Label("red mug", (0,)), Label("blue box", (1,))), (), ())


def _view(*, teacher=True):
    ids = np.full((20, 30), -1, dtype=np.int32)
    ids[2:12, 2:12] = 0
    ids[0, 29] = 1
    scores = np.where(ids == 0, 0.9, 0.2).astype(np.float32)
    photograph = np.full((20, 30, 3), 100, dtype=np.uint8)
    answers = np.stack((scores, scores))
    return ScoredView(
        "images/frame_00009.png",
        photograph,
        photograph,
        ids,
        answers,
        answers if teacher else None,
    )


def test_hits_false_alarms_and_misses_have_their_colours():
    base = np.zeros((2, 2, 3), dtype=np.uint8)
    predicted = np.array([[True, True], [False, False]])
    truth = np.array([[True, False], [True, False]])
    picture = mask_picture(base, predicted, truth)
    halves = [[TRUE_POSITIVE, FALSE_POSITIVE], [FALSE_NEGATIVE, (0, 0, 0)]]
    assert np.array_equal(picture, np.array(halves) // 2)


def test_heat_grows_with_the_score_and_the_legend_shows_the_same_colours():
    base = np.zeros((1, 101, 3), dtype=np.uint8)
    heat = heat_picture(base, np.linspace(0, 1, 101)[None])
    brightness = heat.sum(axis=-1)[0].astype(int)
    assert (np.diff(brightness) >= -1).all()
    scale = legend(101)
    assert (scale[:, 50] == 255).all()
    np.testing.assert_allclose(heat[0, [0, 25, 99]], 0.65 * scale[0, [0, 25, 99]], atol=1.5)


@pytest.mark.parametrize(("teacher", "tiles"), [(True, 5), (False, 3)])
def test_a_panel_has_the_photograph_and_two_tiles_per_answer(teacher, tiles):
    panel = query_panel(_view(teacher=teacher), WORDS, 0)
    assert panel.shape == (20 + 28, tiles * (30 + 2), 3)
    assert (panel[18:38, :30] == 100).all()


def test_a_folder_gets_what_is_seen_and_an_overview(tmp_path):
    folder = PictureFolder(tmp_path / "pictures", WORDS)
    folder.write_overview()  # nothing was seen
    folder.add(_view())
    folder.write_overview()
    names = sorted(path.name for path in (tmp_path / "pictures").iterdir())
    assert names == ["frame_00009_red_mug.png", "overview.png"]
    with Image.open(tmp_path / "pictures" / "overview.png") as picture:
        assert picture.size == (160, 52)


def test_names_of_panels_are_plain():
    assert panel_name("images/a/x.1.jpg", "A café, (old)") == "x.1_a_caf_old.png"
    assert panel_name("x.png", "猫") == "x_query.png"


def test_tables_and_json_of_an_evaluation_with_and_without_answers():
    collected = QueryScores(WORDS)
    collected.add("a", _view().ids, _view().field)
    for answers in (collected.answers(), None):
        scores = HeldOutScores([20.0], {}, answers, None)
        surfaces = SurfaceScores()
        heads = head_numbers(scores, surfaces, ["clip"])
        rows = collect_rows(scores, surfaces, None, ["a"])
        numbers = {**summarise(rows, surfaces, heads), "nerfacto_psnr": None}
        found = Evaluation(numbers, rows, heads, {"settings": {}}, ("a note",))
        assert json.loads(json.dumps(found.to_dict(), allow_nan=False))["notes"] == ["a note"]
        console = Console(width=120, record=True, file=None, quiet=False)
        with console.capture() as captured:
            for table in found.tables():
                console.print(table)
        assert "20.000" in captured.get()
        assert ("red mug" in captured.get()) == (answers is not None)


def test_a_row_has_the_means_of_its_query():
    collected = QueryScores(WORDS)
    collected.add("a", _view().ids, _view().field)
    (mug, box) = collected.answers().queries
    assert mug.numbers()["miou"] == 1
    assert box.numbers()["miou"] is None
    scores = HeldOutScores([], {}, collected.answers(), None)
    rows = collect_rows(scores, SurfaceScores(), None, [])["queries"]
    expected = {**mug.numbers(), "max_relevancies": [pytest.approx(0.9)], "point_iou": None}
    assert rows[0] == {"text": "red mug", "views": 1, **expected}


@pytest.mark.parametrize(
    ("value", "reference", "expected"),
    [(1.0, 2.0, 0.5), (None, 1.0, None), (1.0, None, None), (1.0, 0.0, None), (0.3, -0.1, None)],
)
def test_ratios_are_of_what_is_there(value, reference, expected):
    assert ratio(value, reference) == expected


def test_pictures_are_resized_and_lose_their_alpha():
    image = torch.rand(4, 6, 4)
    small = to_picture(image, (4, 6))
    np.testing.assert_allclose(small / 255, image[..., :3].numpy(), atol=0.003)
    assert to_picture(image, (8, 12)).shape == (8, 12, 3)
