"""Trains on photographs with annotated boxes and reports what is found: ``make real DATA=folder``.

``python -m tools.real FOLDER`` builds the weights, trains a field of CONSE's features and one of
DINOv2's, and writes ``report.md``, ``report.json`` and ``index.html``, a page of the answers.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from f3rm.errors import F3rmError
from tools.real.fox import STEPS, train_all
from tools.real.page import write_page
from tools.real.report import measure, table
from tools.real.wheels import missing_wheels


def main(arguments: Sequence[str] | None = None) -> int:
    """Trains, measures and reports; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", type=Path, help="photographs with transforms.json and boxes.json")
    parser.add_argument("--out", type=Path, default=Path("outputs/real"))
    parser.add_argument("--steps", type=int, default=STEPS)
    options = parser.parse_args(arguments)
    if missing := missing_wheels():
        print(f"Not installed: {', '.join(missing)}. Install the extra 'real'.", file=sys.stderr)
        return 2
    try:
        runs = train_all(options.data, options.out, options.steps)
        report, words, points = measure(runs)
    except F3rmError as error:
        print(error, file=sys.stderr)
        return 1
    numbers = report.to_dict()
    (options.out / "report.json").write_text(json.dumps(numbers, indent=2), encoding="utf-8")
    (options.out / "report.md").write_text(table(numbers) + "\n", encoding="utf-8")
    write_page(options.out / "index.html", report, words, points, table(numbers))
    print(table(numbers))
    print(f"\nLook at: {options.out / 'index.html'}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
