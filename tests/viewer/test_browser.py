"""Nerfstudio's viewer as a person sees it: a browser types and clicks, and its pixels are checked.

The scene's masks say where the right object is.
"""

import threading
from contextlib import closing

import numpy as np
import pytest

from f3rm.colours.palette import PALETTE
from tests.run_fixtures import small_config, train
from tests.viewer.colour_backbone import ColourBackbone
from tests.viewer.shown import Shown

pytestmark = [
    pytest.mark.slow,
    # Nerfstudio's viewer looks at every property of a pipeline, also at torchmetrics' old ones.
    pytest.mark.filterwarnings("ignore:This property will be removed:DeprecationWarning"),
]

VIEW = 1
"""A photograph in which no object hides another."""

ELSEWHERE = 5


@pytest.fixture(scope="module")
def shown(browser, run):
    with closing(Shown(browser, run.config)) as opened:
        opened.look_from(VIEW)
        yield opened


@pytest.fixture
def fresh(shown):
    """The viewer without a query."""
    shown.press("Forget points and images")
    shown.type("Positives", "")
    shown.choose("Features", "colours")
    shown.choose("Several positives", "averaged")
    shown.wait(lambda: shown.asked() is None)
    yield shown
    assert shown.is_alive()


def _mask(shown, run, name):
    ids = [number for query in run.truth.queries if name in query.text for number in query.ids]
    assert ids
    path = shown.pipeline.datamanager.train_dataset.image_filenames[VIEW]
    return run.truth.view(path).mask(ids)


def _coloured(picture, colour):
    """Where a composite has a query's colour and not the grey of what was not found."""
    picture, colour = picture.astype(float), np.asarray(colour, dtype=float)
    tint = picture - picture.mean(-1, keepdims=True)
    wanted = colour - colour.mean()
    length = np.linalg.norm(tint, axis=-1)
    along = tint @ (wanted / np.linalg.norm(wanted))
    return (along > 35) & (along > 0.85 * length)


def _overlap(found, mask):
    return (found & mask).sum() / (found | mask).sum()


def _ask(shown, words):
    shown.type("Positives", words)
    shown.wait(lambda: shown.asked() is not None)
    shown.settle()


def test_a_typed_query_lights_up_its_object_and_an_absent_one_nothing(fresh, run):
    _ask(fresh, "orange box")
    fresh.choose("Output type", "similarity_composite")
    fresh.settle()
    found = _coloured(fresh.picture(VIEW), PALETTE[0])
    assert _overlap(found, _mask(fresh, run, "orange box")) > 0.6
    assert fresh.page.get_by_text("1. orange box: from").is_visible()
    _ask(fresh, "green box")
    # On a busy machine the empty field counts as a query's end, and the output is rgb again.
    fresh.choose("Output type", "similarity_composite")
    fresh.wait(lambda: fresh.page.get_by_text("1. green box: not found").is_visible())
    fresh.settle()
    assert not _coloured(fresh.picture(VIEW), PALETTE[0]).any()


def test_each_of_several_positives_has_its_colour_and_output(fresh, run):
    fresh.choose("Several positives", "each alone")
    _ask(fresh, "orange, turquoise")
    offered = fresh.choose("Output type", "similarity_2")
    assert {"similarity", "similarity_1", "similarity_composite"} <= set(offered)
    fresh.choose("Output type", "similarity_composite")
    fresh.settle()
    picture = fresh.picture(VIEW)
    assert _overlap(_coloured(picture, PALETTE[0]), _mask(fresh, run, "orange box")) > 0.6
    assert _overlap(_coloured(picture, PALETTE[1]), _mask(fresh, run, "turquoise")) > 0.3


def test_a_click_asks_features_without_language(fresh, run):
    fresh.choose("Features", "mute")
    fresh.type("Positives", "orange")
    fresh.wait(lambda: fresh.page.get_by_text("have no language").is_visible())
    mask = _mask(fresh, run, "orange box")
    rows, columns = (round(where.mean()) for where in np.nonzero(mask))
    fresh.press("Click a positive")
    fresh.wait(lambda: "Click a point" in fresh.controls.ask.status.content)
    fresh.page.wait_for_timeout(300)
    fresh.click_at(VIEW, columns, rows)
    fresh.wait(lambda: fresh.asked() is not None)
    fresh.settle()
    fresh.choose("Output type", "similarity_composite")
    fresh.settle()
    assert _overlap(_coloured(fresh.picture(VIEW), PALETTE[0]), mask) > 0.6
    assert fresh.page.get_by_text("1. point 1: from").is_visible()


def test_pca_is_the_same_after_a_camera_moves_and_comes_back(fresh):
    fresh.choose("Output type", "feature_pca")
    fresh.settle()
    before = fresh.picture(VIEW).astype(int)
    fresh.look_from(ELSEWHERE)
    moved = fresh.picture(VIEW).astype(int)
    fresh.look_from(VIEW)
    after = fresh.picture(VIEW).astype(int)
    assert np.abs(after - before).mean() < 2
    assert np.abs(moved - before).mean() > 10
    fresh.press("Refresh PCA from this view")
    fresh.wait(lambda: fresh.controls.pca_override)
    fresh.settle()
    assert np.abs(fresh.picture(VIEW).astype(int) - before).mean() > 2
    fresh.press("Saved PCA")
    fresh.settle()
    assert np.abs(fresh.picture(VIEW).astype(int) - before).mean() < 2


@pytest.mark.parametrize("text", ["🦊 {alert(1)} <b>", ",,, ,", "orange" * 500])
def test_odd_texts_break_nothing(fresh, text):
    fresh.field("Positives").first.fill(text)
    fresh.page.wait_for_timeout(800)
    fresh.settle()
    assert "Error" not in fresh.page.inner_text("body")


def test_a_missing_text_encoder_is_seen_and_another_viewer_unharmed(
    shown, browser, run, monkeypatch
):
    monkeypatch.setattr(ColourBackbone, "texts_can_be_had", False)
    with closing(Shown(browser, run.config)) as other:
        other.look_from(VIEW)
        other.type("Positives", "orange")
        seen = "the {weights} of <colours> cannot be reached, got no network"
        other.wait(other.page.get_by_text(seen).is_visible)
        other.settle()
        assert other.is_alive()
        assert other.asked() is None
    assert shown.field("Positives").first.input_value() != "orange"
    assert shown.controls.ask.a_positives.value != "orange"


def test_a_query_while_training_waits_for_nothing(browser, run, tmp_path):
    config = small_config(run.truth.folder, tmp_path, "COLOURS")
    config.vis, config.max_num_iterations = "viewer+tensorboard", 1 << 20
    trainer = train(config, steps=0)
    trainer._init_viewer_state()
    stop = threading.Event()

    def go():
        step = 0
        # Python's locks are unfair: a loop that takes one again at once may starve the render.
        while not stop.wait(0.005):
            with trainer.train_lock:
                trainer.train_iteration(step)
            trainer.viewer_state.update_scene(step, 512)
            step += 1

    thread = threading.Thread(target=go, daemon=True)
    with closing(Shown(browser, config.get_base_dir() / "config.yml", trainer=trainer)) as opened:
        thread.start()
        try:
            opened.type("Positives", "orange")
            opened.wait(lambda: opened.asked() is not None)
            (machine,) = opened.viewer.render_statemachines.values()
            opened.wait(lambda: "similarity_composite" in machine.output_keys)
        finally:
            stop.set()
            thread.join(timeout=60)
            assert not thread.is_alive()
        assert opened.is_alive()
