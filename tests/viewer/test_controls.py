import contextlib
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from nerfstudio.cameras.cameras import Cameras
from viser import ClientHandle

from f3rm.backbones.known_words import KnownWords
from f3rm.errors import F3rmError
from f3rm.language.text_encoder import QueryText, TextEncoder, split_phrases
from f3rm.viewer import controls as module
from f3rm.viewer.controls import FeatureControls
from f3rm.viewer.start import Sharpness
from tests.nerf_fixtures import head
from tests.viewer.viewer_fixtures import (
    FakeTower,
    FakeViewer,
    embedding,
    install_towers,
    press,
    wait,
)

MEANS = {"dino": torch.ones(6), "clip": torch.ones(12)}
POINT = ((0.0, 0.0, 0.0), (0.0, 0.0, 2.0))


def _probe(origin, direction):
    if direction[2] < 0:
        msg = "nothing there"
        raise F3rmError(msg)
    return {"dino": torch.arange(6.0), "clip": torch.arange(12.0)}


@pytest.fixture
def towers(monkeypatch):
    monkeypatch.setattr(module, "_DEBOUNCE_SECONDS", 0.05)
    return install_towers(monkeypatch, channels=12)


@pytest.fixture
def controls(towers):
    built = FeatureControls(QueryText("", "object, things, stuff, texture", 0.1), _probe)
    built.set_heads((head("dino", 6, has_text=False), head("clip")))
    return built


@pytest.fixture
def viewer(controls, tmp_path):
    return FakeViewer(controls, tmp_path)


def _asked(controls):
    asked = controls.active_query(MEANS)
    assert asked is not None
    return asked


def _says(controls, words):
    wait(lambda: words in controls.ask.status.content)


def test_keystrokes_are_encoded_once_in_the_background(controls, viewer, towers):
    for text in ("m", "mu", "mug"):
        controls.ask.a_positives.value = text
        assert controls.active_query(MEANS) is None  # never waits
    wait(lambda: controls.active_query(MEANS) is not None)
    _says(controls, "Showing: mug")
    assert [texts[0] for texts in towers[0].texts] == ["mug"]
    assert viewer.machine.actions[-1].action == "rerender"


def test_callbacks_need_no_train_lock(controls, viewer):
    with viewer.train_lock:
        controls.ask.a_positives.value = "mug"
        wait(lambda: controls.active_query(MEANS) is not None)


def test_a_failure_is_shown_and_the_next_query_works(controls, viewer):
    controls.ask.a_positives.value = "fail"
    _says(controls, "cannot be reached")
    assert controls.active_query(MEANS) is None
    controls.ask.a_positives.value = "mug"
    wait(lambda: controls.active_query(MEANS) is not None)


@pytest.mark.parametrize("text", ["", "   ", ",,, ,"])
def test_nothing_asked_shows_nothing(controls, viewer, towers, text):
    controls.ask.a_positives.value = "mug"
    wait(lambda: controls.active_query(MEANS) is not None)
    controls.ask.a_positives.value = text
    wait(lambda: controls.active_query(MEANS) is None)
    assert towers[0].texts[-1][0] == "mug"


def test_an_unknown_word_is_said_with_what_is_known(controls, viewer, towers, monkeypatch):
    known = KnownWords({"shape": (("mug", "cup"), ("box",))})
    monkeypatch.setattr(FakeTower, "known_words", known)
    controls.ask.a_positives.value = "fox, mug"
    _says(controls, "CLIP does not know 'fox'. It knows the shapes mug, box; use CLIP for")
    assert "Showing: fox, mug" in controls.ask.status.content
    assert _asked(controls).is_known == (False,)
    controls.ask.a_positives.value = "cup"
    wait(lambda: _asked(controls).is_known == (True,))
    _says(controls, "Showing: cup")
    assert "does not know" not in controls.ask.status.content


def test_odd_texts_break_nothing(controls, viewer, towers):
    for text, shown in (("🦊 {<b>}", "&#123;&#60;b"), ("a" * 5000, "aaaa…"), ("a," * 5000, "more")):
        controls.ask.a_positives.value = text
        _says(controls, shown)
        assert controls.active_query(MEANS) is not None
    assert max(map(len, towers[0].texts)) <= 64


