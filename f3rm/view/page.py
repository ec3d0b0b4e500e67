"""The page of one scene, which viser serves and a browser draws.

Callbacks of the page only leave jobs; a worker's thread does them one after the other, so that of
many keystrokes the last is answered. An answer recolours the Gaussians first; its boxes follow.
"""

import socket
from collections.abc import Callable
from itertools import pairwise
from typing import Any, cast

import numpy as np
from viser import ClientHandle, GuiEvent, ScenePointerEvent, ViserServer

from f3rm.errors import F3rmError
from f3rm.view.answers import Answer, Asking, Colouring, ShownBox
from f3rm.view.shown import PAGE
from f3rm.viewer.elements import escaped
from f3rm.viewer.state import TROUBLE
from f3rm.viewer.worker import Worker

_DEBOUNCE_SECONDS = 0.4
_OUTLINE = (0, 1, 3, 2, 0, 4, 5, 7, 6, 4, 5, 1, 3, 7, 6, 2)
"""A walk along all edges of a box: a line has no gaps."""


def check_port(host: str, port: int) -> None:
    """Makes sure that a page can be served; viser would silently take another port.

    Raises:
        F3rmError: If it cannot.
    """
    try:
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind((host, port))
    except (OSError, OverflowError) as error:
        msg = (
            f"--host {host} --port {port} cannot be used: {error}. Give another --port, or end the "
            "program that has it; --host must be an address of this machine."
        )
        raise F3rmError(msg) from error


