"""Screenshots of the viewer for the documentation: colours, PCA, and a query with its legend.

``python -m tools.viewer_screenshots RUN/config.yml "orange box, purple ball"`` writes
``docs/images/viewer_rgb.jpg``, ``viewer_pca.jpg`` and ``viewer_query.jpg``. It needs playwright and
Chromium, as the viewer's tests do.
"""

import argparse
import importlib
import io
import shutil
from contextlib import closing
from pathlib import Path

from PIL import Image

from tests.viewer.shown import Shown

FOLDER = Path("docs/images")
RESOLUTION = 320
MOST_BYTES = 200_000


def save(shown: Shown, name: str) -> None:
    """Saves what the browser shows, in at most 200 kB."""
    image = Image.open(io.BytesIO(shown.page.screenshot())).convert("RGB")
    for quality in (90, 80, 70, 60):
        buffer = io.BytesIO()
        image.save(buffer, "JPEG", quality=quality)
        if buffer.tell() <= MOST_BYTES:
            break
    path = FOLDER / f"viewer_{name}.jpg"
    path.write_bytes(buffer.getvalue())
    print(f"{path}: {buffer.tell()} bytes")


def main() -> None:
    """Opens the run, asks it, and saves three pictures."""
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
            save(shown, "rgb")
            shown.choose("Output type", "feature_pca")
            shown.settle()
            save(shown, "pca")
            shown.choose("Several positives", "each alone")
            shown.type("Positives", given.query)
            shown.wait(lambda: shown.asked() is not None)
            shown.settle()
            shown.choose("Output type", "similarity_composite")
            shown.settle()
            shown.field("Positives").first.scroll_into_view_if_needed()
            save(shown, "query")
        browser.close()


if __name__ == "__main__":
    main()
