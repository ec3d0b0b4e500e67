"""A run in Nerfstudio's viewer, seen and used through a browser."""

import io
import re
import socket
import threading
import time
from contextlib import ExitStack
from typing import Any

import numpy as np
from nerfstudio.engine.trainer import Trainer
from nerfstudio.utils import writer
from nerfstudio.utils.eval_utils import eval_setup
from nerfstudio.viewer.viewer import VISER_NERFSTUDIO_SCALE_RATIO, Viewer
from PIL import Image
from viser import transforms

MAX_RES = 128
PARTS = ("Scores and colours", "Points and images", "Colours of features (PCA)", "Saved queries")


class Opened:
    """A page of this process's viser server in a browser.

    Args:
        browser: Playwright's browser.
        port: The server's port.
        ready: A text of the page once its elements are there.
        patience: Seconds that a change of the page may take.
        size: Width and height of the page in pixels.
    """

    page: Any

    def __init__(self, browser, port, ready, *, patience, size=(1280, 700)):
        self.patience = patience
        self.page = browser.new_page(viewport={"width": size[0], "height": size[1]})
        self.page.set_default_timeout(1000 * patience)
        self.page.route(
            "**/*", lambda r: r.continue_() if f"127.0.0.1:{port}" in r.request.url else r.abort()
        )
        self.page.goto(f"http://127.0.0.1:{port}", wait_until="domcontentloaded")
        self.page.wait_for_selector(f"text={ready}")

    def describe(self) -> Any:
        return self.page.inner_text("body")

    def wait(self, condition):
        deadline = time.monotonic() + self.patience
        while not condition():
            assert time.monotonic() < deadline, self.describe()
            self.page.wait_for_timeout(50)  # lets the browser's events through

    def settle(self):
        """Waits until the canvas shows the same twice, 0.6 s apart."""
        seen: list[bytes] = []

        def at_rest():
            self.page.wait_for_timeout(600)
            seen.append(self.canvas.screenshot())
            return len(seen) > 1 and seen[-1] == seen[-2]

        self.wait(at_rest)

    def field(self, label):
        return self.page.locator(f"xpath=//label[normalize-space()='{label}']/following::input[1]")

    def type(self, label, text):
        field = self.field(label).first
        field.scroll_into_view_if_needed()
        field.fill("")
        field.press_sequentially(text, delay=20)

    def choose(self, label, option):
        """Picks an option of a drop-down; returns all that are offered."""
        field = self.field(label).first
        field.scroll_into_view_if_needed()
        field.click()
        options = self.page.locator("[role=option]:visible")
        offered = options.all_inner_texts()
        options.filter(has_text=re.compile(f"^{re.escape(option)}$")).first.click()
        return offered

    def press(self, button):
        self.page.get_by_role("button", name=button).click()

    @property
    def canvas(self):
        return self.page.locator("canvas[data-engine]")

    def shot(self):
        """What the canvas shows."""
        return Image.open(io.BytesIO(self.canvas.screenshot())).convert("RGB")