class Page:
    """The page of one scene; whoever opens it shares its state.

    Args:
        asking: Answers the questions.
        host: The address that it is served on.
        port: The port.

    Raises:
        F3rmError: If host or port cannot be used.
    """

    def __init__(self, asking: Asking, *, host: str, port: int) -> None:
        check_port(host, port)
        self._asking, self._worker = asking, Worker()
        self._answer: Answer | None = None
        self._splat: Any = None
        self._turn = 0
        self._sent: tuple[str, str, Answer | None] = ("", "", None)
        self._centres = asking.splat.centres()
        self._covariances = asking.splat.covariances()
        self._opacities = asking.splat.gaussians.opacities.cpu().numpy()[:, None]
        self._drawn_boxes: list[Any] = []
        self.url = f"http://{host}:{port}"
        self.server = ViserServer(host=host, port=port, label="f3rm", verbose=False)
        self.server.scene.world_axes.visible = False
        self._add_elements()
        self._recolour()
        self.server.on_client_connect(self._look_at_scene)

    def close(self) -> None:
        """Stops serving, once what runs is done."""
        self._worker.close()
        self.server.stop()

    def _add_elements(self) -> None:
        gui, asking = self.server.gui, self._asking
        self._prompt = gui.add_text("Prompt", "", hint="red mug; bowl > rim")
        self._colouring = gui.add_dropdown("Colours", asking.colourings)
        self._head = gui.add_dropdown("Features", asking.heads, visible=len(asking.heads) > 1)
        self._boxes = gui.add_checkbox("Boxes", initial_value=True)
        self._click = gui.add_button("Click to ask", hint="then click on the splat")
        self._status, self._legend = gui.add_markdown(""), gui.add_markdown("")
        self._prompt.on_update(self._on_prompt)
        self._head.on_update(self._on_prompt)
        for each in (self._head, self._colouring):
            each.on_update(lambda _: self._do("colours", self._recolour))
        self._boxes.on_update(lambda _: self._do("boxes", self._draw_boxes))
        self._click.on_click(self._on_click)

    def _do(self, name: str, job: Callable[[], None], *, delay: float = 0.0) -> None:
        """Queues a job; its error is the page's status."""

        def work() -> None:
            try:
                job()
            except TROUBLE as error:
                self._say(str(error))

        self._worker.submit(name, work, delay=delay)

    def _say(self, text: str) -> None:
        self._status.content = escaped(text)

    def _on_prompt(self, event: GuiEvent[Any]) -> None:
        del event
        self._do("ask", self._ask, delay=_DEBOUNCE_SECONDS)

    def _on_click(self, event: GuiEvent[Any]) -> None:
        del event
        self._say("Click on the splat.")

        # For one click only: while viser listens for clicks, the mouse does not turn the view.
        @self.server.scene.on_pointer_event("click")
        def _(click: ScenePointerEvent) -> None:
            self.server.scene.remove_pointer_callback()
            self._do("ask", lambda: self._ask_like(click))

    def _ask(self) -> None:
        text = self._prompt.value
        if not text.strip():
            self._show(None)
            return
        self._say("Asking ...")
        self._show(self._asking.ask(text, self._head.value))

    def _ask_like(self, click: ScenePointerEvent) -> None:
        ray = click.ray_origin, click.ray_direction
        assert ray[0] is not None  # noqa: S101 - a click has a ray
        assert ray[1] is not None  # noqa: S101
        self._show(self._asking.ask_like(ray[0], ray[1], self._head.value))

    def _show(self, answer: Answer | None) -> None:
        """Shows an answer's colours, then looks for its boxes."""
        self._answer = answer
        self._say("")
        if (self._colouring.value in ("answer", "score")) == (answer is None):
            self._colouring.value = "photographs" if answer is None else "answer"
        self._recolour()
        self._legend.content = "" if answer is None else answer.legend
        self._draw_boxes()
        self._do("find", self._find)

    def _find(self) -> None:
        answer = self._answer
        if answer is None:
            return
        found = self._asking.find(answer)
        self._answer, self._legend.content = found, found.legend
        if found.thresholds != answer.thresholds:
            self._recolour()
        self._draw_boxes()

    def _recolour(self) -> None:
        """Sends the Gaussians anew, unless their colours are the same."""
        colouring, head = cast("Colouring", self._colouring.value), self._head.value
        wanted = colouring, head, self._answer
        if wanted[:2] == self._sent[:2] and wanted[2] is self._sent[2]:
            return
        self._sent = wanted
        colours = self._asking.colours(*wanted)
        scene = self.server.scene
        # Private in viser 0.2.7, which Nerfstudio 1.1.5 pins; public later.
        names = ("add_gaussian_splats", "_add_gaussian_splats")
        add = next(getattr(scene, name) for name in names if hasattr(scene, name))
        # Under its old name viser 0.2.7 would go on drawing the old splat.
        self._turn = 1 - self._turn
        name = f"/splat{self._turn}"
        splat = add(name, self._centres, self._covariances, colours, self._opacities)
        if self._splat is not None:
            self._splat.remove()
        self._splat = splat

    def _draw_boxes(self) -> None:
        for handle in self._drawn_boxes:
            handle.remove()
        self._drawn_boxes = []
        if self._answer is None or not self._boxes.value:
            return
        for number, box in enumerate(self._asking.boxes(self._answer)):
            self._draw_box(f"/boxes/{number}", box)

    def _draw_box(self, name: str, box: ShownBox) -> None:
        walk = box.corners[list(_OUTLINE)]
        # Control points on the edge itself make a spline's piece straight.
        controls = np.concatenate([
            (first + (last - first) / 3, last - (last - first) / 3)
            for first, last in pairwise(walk)
        ])  # fmt: skip
        scene, colour = self.server.scene, cast("tuple[int, int, int]", box.colour)
        line = scene.add_spline_cubic_bezier(
            name, walk, controls, line_width=3.0, color=colour, segments=len(walk) * 4
        )
        top = box.corners[np.argmax(box.corners[:, 2])]
        label = scene.add_label(f"{name}/label", box.label, position=top)
        self._drawn_boxes += [label, line]

    def _look_at_scene(self, client: ClientHandle) -> None:
        """Shows a new browser what the first photograph shows."""
        camera = self._asking.scene.run.train.cameras[0:1].to("cpu")
        pose = PAGE.cameras_from_scene(camera).camera_to_worlds[0].double().numpy()
        eye, forward = pose[:, 3], -pose[:, 2]
        hit = self._asking.splat.surface_at(eye.tolist(), forward.tolist())
        aim = np.median(self._centres, axis=0) if hit is None else PAGE.from_scene(hit).numpy()
        with client.atomic():
            client.camera.position = eye
            client.camera.look_at = aim
            client.camera.fov = float(2 * np.arctan(camera.cy[0] / camera.fy[0]))
