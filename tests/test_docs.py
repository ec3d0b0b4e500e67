"""The documentation tells the truth: its options, links and pictures exist."""

import dataclasses
import re
import tomllib
from pathlib import Path

import pytest

import f3rm
from f3rm.feature_datamanager import FeatureDataManagerConfig
from f3rm.model import FeatureFieldModelConfig
from f3rm.scene.attach import AttachSettings, LiftSettings
from f3rm.scripts.attach import Attach
from f3rm.scripts.export import Export
from f3rm.scripts.extract import Extract
from tests.test_public_names import PACKAGES

ROOT = Path(__file__).parents[1]
PAGES = sorted([ROOT / "README.md", *(ROOT / "docs").rglob("*.md")])


PICTURES = {".jpg", ".jpeg", ".png", ".gif", ".webp", ".svg", ".mp4"}


def _pictures(folder):
    return sorted(path for path in folder.rglob("*") if path.suffix.lower() in PICTURES)


def _names(config):
    return {field.name.replace("_", "-") for field in dataclasses.fields(config)}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_options_exist(page):
    groups = {
        "datamanager": _names(FeatureDataManagerConfig),
        "model": _names(FeatureFieldModelConfig),
    }
    text = page.read_text()
    for group, option in re.findall(r"--pipeline\.(\w+)\.([a-z-]+[a-z])", text):
        known = groups[group]
        assert option in known or any(name.startswith(option) for name in known), option
    commands = {
        "extract": _names(Extract),
        "attach": _names(Attach) | _names(AttachSettings) | _names(LiftSettings),
        "export": _names(Export),
    }
    for command, known in commands.items():
        for line in re.findall(rf"^f3rm {command} .*$", text, re.MULTILINE):
            for option in re.findall(r"--([a-z-]+)(?= |`)", line):
                assert option in known, line
    somewhere = set[str]().union(*commands.values())
    for line in re.findall(r"^\| `--[a-z].*$", text, re.MULTILINE):
        for option in re.findall(r"--([a-z-]+)(?= |`)", line):
            assert option in somewhere, line


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_python_examples_import_public_names_only(page):
    """From the packages that offer names, each import on one line, as tests gather them."""
    modules = re.findall(r"^ *(?:from|import) (f3rm[\w.]*)(.*)$", page.read_text(), re.MULTILINE)
    assert {module for module, _ in modules} <= set(PACKAGES)
    assert not [module for module, names in modules if "(" in names]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_links_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)#]+)[^)]*\)", page.read_text()):
        if not target.startswith("http"):
            assert (page.parent / target).exists(), target


def test_every_picture_says_where_it_comes_from():
    sources = (ROOT / "docs" / "images" / "sources.md").read_text()
    listed = re.findall(r"^\| `([^`]+)` \| [^|]+ \| [^|]+ \|$", sources, re.MULTILINE)
    folder = ROOT / "docs" / "images"
    assert sorted(folder / name for name in listed) == _pictures(ROOT / "docs")
    assert _pictures(ROOT / "f3rm") == []  # what is installed brings none


def test_every_picture_is_shown_on_a_page():
    shown = {
        (page.parent / target).resolve()
        for page in PAGES
        for target in re.findall(r"!\[[^\]]*\]\(([^)]+)\)", page.read_text())
    }
    assert sorted(shown) == _pictures(ROOT / "docs")


def test_the_changelog_starts_with_this_version():
    heading = re.search(r"^## \[(.+?)\]", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert heading is not None
    assert heading[1] == f3rm.__version__
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert project["version"] == f3rm.__version__
