"""The gates bite: a shape error in our code is seen in every test run, and every target runs."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from jaxtyping import TypeCheckError

from f3rm.language.relevancy import make_query, similarity

ROOT = Path(__file__).parents[1]


def test_wrong_shapes_are_caught_by_the_hook():
    query = make_query(torch.eye(4)[:1])
    with pytest.raises(TypeCheckError):
        similarity("not a tensor", query)  # pyright: ignore[reportArgumentType]
    with pytest.raises(TypeCheckError):
        make_query(torch.eye(4)[0])


@pytest.mark.skipif(shutil.which("make") is None, reason="there is no make")
def test_make_help_names_every_target():
    (phony,) = re.findall(r"^\.PHONY: (.*)$", (ROOT / "Makefile").read_text(), re.MULTILINE)
    shown = subprocess.run(
        ["make", "--no-print-directory", "help"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    ).stdout
    assert [line.split()[0] for line in shown.splitlines()] == phony.split()


def test_without_numba_a_process_and_its_children_lack_it():
    probe = "import importlib.util; print(importlib.util.find_spec('numba'))"
    code = f"{probe}; import subprocess, sys; subprocess.run([sys.executable, '-c', {probe!r}])"
    found = subprocess.run(
        [sys.executable, "-u", "-c", code],
        env={**os.environ, "PYTHONPATH": str(ROOT / "tests" / "without_numba")},
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    assert found.stdout.split() == ["None", "None"]


def test_what_takes_the_seed_of_training_is_marked(train_seed, request):
    assert str(train_seed) == os.environ.get("F3RM_TRAIN_SEED", "0")
    assert request.node.get_closest_marker("trains")
