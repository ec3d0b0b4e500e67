"""Screenshots of the viewer for the documentation: colours, PCA, and a query with its legend.

``python -m tools.viewer_screenshots RUN/config.yml "orange cone, pink cone, black mug"`` writes
``docs/images/viewer.jpg`` and ``viewer_query.jpg``. It needs playwright and Chromium, as the
viewer's tests do.
"""

import argparse
import importlib
import io
import shutil
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path

from PIL import Image

from tests.viewer.shown import Shown

FOLDER = Path("docs/images")
RESOLUTION = 320
MOST_BYTES = 200_000
PICTURE = (0, 52, 960, 700)
"""Where the page shows the scene: left, top, right, bottom."""
TILE = (560, 378)
GAP = 8


def taken(shown: Shown) -> Image.Image:
    """Returns what the browser shows."""
    return Image.open(io.BytesIO(shown.page.screenshot())).convert("RGB")


def side_by_side(pages: Sequence[Image.Image]) -> Image.Image:
    """Returns the pictures of some pages, without panels, in one row."""
    tiles = [page.crop(PICTURE).resize(TILE) for page in pages]
    sheet = Image.new("RGB", (len(tiles) * (TILE[0] + GAP) - GAP, TILE[1]), "white")
    for index, tile in enumerate(tiles):
        sheet.paste(tile, (index * (TILE[0] + GAP), 0))
    return sheet


def save(image: Image.Image, name: str) -> None:
    """Saves a picture in at most 200 kB."""
    for quality in (90, 80, 70, 60):
        buffer = io.BytesIO()
        image.save(buffer, "JPEG", quality=quality)
        if buffer.tell() <= MOST_BYTES:
            break
    path = FOLDER / name
    path.write_bytes(buffer.getvalue())
    print(f"{path}: {buffer.tell()} bytes")


def main() -> None:
    """Opens the run, asks it, and saves two pictures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("config", type=Path, help="the run's config.yml")
    parser.add_argument("query", help="positives, separated by commas")
    parser.add_argument("--view", type=int, default=0, help="which training photograph's camera")
    given = parser.parse_args()
    with importlib.import_module("playwright.sync_api").sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=shutil.which("chromium"), headless=True, args=["--no-sandbox"]
        )
        with closing(Shown(browser, given.config, resolution=RESOLUTION, patience=600)) as shown:
            shown.look_from(given.view)
            pages = [taken(shown)]
            shown.choose("Output type", "feature_pca")
            shown.settle()
            pages.append(taken(shown))
            shown.choose("Several positives", "each alone")
            shown.type("Positives", given.query)
            shown.wait(lambda: shown.asked() is not None)
            shown.settle()
            shown.choose("Output type", "similarity_composite")
            shown.settle()
            shown.field("Positives").first.scroll_into_view_if_needed()
            pages.append(taken(shown))
        browser.close()
    save(side_by_side(pages), "viewer.jpg")
    save(pages[-1], "viewer_query.jpg")


if __name__ == "__main__":
    main()
