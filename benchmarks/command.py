"""What the command lines of all benchmarks have in common."""

import argparse
import json
from typing import Any


def make_parser(description: str | None) -> argparse.ArgumentParser:
    """Returns a parser that knows ``--json`` and ``--threads``."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument(
        "--threads",
        type=int,
        default=1,
        help="CPU threads; with more than one, whatever else runs on the machine decides the ratio",
    )
    return parser


def show(result: dict[str, Any], *, as_json: bool) -> None:
    """Prints what was measured, as one JSON object or one line per number."""
    if as_json:
        print(json.dumps(result))
        return
    width = max(map(len, result))
    for name, value in result.items():
        print(f"{name:>{width}}: {value}")
