"""A viewer that is none: it calls back when an element's value is set, as viser does."""

import threading
import time
from types import SimpleNamespace
from typing import Any

import torch
from nerfstudio.viewer.utils import parse_object
from nerfstudio.viewer.viewer import Viewer
from nerfstudio.viewer.viewer_elements import ViewerControl, ViewerElement
from viser import ViserServer

from f3rm.backbones import Backbone
from f3rm.errors import BackboneUnavailableError


class _Handle:
    def __init__(self, value):
        self._value = value
        self.hooks = []
        self.options = []

    @property
    def value(self):
        return self._value

    @value.setter
    def value(self, value):
        self._value = value
        self.click()

    def click(self):
        for hook in self.hooks:
            hook(None)

    def on_update(self, hook):
        self.hooks.append(hook)

    on_click = on_update


class _Gui:
    def add_text(self, name, value, **_):
        return _Handle(value)

    add_number = add_checkbox = add_text

    def add_slider(self, name, low, high, step, value, **_):
        return _Handle(value)

    def add_dropdown(self, name, options, value, **_):
        return _Handle(value)

    def add_button(self, **_):
        return _Handle(False)

    def add_markdown(self, content):
        return SimpleNamespace(content=content)


class _Scene:
    def __init__(self):
        self.click = None

    def on_pointer_event(self, event_type):
        def register(hook):
            self.click = hook
            return hook

        return register

    def remove_pointer_callback(self):
        self.click = None


class _Machine:
    def __init__(self):
        self.actions = []

    def action(self, action):
        self.actions.append(action)


class _Server(ViserServer):
    gui: Any
    scene: Any

    def __init__(self):
        self.gui, self.scene = _Gui(), _Scene()

    def get_clients(self) -> Any:
        return {0: object()}


class FakeViewer(Viewer):
    """Installs the elements of a model as Nerfstudio's viewer does."""

    render_statemachines: Any
    control_panel: Any

    def __init__(self, model, folder):
        self.control_panel = SimpleNamespace(
            output_render="similarity", split=False, split_output_render="rgb"
        )
        self.log_filename = folder / "viewer.log"
        self.datapath = folder / "data"
        self.train_lock = threading.Lock()
        self.machine = _Machine()
        self.render_statemachines = {0: self.machine}
        self.viser_server = _Server()
        for _, element in parse_object(model, ViewerElement, "Custom Elements"):
            element.install(self.viser_server)
            element.cb_hook = None  # Nerfstudio's wrapped hook: live elements do not use it
        for _, control in parse_object(model, ViewerControl, "Custom Elements"):
            control._setup(self)

    def render(self, model, camera):
        """Renders as a browser's thread does."""
        self.render_statemachines[1] = threading.current_thread()
        try:
            return model.get_outputs_for_camera(camera)
        finally:
            del self.render_statemachines[1]

    def get_camera_state(self, client) -> Any:
        return client


def press(button: Any):
    button.gui_handle.click()


def wait(condition, seconds=60.0):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, condition
        time.sleep(0.01)


class FakeTower(Backbone):
    """A text tower: each text has a direction of its own; some cannot be had."""

    loads = 0

    def __init__(self, channels):
        self.channels = channels
        self.texts = []

    def encode_image(self, images):
        raise NotImplementedError

    def provenance(self):
        return {}

    @property
    def device(self):
        return torch.device("cpu")

    def encode_text(self, texts):
        self.texts.append(list(texts))
        if any("fail" in text for text in texts):
            msg = "weights cannot be reached"
            raise BackboneUnavailableError(msg)
        return torch.stack([embedding(text, self.channels) for text in texts])


def embedding(text, channels):
    generator = torch.Generator().manual_seed(sum(map(ord, text)))
    return torch.nn.functional.normalize(torch.randn(channels, generator=generator), dim=0)


def install_towers(monkeypatch, channels):
    """Replaces the loading of text towers; returns the list of those that were loaded."""
    loaded = []

    def load(ref, *, device, towers: tuple):
        assert towers == ("text",)
        loaded.append(FakeTower(channels))
        return loaded[-1]

    monkeypatch.setattr("f3rm.language.text_encoder.load_backbone", load)
    return loaded
