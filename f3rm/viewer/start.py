"""How Nerfstudio's viewer opens: f3rm's folder first, the scene in view, sharp within seconds."""

import contextlib
import threading
import time
from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Float
from nerfstudio.cameras.cameras import Cameras
from nerfstudio.viewer.viewer import VISER_NERFSTUDIO_SCALE_RATIO, Viewer
from nerfstudio.viewer.viewer_elements import ViewerElement
from viser import ClientHandle

FOLDER = "Ask the scene"

_SHARP_SECONDS = 2.0
"""What the finest picture may take; the coarse ones before it and the browser take about 2 s."""
_LEAST_RESOLUTION = 64
_SAME = 1.25
"""A better resolution is taken if it is so many times the last one, or the last one is too slow."""
_MOST_CHANGES = 5
"""On a busy machine speeds differ, and each change renders the view again."""
_PATIENCE = 60.0


def add_folder(viewer: Viewer, sections: Mapping[str, Sequence[ViewerElement]]) -> None:
    """Adds one folder above everything else of the viewer.

    Args:
        viewer: The viewer.
        sections: Elements by title; the empty title's are shown at once, others in a closed part.
    """
    gui = viewer.viser_server.gui
    with gui.add_folder(FOLDER, order=-1):
        for title, elements in sections.items():
            part = gui.add_folder(title, expand_by_default=False) if title else None
            with part or contextlib.nullcontext():
                for element in elements:
                    element.install(viewer.viser_server)


def hide_training_controls(viewer: Viewer) -> None:
    """Hides the controls of training where nothing is trained, as in ns-viewer."""
    if viewer.trainer is not None:
        return
    viewer.pause_train.visible = viewer.resume_train.visible = False
    for name in ("_train_speed", "_train_util"):  # private in Nerfstudio 1.1.5
        getattr(viewer.control_panel, name).set_hidden(True)


def start_at_first_photograph(viewer: Viewer) -> None:
    """Shows every new browser what the first training photograph shows.

    The drawn training cameras are hidden, as one would cover the view; a button shows them.
    """
    hidden: list[bool] = []

    def look(client: ClientHandle) -> None:
        deadline = time.monotonic() + _PATIENCE
        while not hasattr(viewer, "train_state") and time.monotonic() < deadline:
            time.sleep(0.05)  # until Nerfstudio has drawn its cameras
        dataset = viewer.pipeline.datamanager.train_dataset
        if dataset is None:
            return
        if not hidden:
            hidden.append(True)
            viewer.set_camera_visibility(False)
            viewer.toggle_cameravis_button()
        eye, aim = first_view(dataset.cameras)
        with client.atomic():
            client.camera.position = eye * VISER_NERFSTUDIO_SCALE_RATIO
            client.camera.look_at = aim * VISER_NERFSTUDIO_SCALE_RATIO
            client.camera.fov = float(2 * np.arctan(dataset.cameras.cy[0] / dataset.cameras.fy[0]))

    # viser calls back at once for browsers that are there already, such as one that was left open,
    # and this thread is the one that will draw the cameras.
    threading.Thread(
        target=viewer.viser_server.on_client_connect, args=(look,), name="f3rm-start", daemon=True
    ).start()


def first_view(cameras: Cameras) -> tuple[Float[np.ndarray, "3"], Float[np.ndarray, "3"]]:
    """Returns where the first camera is, and the point that it looks at, which a mouse turns about.

    That is the point of its axis beside the one that is nearest to the axes of all cameras.

    Args:
        cameras: At least one.
    """
    poses = cameras.camera_to_worlds.double().cpu().numpy()  # (cameras, 3, 4)
    eyes, axes = poses[:, :, 3], -poses[:, :, 2]
    across = np.eye(3) - axes[:, :, None] * axes[:, None]  # onto the plane across each axis
    middle = np.linalg.lstsq(across.sum(0), (across @ eyes[:, :, None]).sum(0), rcond=None)[0][:, 0]
    ahead = float((middle - eyes[0]) @ axes[0])
    return eyes[0], eyes[0] + (ahead if ahead > 0.1 else 1.0) * axes[0]


class Sharpness:
    """Chooses *Max res* by the measured speed, until a person chooses another one.

    Args:
        viewer: The viewer; its own resolution is the finest.
    """

    def __init__(self, viewer: Viewer) -> None:
        name = "_max_res"  # private in Nerfstudio 1.1.5, which only reads it
        self._slider = getattr(viewer.control_panel, name)
        self._finest = self._chosen = self._affordable = self._slider.value
        self._changes = 0
        self._is_warm = False

    def rendered(self, height: int, width: int, seconds: float) -> None:
        """Takes the time of a picture into account: of the second, then of the finest ones.

        The first one's time is spent once only. A small picture says little: part of its time is
        the same for each. A fine picture that took too long is there now, so that only the next
        view gets a coarser one: a changed resolution renders the view again.
        """
        if not self._is_warm:
            self._is_warm = True
            return
        if self._slider.value != self._chosen or self._changes == _MOST_CHANGES:
            return
        is_finest = max(height, width) >= self._chosen - 2  # an aspect's rounding
        if is_finest or not self._changes:
            pixels = height * width / max(seconds, 1e-6) * _SHARP_SECONDS
            side = int((pixels * max(height, width) / min(height, width)) ** 0.5)
            self._affordable = min(max(side, _LEAST_RESOLUTION), self._finest)
        if is_finest and self._affordable < self._chosen:
            return
        if not self._chosen / _SAME <= self._affordable <= self._chosen * _SAME:
            self._changes += 1
            self._chosen = self._slider.value = self._affordable
