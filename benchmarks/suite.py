"""Runs all benchmarks of this machine, keeps the numbers, and renders docs/benchmarks.md.

``make bench`` is ``python benchmarks/suite.py``: about 20 minutes on two cores. The numbers go to
``benchmarks/results/cpu.json`` (or ``cuda.json``) with machine, versions, settings and commit.
On a machine with a GPU it measures that: torch and tiny-cuda-nn, ViT-L/14 at two sizes.
``--size smallest --check`` takes two minutes, writes nothing, and fails where a ratio is so far off
that no noise explains it: by a factor of two.
"""

import argparse
import importlib.metadata
import importlib.util
import json
import platform
import shlex
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch
from measuring import machine
from tables import render, table_of

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "benchmarks.md"
RESULTS = ROOT / "benchmarks" / "results"

SIZES: dict[str, dict[str, str]] = {
    "smallest": {
        "step": "--rays 128 --repeats 2 --heads 768 --no-memory",
        "lite": "--rays 256 --points 4096 --repeats 3",
        "gather": "--images 128 --repeats 5",
        "extract": "--images 8 --repeats 1 --no-memory",
        "render": "--side 16 --repeats 2 --no-memory",
        "scale": "--few --repeats 2",
        "splats": "--gaussians 20000 --repeats 2",
    },
    "default": {
        "step": "--repeats 3",
        "lite": "",
        "gather": "",
        "extract": "",
        "render": "--side 48 --repeats 3",
        "scale": "",
        "splats": "",
    },
}
"""Arguments of each benchmark, by size."""

ON_GPU = {
    "step": "--rays 4096",
    "step tcnn": "--rays 4096 --implementation tcnn",
    "step triton": "--rays 4096 --implementation triton",
    "extract 336": "--side 336 --images 64",
    "extract 1024": "--side 1024 --images 64",
    "render": "--side 256",
}
"""The same for a GPU; what follows a benchmark's name tells its runs apart."""

AT_MOST = {
    "step": {"features_ratio_768": 2.5},
    "gather": {"vs_resident": 3.0},
    "render": {"similarity_vs_rgb_768": 2.7, "similarity_vs_rgb_5120": 2.7},
    "scale": {"gather_per_doubling": 1.5, "channels_per_doubling": 1.6},
    "splats": {"width_ratio": 1.6},
}
AT_LEAST = {
    "step": {"head_speedup_768": 2.5},
    "lite": {"lite_speedup": 1.5, "grid_speedup_forward": 4.0, "grid_speedup_training": 4.0},
    "gather": {"speedup_warm": 6.0, "speedup_warm_fast": 10.0},
    "extract": {"vs_bare_model": 0.45, "engine_ratio_25": 0.4, "engine_ratio_100": 0.4},
    "render": {"speedup_vs_channels_768": 1.0, "speedup_vs_channels_5120": 4.0},
    "splats": {"twin_ratio": 3.0},
}
"""What ``--check`` allows: half or twice what is promised, less where small sizes blur it."""


def chosen(size: str, device: str) -> dict[str, str]:
    """Returns the arguments of each run on a device, without those whose package is missing."""
    if device == "cpu":
        return SIZES[size]
    packages = {"step tcnn": "tinycudann", "step triton": "triton"}
    missing = {run for run, name in packages.items() if importlib.util.find_spec(name) is None}
    return {name: words for name, words in ON_GPU.items() if name not in missing}


def run(name: str, arguments: str, device: str) -> dict[str, Any]:
    """Runs one benchmark in a process of its own.

    Args:
        name: The benchmark, and what tells this run of it apart.
        arguments: Its arguments.
        device: ``cpu`` or ``cuda``.

    Raises:
        SystemExit: If it fails.
    """
    words = [f"benchmarks/{name.split(maxsplit=1)[0]}.py", "--json", *shlex.split(arguments)]
    if device != "cpu":
        words += ["--device", device]
    print(f"python {' '.join(words)}", file=sys.stderr, flush=True)
    start = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-W", "ignore", *words],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
        check=False,
    )
    if done.returncode:
        raise SystemExit(f"suite: {name} ended with exit code {done.returncode}; see above.")
    seconds = time.monotonic() - start
    result = json.loads(done.stdout.splitlines()[-1])
    shown = ", ".join(f"{key} {value}" for key, value in result.items() if isinstance(value, float))
    print(f"  {seconds:.0f} s: {shown}", file=sys.stderr, flush=True)
    command = f"python {' '.join(words)}"
    return {"command": command, "commit": commit(), "seconds": round(seconds, 1), "result": result}


def failures(runs: dict[str, dict[str, Any]]) -> list[str]:
    """Returns one sentence per ratio that is off by more than noise explains."""
    found: list[str] = []
    for limits, word in ((AT_MOST, "most"), (AT_LEAST, "least")):
        for name, bounds in limits.items():
            for key, bound in bounds.items():
                value = runs[name]["result"][key] if name in runs else None
                if value is not None and (value > bound if word == "most" else value < bound):
                    found.append(f"{name}: {key} must be at {word} {bound}, got {value}")
    return found


def record_of(runs: dict[str, dict[str, Any]], size: str, device: str) -> dict[str, Any]:
    """Puts together what is kept."""
    place = machine(torch.device(device))
    packages = ("nerfstudio", "numpy", "numba", "open_clip_torch", "transformers")
    return {
        "size": size,
        "device": place["device"],
        "torch": place["torch"],
        "python": platform.python_version(),
        "versions": {name: _version(name) for name in packages},
        "benchmarks": runs,
    }


def commit() -> str:
    """Returns the commit that runs, with a ``+`` where files differ from it."""
    return _git("rev-parse", "--short", "HEAD") + "+" * bool(_git("diff", "--name-only", "HEAD"))


def _git(*words: str) -> str:
    try:
        done = subprocess.run(["git", *words], cwd=ROOT, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return ""
    return done.stdout.strip()


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def main() -> None:
    """Parses the command line, measures, keeps, renders and checks."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", default="default", choices=SIZES)
    parser.add_argument(
        "--only", nargs="+", help="names of benchmarks; the others stay as they are"
    )
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--check", action="store_true", help="fail on regressions; write nothing")
    given = parser.parse_args()
    arguments = chosen(given.size, given.device)
    runs = {name: run(name, arguments[name], given.device) for name in given.only or arguments}
    found = failures(runs)
    print("\n".join(found) or "all ratios are within bounds", file=sys.stderr)
    if given.check:
        sys.exit(bool(found))
    kept = RESULTS / f"{given.device.partition(':')[0]}.json"
    if given.only and kept.is_file():
        runs = json.loads(kept.read_text(encoding="utf-8"))["benchmarks"] | runs
    record = record_of(runs, given.size, given.device)
    tables = [f"{name}\n\n{table_of(name.split()[0], run)}" for name, run in runs.items()]
    print("\n\n".join(tables))
    RESULTS.mkdir(exist_ok=True)
    kept.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    if given.device == "cpu" and given.size == "default":
        page = render(PAGE.read_text(encoding="utf-8"), record)
        PAGE.write_text(page, encoding="utf-8")
    print(f"Wrote {kept}", file=sys.stderr)


if __name__ == "__main__":
    main()