class Shown(Opened):
    """One viewer in this process and one page that shows it.

    Args:
        browser: Playwright's browser.
        config: The run's config.yml.
        trainer: A trainer with a viewer, whose run it is; None to open the run anew.
        resolution: Pixels of the longer side of the finest picture.
        patience: Seconds that a picture may take.
    """

    def __init__(
        self, browser, config, *, trainer: Trainer | None = None, resolution=MAX_RES, patience=60.0
    ):
        self.resolution = resolution
        self.pipeline: Any
        self.viewer: Any
        if trainer is None:
            self.viewer, self.pipeline = open_viewer(config)
        else:
            self.viewer, self.pipeline = trainer.viewer_state, trainer.pipeline
        self.model = self.pipeline.model
        self.controls = self.model.controls
        self.page = None
        with ExitStack() as if_interrupted:
            if_interrupted.callback(self.close)  # the server's threads keep this process alive
            self.viewer.set_camera_visibility(False)
            self.viewer.control_panel._max_res.value = self.resolution
            port = self.viewer.config.websocket_port
            super().__init__(browser, port, "Output type", patience=patience)
            self.wait(self.viewer.viser_server.get_clients)
            for part in PARTS:
                self.page.get_by_text(part, exact=True).first.click()  # opens it
            if_interrupted.pop_all()
        self.client = next(iter(self.viewer.viser_server.get_clients().values()))

    @property
    def cameras(self):
        return self.pipeline.datamanager.train_dataset.cameras

    def close(self):
        machines = list(self.viewer.render_statemachines.values())
        if self.page is not None:
            self.page.close()
        for machine in machines:
            machine.running = False
        queries = [each for each in threading.enumerate() if each.name == "f3rm-queries"]
        for thread in (*machines, *queries):  # what they send would find the server shut down
            thread.join(self.patience)
        self.viewer.viser_server.stop()

    def describe(self):
        states = [m.state for m in self.viewer.render_statemachines.values()]
        return self.controls.ask.status.content, self.viewer.stats_markdown.content, states

    def is_alive(self):
        return all(machine.is_alive() for machine in self.viewer.render_statemachines.values())

    def asked(self):
        heads = self.model.heads
        return self.controls.active_query({name: head.pca_mean for name, head in heads.items()})

    def look_from(self, view):
        """Moves the camera to where a training photograph was taken."""
        pose = self.cameras.camera_to_worlds[view].numpy().astype(np.float64)
        turned = transforms.SO3.from_matrix(pose[:3, :3]) @ transforms.SO3.from_x_radians(np.pi)
        fov = 2 * np.arctan(float(self.cameras.cy[view] / self.cameras.fy[view]))
        with self.client.atomic():
            self.client.camera.wxyz = turned.wxyz
            self.client.camera.position = pose[:3, 3] * VISER_NERFSTUDIO_SCALE_RATIO
            self.client.camera.fov = fov
        self.settle()

    def settle(self):
        """Waits until the finest picture has been sent and shown."""
        self.page.wait_for_timeout(500)
        (machine,) = self.viewer.render_statemachines.values()

        def finest():
            size = re.findall(r"\d+", self.viewer.stats_markdown.content.splitlines()[1])
            return (
                machine.state == "high"
                and machine.next_action is None
                and not machine.render_trigger.is_set()
                and max(map(int, size)) >= self.resolution - 2
            )

        self.wait(finest)
        super().settle()

    def picture(self, view):
        """What the canvas shows where a photograph from the same camera would be, at its size."""
        image = self.shot()
        height, width = int(self.cameras.height[view]), int(self.cameras.width[view])
        half = image.height * width / height / 2  # the field of view is the vertical one
        box = (image.width / 2 - half, 0, image.width / 2 + half, image.height)
        return np.asarray(image.resize((width, height), Image.Resampling.BOX, box=box))

    def click_at(self, view, x, y):
        """Clicks the canvas where a photograph's pixel is."""
        box = self.canvas.bounding_box()
        scale = box["height"] / int(self.cameras.height[view])
        centre = box["x"] + box["width"] / 2
        left = centre + (x + 0.5 - int(self.cameras.width[view]) / 2) * scale
        self.page.mouse.click(left, box["y"] + (y + 0.5) * scale)


def open_viewer(config):
    """Opens a run as ns-viewer does, in this process."""
    settings, pipeline, _, step = eval_setup(config, test_mode="test")
    settings.viewer.websocket_port = free_port()
    settings.logging.local_writer.enable = False
    datamanager: Any = pipeline.datamanager
    viewer = Viewer(
        settings.viewer,
        log_filename=config.parent / "viewer.log",
        datapath=datamanager.get_datapath(),
        pipeline=pipeline,
        train_lock=threading.Lock(),
    )
    writer.setup_local_writer(settings.logging, max_iter=1, banner_messages=None)
    viewer.init_scene(datamanager.train_dataset, "completed", datamanager.eval_dataset)
    viewer.update_scene(step=step)
    return viewer, pipeline


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
