"""The benchmark of a GPU on a CPU, at its smallest, so that it runs the day that there is a GPU."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

GPU = Path(__file__).resolve().parents[2] / "benchmarks" / "gpu.py"


def _run(out, *words):
    command = [sys.executable, "-W", "ignore", str(GPU), "--smallest", "--out", str(out), *words]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return done, json.loads((out / "gpu.json").read_text())


def test_the_first_wrong_part_ends_the_run_and_says_what_is_wrong(tmp_path):
    missing = ("--data", str(tmp_path / "nowhere"))
    parts = ("--only", "trunks", "train", "frames")
    done, record = _run(tmp_path, *missing, "--minutes", "30", *parts)
    assert list(record["parts"]) == ["trunks", "train"]
    assert record["parts"]["trunks"]["torch_error"] < 1e-5
    assert record["wrong"].startswith("train: ")
    assert "nowhere" in record["wrong"]
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1] == f"WRONG: {record['wrong']}"


def test_a_part_has_a_limit(tmp_path):
    missing = ("--data", str(tmp_path / "nowhere"))
    done, record = _run(tmp_path, *missing, "--minutes", "0", "--only", "train", "frames")
    assert list(record["parts"]) == ["train"]
    assert record["wrong"] == "train: it took longer than 1 s"
    assert done.returncode == 1


@pytest.mark.nightly
def test_every_part_is_right_at_its_smallest(tmp_path, benchmark_module):
    done, record = _run(tmp_path, "--minutes", "60")
    assert not record["wrong"], done.stderr
    assert set(record["parts"]) == set(benchmark_module("gpu_parts").PARTS)
    assert done.returncode == 0
    assert "| steps: torch_features_ratio_768 |" in done.stdout
