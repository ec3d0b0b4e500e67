import time

import pytest
import torch

from f3rm._types import BackboneUnavailableError
from f3rm.semantics.similarity import make_query
from f3rm.viewer import controls as module
from f3rm.viewer.controls import FeatureControls
from f3rm.viewer.text_query import QueryText, TextEncoder, split_phrases
from tests.nerf_fixtures import head


class _Handle:
    """A viewer's text field: calls back when its value is set, as viser does."""

    def __init__(self, element):
        self.element = element
        self._value = element.default_value

    @property
    def value(self):
        return self._value

    @value.setter
    def value(self, value):
        self._value = value
        self.element.cb_hook(self.element)


class _Encoder:
    def __init__(self, ref):
        self.asked = []

    def query(self, text):
        self.asked.append(text)
        if "fail" in text.positives:
            msg = "weights cannot be reached"
            raise BackboneUnavailableError(msg)
        return make_query(torch.eye(3)[:1], temperature=text.temperature)


@pytest.fixture
def controls(monkeypatch):
    monkeypatch.setattr(module, "TextEncoder", _Encoder)
    monkeypatch.setattr(module, "_DEBOUNCE_SECONDS", 0.05)
    built = FeatureControls(QueryText("", "object", 0.1))
    built.set_heads((head("dino", has_text=False), head("clip")))
    return built


def _attach(controls):
    for name in ("a_positives", "b_negatives", "c_temperature", "e_status"):
        element = getattr(controls, name)
        element.gui_handle = _Handle(element)
    return controls


def _wait(condition):
    deadline = time.monotonic() + 5
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_keystrokes_are_encoded_once_in_the_background(controls):
    _attach(controls)
    for text in ("m", "mu", "mug"):
        controls.a_positives.value = text
        assert controls.query() is None  # never waits
    _wait(lambda: controls.query() is not None)
    assert [text.positives for text in controls._encoder.asked] == ["mug"]
    assert controls.e_status.value == "Showing: mug"


def test_a_failure_is_shown_and_the_next_query_works(controls):
    _attach(controls)
    controls.a_positives.value = "fail"
    _wait(lambda: "cannot be reached" in controls.e_status.value)
    assert controls.query() is None
    controls.a_positives.value = "mug"
    _wait(lambda: controls.query() is not None)


@pytest.mark.parametrize("text", ["", "   ", ",,, ,"])
def test_nothing_asked_shows_nothing(controls, text):
    _attach(controls)
    controls.a_positives.value = "mug"
    _wait(lambda: controls.query() is not None)
    controls.a_positives.value = text
    _wait(lambda: controls.query() is None)
    assert controls._encoder.asked[-1].positives == "mug"


def test_a_new_temperature_renders_anew(controls):
    _attach(controls)
    controls.a_positives.value = "mug"
    _wait(lambda: controls.query() is not None)
    statuses = []
    controls.e_status.cb_hook = lambda element: statuses.append(element.value)
    controls.c_temperature.value = 0.5
    _wait(lambda: controls.query().temperature == 0.5)
    _wait(lambda: len(statuses) == 2)  # each update makes the viewer render again


def test_without_a_viewer_the_configured_query_is_encoded_once(monkeypatch):
    monkeypatch.setattr(module, "TextEncoder", _Encoder)
    built = FeatureControls(QueryText("mug", "", 0.1))
    built.set_heads((head("clip"),))
    assert built.query() is built.query()
    assert isinstance(built._encoder, _Encoder)
    assert len(built._encoder.asked) == 1


def test_features_without_language_say_so(controls):
    controls.set_heads((head("dino", has_text=False),))
    _attach(controls)
    controls.a_positives.value = "mug"
    _wait(lambda: "no language" in controls.e_status.value)
    assert controls.query() is None


def test_the_controls_bring_nothing_into_a_checkpoint(controls):
    assert not controls.state_dict()
    assert not list(controls.parameters())


def test_phrases_are_split_on_commas():
    assert split_phrases(" red mug,, cup ,") == ["red mug", "cup"]
    assert split_phrases("🦊, " + "x" * 5000) == ["🦊", "x" * 5000]


class _TextTower:
    def __init__(self):
        self.texts = []

    def encode_text(self, texts):
        self.texts.append(list(texts))
        return torch.nn.functional.normalize(torch.randn(len(texts), 4), dim=-1)


def test_the_text_tower_is_loaded_once_and_remembers(monkeypatch):
    towers = []

    def load(ref, *, device, towers: tuple):
        assert towers == ("text",)
        made.append(_TextTower())
        return made[-1]

    made = towers
    monkeypatch.setattr("f3rm.viewer.text_query.load_backbone", load)
    encoder = TextEncoder(head().backbone)
    assert encoder.query(QueryText(",", "object", 0.1)) is None
    assert not made  # nothing asked, nothing loaded
    first = encoder.query(QueryText("mug, cup", "object", 0.1))
    again = encoder.query(QueryText("mug, cup", "object", 0.2))
    assert first is not None
    assert again is not None
    assert torch.equal(first.positive, again.positive)
    assert len(made) == 1
    assert made[0].texts == [["mug", "cup", "object"]]
