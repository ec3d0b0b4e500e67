"""The mark of tests that depend on something that a test trained, and a browser."""

import importlib.util
import os
import shutil

import pytest

from tests.train_seed import TRAIN_SEED

# Triton reads it when it is imported, by torch among others: kernels then run on a CPU. Nothing
# chooses Triton there by itself.
os.environ.setdefault("TRITON_INTERPRET", "1")

_NAMES = ("chromium", "chromium-browser", "google-chrome")
CHROMIUM = next(filter(None, map(shutil.which, _NAMES)), None)


@pytest.fixture(scope="session")
def train_seed() -> int:
    """The seed of what is trained.

    A test that takes it, directly or through another fixture, is marked ``trains``.
    """
    return TRAIN_SEED


@pytest.fixture(scope="session")
def browser():
    """Chromium without a window; skips where there is none.

    It is here because Playwright starts once in a process only.
    """
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


@pytest.hookimpl(tryfirst=True)  # before pytest selects by marks
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if isinstance(item, pytest.Function) and "train_seed" in item.fixturenames:
            item.add_marker("trains")
