"""YAML files as plain values of a bounded size, whatever is in them.

Aliases let a file of a few lines stand for more values than memory holds, or contain itself; a
value here, with every alias written out, is no larger than a person's specification.
"""

from pathlib import Path
from typing import Any

import yaml

_LARGEST_FILE = 1 << 20
_MOST_VALUES = 10_000
_DEEPEST = 32
_UNREADABLE = (
    yaml.YAMLError,
    ValueError,
    LookupError,
    TypeError,
    AttributeError,
    ArithmeticError,
    RecursionError,
)
"""What PyYAML raises on texts that are no YAML, or whose numbers and dates are none."""


def read_yaml(path: Path) -> Any:
    """Reads a YAML or JSON file; nothing in it is executed.

    Raises:
        OSError: If it cannot be read.
        ValueError: If it is no YAML, or too large or too deep written out; the message says which.
    """
    if path.stat().st_size > _LARGEST_FILE:
        msg = f"it has more than {_LARGEST_FILE} bytes"
        raise ValueError(msg)
    text = path.read_text(encoding="utf-8")
    try:
        plain = yaml.safe_load(text)
    except _UNREADABLE as error:
        raise ValueError(str(error) or type(error).__name__) from error
    _check_size(plain)
    return plain


def _check_size(plain: Any) -> None:
    waiting, seen = [(plain, 0)], 0
    while waiting:
        value, depth = waiting.pop()
        seen += 1
        if depth > _DEEPEST or seen > _MOST_VALUES:
            msg = f"it holds more than {_MOST_VALUES} values, or more than {_DEEPEST} levels"
            raise ValueError(msg)
        parts = value.values() if isinstance(value, dict) else value
        if isinstance(value, dict | list):
            waiting += [(part, depth + 1) for part in parts]