def test_canonical_negatives_are_one_switch(controls, viewer):
    assert controls.ask.c_canonical.value
    assert controls.ask.b_negatives.value == ""
    controls.ask.a_positives.value = "mug"
    wait(lambda: controls.active_query(MEANS) is not None)
    (query,) = _asked(controls).queries
    expected = [embedding(word, 12) for word in ("object", "things", "stuff", "texture")]
    torch.testing.assert_close(query.negatives, torch.stack(expected))
    controls.ask.c_canonical.value = False
    wait(lambda: len(_asked(controls).queries[0].negatives) == 0)


def test_score_and_several_positives_need_no_new_encoding(controls, viewer, towers):
    controls.ask.a_positives.value = "mug, cup"
    wait(lambda: controls.active_query(MEANS) is not None)
    assert _asked(controls).labels == ("mug + cup",)
    controls.look.a_several.value = "each alone"
    controls.look.b_score.value = "cosine"
    controls.look.e_automatic.value = False
    controls.look.f_threshold.value = 0.3
    asked = _asked(controls)
    assert asked.labels == ("mug", "cup")
    assert [len(query.negatives) for query in asked.queries] == [0]
    assert asked.settings.threshold == pytest.approx(0.3)
    assert asked.queries[0].contrast is None
    controls.look.c_rule.value = "scene"
    contrast = _asked(controls).queries[0].contrast
    assert contrast is not None
    assert torch.equal(contrast.mean, MEANS["clip"])
    assert len(towers[0].texts) == 1


def test_a_new_temperature_counts(controls, viewer):
    controls.ask.a_positives.value = "mug"
    wait(lambda: controls.active_query(MEANS) is not None)
    controls.look.d_temperature.value = 0.5
    wait(lambda: _asked(controls).queries[0].temperature == 0.5)
    controls.look.d_temperature.value = -1.0
    wait(lambda: 0 < _asked(controls).queries[0].temperature < 0.5)


def test_without_a_viewer_the_configured_query_is_encoded_once(towers):
    built = FeatureControls(QueryText("mug", "", 0.1), _probe)
    built.set_heads((head("clip"),))
    asked = _asked(built)
    assert torch.equal(_asked(built).queries[0].prompts, asked.queries[0].prompts)
    assert [tower.texts for tower in towers] == [[["mug"]]]
    assert not asked.settings.coloured


def test_features_without_language_say_so_and_can_be_pointed_at(controls, viewer):
    assert controls.ask.d_head.options == ["clip", "dino"]
    controls.ask.d_head.value = "dino"
    controls.ask.a_positives.value = "mug"
    _says(controls, "have no language")
    assert controls.active_query(MEANS) is None
    _click(controls, viewer)
    wait(lambda: controls.active_query(MEANS) is not None)
    asked = _asked(controls)
    assert (asked.head, asked.labels) == ("dino", ("point 1",))
    expected = torch.nn.functional.normalize(torch.arange(6.0), dim=0)
    torch.testing.assert_close(asked.queries[0].prompts[0], expected)
    # The mean of all features is what the point is told from.
    torch.testing.assert_close(asked.queries[0].negatives, torch.full((1, 6), 6**-0.5))


def _click(controls, viewer, button="a_positive", direction=(0.0, 0.0, 2.0)):
    press(getattr(controls.point, button))
    viewer.viser_server.scene.click(
        SimpleNamespace(
            event_type="click",
            ray_origin=(1.0, 2.0, 3.0),
            ray_direction=direction,
            screen_pos=[(0.5, 0.5)],
        )
    )


def test_a_point_may_be_a_negative_and_all_may_be_forgotten(controls, viewer):
    controls.ask.a_positives.value = "mug"
    _says(controls, "Showing: mug")  # before the clicks, whose status it would replace
    _click(controls, viewer, "b_negative")
    _says(controls, "point 1 is a negative")
    _click(controls, viewer)
    _says(controls, "point 2 is a positive")
    wait(lambda: len(_asked(controls).queries) == 2)
    assert [len(query.negatives) for query in _asked(controls).queries] == [4, 2]
    assert viewer.viser_server.scene.click is None  # one click, one point
    press(controls.point.g_forget)
    wait(lambda: _asked(controls).labels == ("mug",))


def test_a_click_beside_everything_is_said(controls, viewer):
    _click(controls, viewer, direction=(0.0, 0.0, -1.0))
    _says(controls, "nothing there")
    assert controls.active_query(MEANS) is None


