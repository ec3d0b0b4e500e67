"""Nerfstudio's viewer elements as f3rm needs them, and its link to the viewer.

Nerfstudio wraps the callback of every element in the train lock, so that typing would wait for each
render and each training step. The live elements here call back at once; :class:`ViewerLink` asks
for a new frame when there is something new to be seen.
"""

import contextlib
import threading
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from nerfstudio.viewer.render_state_machine import RenderAction
from nerfstudio.viewer.viewer import Viewer
from nerfstudio.viewer.viewer_elements import (
    ViewerButton,
    ViewerCheckbox,
    ViewerControl,
    ViewerDropdown,
    ViewerElement,
    ViewerNumber,
    ViewerParameter,
    ViewerSlider,
    ViewerText,
)
from viser import GuiMarkdownHandle, ViserServer

from f3rm.errors import F3rmError

_PLAIN = frozenset(" .,:;-/()'")


class _Live(ViewerParameter[Any]):
    """A parameter whose callback runs outside of the train lock and renders nothing by itself."""

    def install(self, viser_server: ViserServer) -> None:
        """Creates the element; called by the viewer, which wraps the callback afterwards."""
        hook = self.cb_hook
        self._create_gui_handle(viser_server)
        self.gui_handle.on_update(lambda _: hook(self))


class LiveText(_Live, ViewerText):
    """A text field."""


class LiveNumber(_Live, ViewerNumber[float]):
    """A number field."""


class LiveSlider(_Live, ViewerSlider[float]):
    """A slider."""


class LiveCheckbox(_Live, ViewerCheckbox):
    """A switch."""


class LiveDropdown(_Live, ViewerDropdown[str]):
    """A choice."""

    def offer(self, options: list[str]) -> None:
        """Replaces the options; where the chosen one is gone, the first is chosen."""
        if self.default_value not in options:
            self.default_value = options[0]
        self.set_options(options)


class LiveButton(ViewerButton):
    """A button whose callback runs outside of the train lock."""

    def install(self, viser_server: ViserServer) -> None:
        """Creates the button; called by the viewer, which wraps the callback afterwards."""
        hook = self.cb_hook
        self._create_gui_handle(viser_server)
        self.gui_handle.on_click(lambda _: hook(self))


class Markdown(ViewerElement[str]):
    """A text that is only read, with colours; may be changed from any thread."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.content = ""
        self._handle: GuiMarkdownHandle | None = None

    def show(self, content: str) -> None:
        """Replaces the text; where it is the same, nothing is sent."""
        if content == self.content:
            return
        self.content = content
        if self._handle is not None:
            self._handle.content = content

    def _create_gui_handle(self, viser_server: ViserServer) -> None:
        self._handle = viser_server.gui.add_markdown(self.content)

    def install(self, viser_server: ViserServer) -> None:
        """Creates the text; called by the viewer."""
        self._create_gui_handle(viser_server)


def escaped(text: str) -> str:
    """Returns text that markdown shows as it is.

    The browser evaluates the text in braces, so every sign that could mean something becomes a
    character reference.
    """
    return "".join(
        sign if sign.isalnum() or sign in _PLAIN or not sign.isascii() else f"&#{ord(sign)};"
        for sign in text
    )


class ViewerLink(ViewerControl):
    """The viewer that shows a model, from the moment that there is one.

    Args:
        on_attach: Called once the viewer is there, with all elements installed.
    """

    def __init__(self, on_attach: Callable[[], None]) -> None:
        self._on_attach = on_attach
        self.attached: Viewer | None = None

    def _setup(self, viewer: Viewer) -> None:
        super()._setup(viewer)
        self.attached = viewer
        self._on_attach()

    @property
    def train_lock(self) -> AbstractContextManager[Any]:
        """What keeps training and renders apart."""
        lock = self.attached.train_lock if self.attached else None
        return lock if lock is not None else contextlib.nullcontext()

    @property
    def is_rendering(self) -> bool:
        """Whether this thread renders for a browser; training and evaluation have another one."""
        machines = self.attached.render_statemachines if self.attached else {}
        return threading.current_thread() in list(machines.values())

    @property
    def shown(self) -> frozenset[str] | None:
        """Names of the outputs that this thread renders for a browser; None in other threads."""
        if self.attached is None or not self.is_rendering:
            return None
        panel = self.attached.control_panel
        beside = {panel.split_output_render} if panel.split else set[str]()
        return frozenset({panel.output_render} | beside)

    @property
    def run_folder(self) -> Path:
        """The folder of the run in the viewer, with its config.yml.

        Raises:
            F3rmError: If no viewer shows this model.
        """
        return self.open_viewer.log_filename.parent

    @property
    def data_folder(self) -> Path:
        """The folder of that run's dataset.

        Raises:
            F3rmError: If no viewer shows this model.
        """
        return self.open_viewer.datapath

    @property
    def open_viewer(self) -> Viewer:
        """The viewer.

        Raises:
            F3rmError: If no viewer shows this model.
        """
        if self.attached is None:
            raise F3rmError("No viewer shows this model. Open its run with ns-viewer.")
        return self.attached

    def choose_output(self, name: str) -> None:
        """Switches the picture to an output that every render has; none without a viewer."""
        if self.attached is None:
            return
        chosen = "_output_render"  # private in Nerfstudio 1.1.5, which only reads it
        element = getattr(self.attached.control_panel, chosen)
        if name not in element.options:  # nothing has been rendered yet
            element.set_options([*element.options, name])
        if element.value != name:
            element.value = name

    def rerender(self) -> None:
        """Asks for a new frame in every browser, and stops those that are being rendered."""
        if self.attached is None:
            return
        machines = self.attached.render_statemachines
        for number, client in self.attached.viser_server.get_clients().items():
            if number in machines:
                state = self.attached.get_camera_state(client)
                machines[number].action(RenderAction("rerender", state))
