"""A stranger finds the room for a new line: sizes of rooms and files, and a page in each room."""

import re
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "f3rm"
FOLDERS = [path.parent for path in sorted(PACKAGE.rglob("__init__.py"))]
ROOMS = [folder for folder in FOLDERS if folder.parent == PACKAGE]
MOST_FILES = 22
MOST_LINES = 400
LARGE = 10
"""A folder inside a room with so many files has a page of its own."""


def _name(folder):
    return str(folder.relative_to(PACKAGE.parent))


def _described():
    inner = [folder for folder in FOLDERS if PACKAGE in folder.parent.parents]
    return [*ROOMS, *(folder for folder in inner if len(list(folder.glob("*.py"))) >= LARGE)]


@pytest.mark.parametrize("folder", FOLDERS, ids=_name)
def test_a_folder_has_few_files_and_they_are_short(folder):
    files = list(folder.glob("*.py"))
    assert len(files) <= MOST_FILES
    long = {
        file.name: lines
        for file in files
        if (lines := len(file.read_text(encoding="utf-8").splitlines())) > MOST_LINES
    }
    assert long == {}


@pytest.mark.parametrize("folder", _described(), ids=_name)
def test_a_room_says_what_it_is_for_and_where_new_things_go(folder):
    text = (folder / "design.md").read_text(encoding="utf-8")
    assert re.match(rf"# ({folder.name}|{_name(folder)[5:]})[:\n]", text)
    assert len(text.splitlines()) <= 40
    assert re.search(r"\b[Ii]mports?\b", text)
    missing = [
        file.name
        for file in folder.glob("*.py")
        if file.name != "__init__.py" and file.stem not in text
    ]
    assert missing == []


@pytest.mark.parametrize("folder", _described(), ids=_name)
def test_every_file_that_a_page_names_is_there(folder):
    text = (folder / "design.md").read_text(encoding="utf-8")
    known = {file.name for file in PACKAGE.rglob("*.py")}
    tests = {file.name for file in (PACKAGE.parent / "tests").rglob("*.py")}
    named = set(re.findall(r"`(?:[\w/]*/)?(\w+\.py)`", text))
    assert named - known - tests == set()
