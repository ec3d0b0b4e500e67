"""One small run on a generated scene for all tests of the viewer, and a browser to look at it."""

import importlib.util
import shutil

import pytest

from tests.run_fixtures import colours, run

__all__ = ["colours", "run"]

_NAMES = ("chromium", "chromium-browser", "google-chrome")
CHROMIUM = next(filter(None, map(shutil.which, _NAMES)), None)


@pytest.fixture(scope="session")
def browser():
    """Chromium without a window; skips where there is none."""
    if importlib.util.find_spec("playwright") is None:
        pytest.skip("playwright is not installed: pip install playwright")
    if CHROMIUM is None:
        pytest.skip("there is no chromium: apt-get install chromium")
    sync_api = importlib.import_module("playwright.sync_api")
    with sync_api.sync_playwright() as playwright:
        # Chromium refuses its sandbox to root, as whom containers run.
        opened = playwright.chromium.launch(
            executable_path=CHROMIUM, headless=True, args=["--no-sandbox"]
        )
        yield opened
        opened.close()
