"""The animated picture of the README: the points of a demo's page are turned, asked and clicked.

``python -m tools.page_animation outputs/demo/index.html`` writes ``docs/images/query.webp``. It
needs playwright and Chromium, as the tests of browsers do.
"""

import argparse
import importlib
import io
import shutil
from pathlib import Path
from typing import Any

from PIL import Image

PATH = Path("docs/images/query.webp")
PAGE_SIZE = (760, 900)
WIDTH = 640
FRAME_MILLISECONDS = 120
TURN_PIXELS = 6


class Film:
    """Frames of a page.

    Args:
        page: Playwright's page, opened on a demo's page.
    """

    def __init__(self, page: Any) -> None:
        self.page, self.frames = page, list[Image.Image]()
        self.canvas = page.locator("#cloud canvas").bounding_box()
        words = page.locator("#cloud-answer").bounding_box()
        top = page.locator("#cloud-buttons").bounding_box()["y"] - 8
        bottom = words["y"] + words["height"]
        self.clip = {"x": 0, "y": top, "width": PAGE_SIZE[0], "height": bottom - top}
        box = self.canvas
        self.middle = (box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)

    def take(self, count: int = 1) -> None:
        """Takes frames of what is shown."""
        self.page.wait_for_timeout(150)
        shot = Image.open(io.BytesIO(self.page.screenshot(clip=self.clip))).convert("RGB")
        height = round(WIDTH * shot.height / shot.width)
        self.frames += [shot.resize((WIDTH, height), Image.Resampling.LANCZOS)] * count

    def turn(self, count: int) -> None:
        """Turns the points; a frame after each step."""
        x, y = self.middle
        self.page.mouse.move(x, y)
        self.page.mouse.down()
        for step in range(count):
            self.page.mouse.move(x + (step + 2) * TURN_PIXELS, y)
            self.take()
        self.page.mouse.up()

    def press(self, button: str) -> None:
        """Presses a button and shows what it does."""
        self.page.get_by_role("button", name=button, exact=True).click()
        self.take(6)


def main() -> None:
    """Opens the page, asks every prompt while the points turn, and clicks the middle."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("page", type=Path, help="index.html of a demo, or of f3rm eval --pictures")
    given = parser.parse_args()
    with importlib.import_module("playwright.sync_api").sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=shutil.which("chromium"), headless=True, args=["--no-sandbox"]
        )
        page = browser.new_page(viewport={"width": PAGE_SIZE[0], "height": PAGE_SIZE[1]})
        page.goto(given.page.absolute().as_uri())
        page.locator("#cloud canvas").wait_for()
        names = page.locator("#cloud-buttons button").all_inner_texts()
        film = Film(page)
        for name in (names[0], *names[2:]):
            film.press(name)
            film.turn(7)
        page.mouse.click(*film.middle)
        film.take(16)
        browser.close()
    first, *others = film.frames
    first.save(
        PATH, save_all=True, append_images=others, duration=FRAME_MILLISECONDS, loop=0, quality=55
    )
    print(f"{PATH}: {len(film.frames)} frames, {PATH.stat().st_size} bytes")


if __name__ == "__main__":
    main()
