"""What a GPU must show, in at most seven minutes: that answers are right, then how fast they come.

``python benchmarks/gpu.py --out outputs/gpu`` (``make gpu``) runs the parts one after the other,
each in a process with a limit of its own, and ends at the first that is wrong. ``OUT/gpu.json`` is
written after each part, ``OUT/PART.log`` has what it printed; a table is printed last. Without
Open3D, which renders the generated scene, give one with ``--data``. On a machine that has only
PyTorch, docs/install.md lists what else is needed. ``--smallest`` runs the same code on a CPU.
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from gpu_parts import PARTS, Place, WrongError
from measuring import machine
from suite import ROOT, commit

from f3rm.synthetic.scenes import SceneSettings, make_tabletop


def run_part(name: str, place: Place, seconds: float) -> dict[str, Any]:
    """Runs a part in a process of its own; of a wrong result, ``wrong`` says what is wrong."""
    words = ["--part", name, "--out", str(place.out), "--data", str(place.data)]
    command = [sys.executable, "-W", "ignore", __file__, *words, *["--smallest"] * place.small]
    told, log = place.out / f"{name}.json", place.out / f"{name}.log"
    told.unlink(missing_ok=True)
    with log.open("w", encoding="utf-8") as stream:
        process = subprocess.Popen(
            command, cwd=ROOT, stdout=stream, stderr=stream, start_new_session=True
        )
        try:
            process.wait(seconds)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)  # with the benchmarks that it started
            process.wait()
            return {"wrong": f"it took longer than {seconds:.0f} s"}
    if told.is_file():
        return json.loads(told.read_text(encoding="utf-8"))
    last = log.read_text(encoding="utf-8").strip().splitlines()[-1:]
    return {"wrong": f"exit code {process.returncode}: {' '.join(last)}; see {log}"}


def run_all(names: Sequence[str], place: Place, minutes: float) -> dict[str, Any]:
    """Runs parts until one is wrong or the time is over; keeps what was found after each."""
    record: dict[str, Any] = {"commit": commit(), **machine(torch.device(place.device))}
    record |= {"smallest": place.small, "parts": {}, "wrong": None}
    start = time.monotonic()
    for name in names:
        began = time.monotonic()
        left = 60 * minutes - (began - start)
        limit = left if place.small else min(left, PARTS[name][0])
        found = run_part(name, place, max(limit, 1.0))
        record["parts"][name] = {"seconds": round(time.monotonic() - began, 1), **found}
        record["wrong"] = f"{name}: {found['wrong']}" if "wrong" in found else None
        text = json.dumps(record, indent=1)
        (place.out / "gpu.json").write_text(text + "\n", encoding="utf-8")
        print(f"{name}: {record['wrong'] or 'right'}", file=sys.stderr, flush=True)
        if record["wrong"]:
            break
    return record


def table(record: dict[str, Any]) -> str:
    """Returns the numbers of a record as a table in markdown."""
    lines = [
        f"{record['device']}, torch {record['torch']}, {record['commit']}",
        "",
        "| | |",
        "|---|---|",
    ]
    for name, found in record["parts"].items():
        for key, value in found.items():
            shown = f"{value:.4g}" if isinstance(value, float) else value
            lines.append(f"| {name}: {key} | {shown} |")
    return "\n".join(lines)


def main() -> None:
    """Parses the command line, runs all parts or one, and prints."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("outputs/gpu"))
    parser.add_argument("--data", type=Path, help="a generated scene; made if not given")
    parser.add_argument("--only", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--minutes", type=float, default=7.0)
    parser.add_argument("--smallest", action="store_true", help="run the same code on a CPU")
    parser.add_argument("--part", choices=PARTS, help=argparse.SUPPRESS)
    given = parser.parse_args()
    out = given.out.absolute()
    data = (given.data or out / "tabletop").absolute()
    place = Place(out, data, "cpu" if given.smallest else "cuda", given.smallest)
    if given.part:
        try:
            found = PARTS[given.part][1](place)
        except WrongError as error:
            found = {"wrong": str(error)}
        (out / f"{given.part}.json").write_text(json.dumps(found), encoding="utf-8")
        return
    out.mkdir(parents=True, exist_ok=True)
    if given.data is None:
        views, height = (4, 48) if place.small else (50, 360)
        make_tabletop(data, SceneSettings(views=views, height=height, width=height * 4 // 3))
    record = run_all(given.only, place, given.minutes)
    print(table(record))
    sys.exit(f"WRONG: {record['wrong']}" if record["wrong"] else 0)


if __name__ == "__main__":
    main()
