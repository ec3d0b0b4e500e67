"""The images are linted, and copy files that exist and that the context lets through."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FILES = sorted((ROOT / "docker").glob("*.Dockerfile"))
LINTER = Path(sys.executable).with_name("hadolint")


def lint(text):
    return subprocess.run(
        [LINTER, "-"], input=text, capture_output=True, text=True, check=False, timeout=60
    )


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_an_image_is_linted_and_copies_what_there_is(file):
    text = file.read_text(encoding="utf-8")
    done = lint(text)
    assert done.returncode == 0, done.stdout + done.stderr
    copied = [name for line in re.findall(r"^COPY (.+) \S+$", text, re.M) for name in line.split()]
    allowed = (ROOT / ".dockerignore").read_text(encoding="utf-8")
    assert copied
    for name in copied:
        assert (ROOT / name).exists(), name
        assert f"\n!{name}\n" in allowed, name


def test_the_linter_bites():
    assert lint("FROM python\nRUN cd /tmp\n").returncode == 1