def test_queries_are_saved_with_the_run_and_restored_in_another_session(
    controls, viewer, towers, tmp_path
):
    controls.ask.a_positives.value = "mug, cup"
    controls.ask.b_negatives.value = "table"
    controls.look.a_several.value = "each alone"
    _click(controls, viewer)
    wait(lambda: controls.active_query(MEANS) is not None and len(_asked(controls).labels) == 3)
    controls.saved.a_name.value = "crockery"
    press(controls.saved.b_save)
    _says(controls, "Saved 'crockery'")
    other = FeatureControls(QueryText("", "", 0.1), _probe)
    other.set_heads((head("dino", 6, has_text=False), head("clip")))
    FakeViewer(other, tmp_path)
    wait(lambda: other.saved.c_choice.options == ["crockery"])
    other.saved.c_choice.value = "crockery"
    press(other.saved.d_restore)
    wait(lambda: other.active_query(MEANS) is not None and len(_asked(other).labels) == 3)
    assert _asked(other).labels == ("mug", "cup", "point 1")
    ours, theirs = _asked(controls), _asked(other)
    for expected, actual in zip(ours.queries, theirs.queries, strict=True):
        torch.testing.assert_close(actual.prompts, expected.prompts)
        torch.testing.assert_close(actual.negatives, expected.negatives)
    press(other.saved.e_delete)
    wait(lambda: other.saved.c_choice.options == ["(none)"])


def test_a_damaged_file_of_queries_is_said_and_kept(controls, viewer):
    path = viewer.log_filename.parent / "f3rm_queries.json"
    path.write_text("{")
    controls.saved.a_name.value = "mug"
    press(controls.saved.b_save)
    _says(controls, "is not a file of saved queries")
    assert path.read_text() == "{"


def test_two_models_share_nothing(controls, viewer, towers, tmp_path):
    other = FeatureControls(QueryText("", "", 0.1), _probe)
    other.set_heads((head("clip"),))
    FakeViewer(other, tmp_path / "other")
    controls.ask.a_positives.value = "mug"
    wait(lambda: controls.active_query(MEANS) is not None)
    assert other.active_query(MEANS) is None
    assert other.ask.a_positives.value == ""


def test_trouble_while_drawing_is_shown_and_renders_go_on(controls, viewer, caplog):
    controls.ask.a_positives.value = "mug"
    wait(lambda: controls.active_query(MEANS) is not None)
    asked = controls.active_query(MEANS)
    narrow = {"clip": torch.zeros(5, 16)}  # a head of other channels than the query's
    assert controls.pictures(torch.zeros(4, 16), torch.zeros(4, 3), asked, narrow) == {}
    _says(controls, "mat1 and mat2")
    controls.link.attached = None
    with pytest.raises(RuntimeError):
        controls.pictures(torch.zeros(4, 16), torch.zeros(4, 3), asked, narrow)


def test_the_controls_bring_nothing_into_a_checkpoint(controls):
    assert not controls.state_dict()
    assert not list(controls.parameters())


def test_the_controls_are_one_folder_of_the_viewer(controls, viewer):
    first, *parts = viewer.viser_server.gui.folders
    assert first == "Ask the scene"
    assert len(parts) == 4
    assert [each.name for each in controls.ask.elements][:2] == ["Positives", "Negatives"]
    panels = (controls.ask, controls.look, controls.point, controls.pca, controls.saved)
    names = [element.name for panel in panels for element in panel.elements]
    assert len(names) == len(set(names))


def test_nothing_of_training_is_shown_where_nothing_trains(viewer, towers, tmp_path):
    panel = viewer.control_panel
    assert panel._train_speed.is_hidden
    assert panel._train_util.is_hidden
    assert not viewer.pause_train.visible
    training = FakeViewer(FeatureControls(QueryText("", "", 0.1), _probe), tmp_path, trainer=1)
    assert training.pause_train.visible
    assert not training.control_panel._train_util.is_hidden


