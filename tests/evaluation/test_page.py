"""The page of an evaluation: complete in one file, escaped, and about what its views show."""

from pathlib import Path

import numpy as np
import pytest
from scipy import ndimage

from f3rm.errors import F3rmError
from f3rm.evaluation.commands import activation, shown_path
from f3rm.evaluation.page import Answer, most_visible, outline, page_html, view_html
from f3rm.evaluation.pictures import PictureFolder
from f3rm.evaluation.vocabulary import Vocabulary
from f3rm.synthetic.scenes import SceneSettings, make_tabletop
from f3rm.synthetic.truth import SceneTruth
from tests.html_page import Page
from tests.scene_fixtures import need_raycaster

METRICS = {
    "psnr": 25.5,
    "miou": 0.5,
    "queries": [{"text": "<red> mug", "localisation": 1.0, "miou": 0.625, "teacher_miou": None}],
}


def view(truth):
    picture = np.zeros((12, 16, 3), np.uint8)
    scores = np.zeros((12, 16), np.float32)
    scores[2:11, 3:13] = 0.9
    return view_html("images/a.png", [picture] * 3, [Answer("<mug>", scores, truth)])


def test_the_page_needs_no_other_file_and_escapes_what_is_typed():
    truth = np.zeros((12, 16), bool)
    truth[2:11, 3:13] = True
    views = [view(truth), view(None), view(np.zeros((12, 16), bool))]
    page = Page(page_html(views, METRICS, "f3rm <x>"))
    assert page.open == []
    assert len(page.images) == 12
    assert all(source.startswith("data:image/jpeg;base64,") for source in page.images)
    text = " ".join(page.cells)
    assert "IoU 1.00" in text
    assert "not in this view" in text
    assert "<red> mug" in text
    assert "f3rm <x>" in text
    assert "0.62" in text


def test_a_page_that_cannot_be_written_is_named(tmp_path):
    folder = PictureFolder(tmp_path, Vocabulary((), (), ()))
    (tmp_path / "index.html").mkdir()
    with pytest.raises(
        F3rmError, match=r"--pictures: .* cannot be written to.* another --pictures"
    ):
        folder.write_page("text")


def test_outlines_are_the_pixels_that_touch_the_outside():
    mask = np.random.default_rng(0).random((20, 30)) > 0.3
    inside = np.asarray(ndimage.binary_erosion(mask, border_value=1), dtype=bool)
    np.testing.assert_array_equal(outline(mask), mask & ~inside)


def test_the_page_asks_for_what_its_views_show_most_of(tmp_path):
    need_raycaster()
    make_tabletop(tmp_path / "tiny", SceneSettings(views=4, height=48, width=64))
    truth = SceneTruth.read(tmp_path / "tiny")
    names = [f"images/frame_{index:05d}.png" for index in (1, 2)]
    chosen = most_visible(truth, names)
    assert len(set(chosen)) == 4
    ids = {query.text: query.ids for query in truth.queries}
    assert set(chosen) <= set(ids)
    pixels = {
        text: min(int(truth.view(name).mask(ids[text]).sum()) for name in names) for text in ids
    }
    assert pixels[chosen[0]] >= np.median(list(pixels.values()))


def test_the_way_to_activate_is_told_only_where_it_is_needed(monkeypatch):
    monkeypatch.setattr("sys.prefix", "/somewhere/.venv")
    monkeypatch.delenv("VIRTUAL_ENV", raising=False)
    assert "source /somewhere/.venv/bin/activate" in "\n".join(activation())
    monkeypatch.setenv("VIRTUAL_ENV", "/somewhere/.venv")
    assert activation() == []


def test_paths_are_shown_as_one_would_type_them(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert shown_path(tmp_path / "a" / "b") == str(Path("a/b"))
    assert shown_path(Path("/elsewhere/x")) == "/elsewhere/x"
