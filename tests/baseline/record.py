"""Rewrites what the baseline says of f3rm's public behaviour: ``python -m tests.baseline.record``.

A change of a recorded file is a change for users. ``config.yml`` is never rewritten: it stands for
the runs that users have.
"""

import json
import logging
import sys
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from tests.baseline.extraction import cache_keys, exact_chunks, tinyclip_values
from tests.baseline.json_keys import json_keys
from tests.baseline.options import command_options, run_config, training_options
from tests.baseline.outputs import checkpoint_tensors, rendered_values
from tests.baseline.signatures import public_signatures

FOLDER = Path(__file__).parent
CONFIG = FOLDER / "config.yml"
COMMAND = "python -m tests.baseline.record"

PARTS: Mapping[str, Callable[[Path], dict[str, Any]]] = {
    "options": lambda _: command_options(),
    "training": lambda _: training_options(),
    "signatures": lambda _: public_signatures(),
    "json_keys": json_keys,
    "cache_keys": lambda _: cache_keys(),
    "chunks": exact_chunks,
    "tinyclip": tinyclip_values,
    "outputs": lambda _: rendered_values(),
    "checkpoint": lambda _: checkpoint_tensors(),
}
"""Name of a part, and of its file -> what gathers it, given an empty folder."""


def file_of(part: str) -> Path:
    """Returns where a part is recorded."""
    return FOLDER / f"{part}.json"


def as_text(gathered: Mapping[str, Any]) -> str:
    """Returns what is recorded, a line for each value."""
    return json.dumps(gathered, indent=1, sort_keys=True, ensure_ascii=False) + "\n"


def main(parts: list[str]) -> None:
    """Records the parts that are named, or all."""
    for part in parts or PARTS:
        with tempfile.TemporaryDirectory() as folder:
            text = as_text(PARTS[part](Path(folder)))
        file_of(part).write_text(text, encoding="utf-8")
    if not CONFIG.is_file():
        CONFIG.write_text(run_config(), encoding="utf-8")


if __name__ == "__main__":
    logging.captureWarnings(capture=True)
    main(sys.argv[1:])
