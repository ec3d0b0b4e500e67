"""``f3rm view``: a scene as a splat in the browser, and its answers."""

import threading
from dataclasses import dataclass
from pathlib import Path

import tyro

import f3rm
from f3rm.scripts.command import Command
from f3rm.view.answers import Asking
from f3rm.view.page import Page, check_port
from f3rm.view.shown import shown_splat


@dataclass
class View(Command):
    """Look at a splat or a trained run in a browser, and ask it in words or with a click.

    The browser draws Gaussians: a splat's own, or those that f3rm export RUN splat makes. The page
    is served until Ctrl-C. docs/viewer.md explains it.
    """

    config: tyro.conf.Positional[Path]
    """The run's config.yml, or its folder; or the .ply of a splat with features."""
    data: Path | None = None
    """The dataset, if it was moved since training; of a splat always."""
    host: str = "127.0.0.1"
    """Address that the page is served on; 0.0.0.0 serves whoever reaches this machine."""
    port: int = 7007
    """Port of the page."""
    device: str = "auto"
    """auto, cpu, cuda or cuda:N."""

    def run(self) -> None:
        """Serves the page until Ctrl-C.

        Raises:
            F3rmError: If it cannot be done; the message says what to do.
        """
        check_port(self.host, self.port)  # opening the scene takes long
        scene = f3rm.load(self.config, data=self.data, device=self.device, show_progress=True)
        splat = shown_splat(scene)
        page = Page(Asking(scene, splat), host=self.host, port=self.port)
        print(f"{len(splat)} Gaussians at {page.url} (Ctrl-C ends it)", flush=True)
        try:
            threading.Event().wait()
        finally:
            page.close()
