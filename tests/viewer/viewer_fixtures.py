"""A viewer that is none: it calls back when an element's value is set, as viser does."""

import contextlib
import threading
import time
from types import SimpleNamespace
from typing import Any

import torch
from nerfstudio.viewer.utils import parse_object
from nerfstudio.viewer.viewer import Viewer
from nerfstudio.viewer.viewer_elements import ViewerControl, ViewerDropdown, ViewerElement
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
    def __init__(self):
        self.folders = []

    @contextlib.contextmanager
    def add_folder(self, label, **_):
        self.folders.append(label)
        yield

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
        self.connected = []
        self.atomic: Any = contextlib.nullcontext

    def on_client_connect(self, cb) -> Any:
        self.connected.append(cb)

    def get_clients(self) -> Any:
        return {0: object()}


class _Panel:
    """Nerfstudio's panel: its elements, and what it reads of them."""

    def __init__(self):
        outputs = ["rgb", "depth", "similarity"]
        self._output_render = ViewerDropdown("Output type", "similarity", outputs)
        self._max_res = SimpleNamespace(value=512)
        self._train_speed, self._train_util = _Hidden(), _Hidden()
        self.split, self.split_output_render = False, "rgb"

    @property
    def output_render(self):
        return self._output_render.value

    @output_render.setter
    def output_render(self, name):
        self._output_render.value = name


class _Hidden:
    is_hidden = False

    def set_hidden(self, hidden):
        self.is_hidden = hidden


class FakeViewer(Viewer):
    """Installs the elements of a model as Nerfstudio's viewer does."""

    render_statemachines: Any
    control_panel: Any
    pipeline: Any
    viser_server: Any

    def __init__(self, model, folder, *, trainer: Any = None, dataset=None):
        self.control_panel, self.trainer = _Panel(), trainer
        shown, hidden = [[SimpleNamespace(visible=v) for _ in range(2)] for v in (True, False)]
        self.pause_train, self.hide_images = shown
        self.resume_train, self.show_images = hidden
        datamanager = SimpleNamespace(train_dataset=dataset)
        self.pipeline = SimpleNamespace(datamanager=datamanager)
        self.camera_handles, self.train_state = {}, "completed"
        self.log_filename = folder / "viewer.log"
        self.datapath = folder / "data"
        self.train_lock = threading.Lock()
        self.machine = _Machine()
        self.render_statemachines = {0: self.machine}
        self.viser_server = _Server()
        assert not parse_object(model, ViewerElement, "Custom Elements")  # all in one folder
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