def test_a_new_query_switches_the_picture_and_no_query_back(controls, viewer):
    viewer.control_panel.output_render = "depth"
    controls.ask.a_positives.value = "mug"
    wait(lambda: viewer.control_panel.output_render == "similarity")
    viewer.control_panel.output_render = "depth"
    controls.look.h_high.value = 0.5  # the same query
    wait(lambda: _asked(controls).settings.high == 0.5)
    assert viewer.control_panel.output_render == "depth"
    controls.ask.a_positives.value = "cup"
    wait(lambda: viewer.control_panel.output_render == "similarity")
    controls.ask.a_positives.value = ""
    wait(lambda: viewer.control_panel.output_render == "rgb")


def test_the_resolution_follows_the_speed_until_a_person_chooses_one(viewer):
    slider, sharpness = viewer.control_panel._max_res, Sharpness(viewer)
    sharpness.rendered(40, 80, 9.0)  # with what is done once
    assert slider.value == 512
    sharpness.rendered(40, 80, 0.32)  # 10,000 pixels a second
    assert slider.value == pytest.approx((20_000 * 2) ** 0.5, abs=1)
    chosen = slider.value
    sharpness.rendered(40, 80, 0.01)  # a coarse picture, while the camera moves
    assert slider.value == chosen
    sharpness.rendered(chosen // 2, chosen, 0.4)  # a fine one tells more
    finer = slider.value
    assert finer > 1.5 * chosen
    sharpness.rendered(finer // 2, finer, 30.0)  # of another output; it is there already
    assert slider.value == finer
    sharpness.rendered(40, 80, 0.3)  # the camera moves again
    assert slider.value < finer / 2
    sharpness.rendered(500, 500, 1e-6)
    assert slider.value == 512  # never finer than Nerfstudio's own
    slider.value = 300
    sharpness.rendered(1000, 1000, 100.0)
    assert slider.value == 300  # a person's choice
    slider.value = 512
    slow = Sharpness(viewer)
    slow.rendered(10, 10, 100.0)
    slow.rendered(10, 10, 100.0)
    assert slider.value == 64
    changes = []
    for turn in range(20):  # of a machine whose speed changes all the time
        slow.rendered(slider.value, slider.value, 0.01 if turn % 2 else 1000.0)
        slow.rendered(10, 10, 0.1)
        changes.append(slider.value)
    assert len(set(changes[10:])) == 1


def test_a_browser_starts_where_the_first_photograph_was_taken(towers, tmp_path):
    eyes = torch.tensor([[2.0, 0, 1], [0, 2, 1], [-2, 0, 1]])
    aim = torch.tensor([0.0, 0.0, 0.5])
    poses = torch.stack([_looking(eye, aim) for eye in eyes])
    cameras = Cameras(poses, fx=50.0, fy=50.0, cx=40.0, cy=30.0)
    dataset = SimpleNamespace(cameras=cameras)
    controls = FeatureControls(QueryText("", "", 0.1), _probe)
    viewer = FakeViewer(controls, tmp_path, dataset=dataset)
    (connected,) = viewer.viser_server.connected
    client: Any = ClientHandle.__new__(ClientHandle)
    camera = client.camera = SimpleNamespace()
    client.atomic = contextlib.nullcontext
    connected(client)
    assert camera.position == pytest.approx([20.0, 0.0, 10.0])
    assert camera.look_at == pytest.approx([0.0, 0.0, 5.0], abs=1e-4)
    assert camera.fov == pytest.approx(2 * np.arctan(0.6))
    assert viewer.show_images.visible


def _looking(eye, aim):
    back = torch.nn.functional.normalize(eye - aim, dim=0)
    right = torch.nn.functional.normalize(
        torch.linalg.cross(torch.tensor([0.0, 0.0, 1.0]), back), dim=0
    )
    return torch.stack((right, torch.linalg.cross(back, right), back, eye), dim=1)


def test_phrases_are_split_on_commas():
    assert split_phrases(" red mug,, cup ,") == ["red mug", "cup"]
    assert split_phrases("🦊, " + "x" * 5000) == ["🦊", "x" * 5000]


def test_the_text_tower_is_loaded_once_and_remembers(towers):
    encoder = TextEncoder(head().backbone)
    assert not encoder.is_loaded
    assert not towers  # nothing asked, nothing loaded
    first = encoder.encode(["mug", "cup", "object"])
    assert torch.equal(first, encoder.encode(["mug", "cup", "object"]))
    assert [tower.texts for tower in towers] == [[["mug", "cup", "object"]]]
