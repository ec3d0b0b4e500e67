"""How the viewer opens, where no browser is needed to see it."""

import threading
import time
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from nerfstudio.cameras.cameras import Cameras
from nerfstudio.viewer.viewer import VISER_NERFSTUDIO_SCALE_RATIO, Viewer
from viser import ClientHandle

from f3rm.viewer.start import first_view, start_at_first_photograph


class Client(ClientHandle):
    """A browser, as far as its view is set."""

    camera: Any
    atomic: Any

    def __init__(self):
        self.camera = SimpleNamespace()
        self.atomic = threading.Lock


class Server:
    """viser's server while a browser is connected: a callback is called at once for that one."""

    def __init__(self):
        self.client = Client()

    def on_client_connect(self, callback):
        callback(self.client)


@pytest.fixture
def viewer():
    poses = torch.eye(4)[None, :3].repeat(3, 1, 1)
    poses[:, :, 3] = torch.tensor([[0.0, 0, 2], [1, 0, 2], [2, 0, 2]])
    cameras = Cameras(poses, fx=40.0, fy=40.0, cx=20.0, cy=15.0, width=40, height=30)
    made: Any = Viewer.__new__(Viewer)
    made.viser_server = Server()
    made.pipeline = SimpleNamespace(
        datamanager=SimpleNamespace(train_dataset=SimpleNamespace(cameras=cameras))
    )
    made.set_camera_visibility = made.toggle_cameravis_button = lambda *_: None
    return made


def test_a_browser_that_was_left_open_does_not_hold_up_the_viewer(viewer):
    began = time.monotonic()
    start_at_first_photograph(viewer)
    assert time.monotonic() - began < 10  # it would wait a minute for what this thread draws
    camera = viewer.viser_server.client.camera
    assert vars(camera) == {}
    viewer.train_state = "paused"  # Nerfstudio's last step of opening
    (thread,) = [each for each in threading.enumerate() if each.name == "f3rm-start"]
    thread.join(30)
    eye, _ = first_view(viewer.pipeline.datamanager.train_dataset.cameras)
    assert camera.position == pytest.approx(eye * VISER_NERFSTUDIO_SCALE_RATIO)
