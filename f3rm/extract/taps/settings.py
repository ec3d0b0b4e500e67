"""Settings that a person writes: checks of names and words, and YAML files of bounded size.

With YAML aliases a file of a few lines can expand to more values than memory holds, or contain
itself. A file that passes here is no larger than a person's specification, aliases expanded.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

import yaml

from f3rm.backbones.weights import near_matches
from f3rm.errors import F3rmError

_LARGEST_FILE = 1 << 20
_MOST_VALUES = 10_000
_DEEPEST = 32

# PyYAML raises these besides its own error: on bad numbers and dates, and on deep nesting.
_UNREADABLE = (ValueError, LookupError, TypeError, AttributeError, ArithmeticError, RecursionError)


def check_settings(owner: type, values: Mapping[str, object], error: type[F3rmError]) -> None:
    """Checks the names of settings, and the values of those that are one of several words.

    Args:
        owner: The dataclass of the settings; fields of a ``Literal`` type take only its words.
        values: The settings by name.
        error: The class of the error to raise.

    Raises:
        F3rmError: Of the class ``error``, if a name or a word is unknown.
    """
    types = get_type_hints(owner)
    for name, value in values.items():
        if name not in types:
            msg = f"{owner.__name__}: there is no setting {name!r}; {near_matches(name, types)}"
            raise error(msg)
        words = get_args(types[name]) if get_origin(types[name]) is Literal else ()
        if words and value not in words:
            msg = f"{owner.__name__}: {name} must be one of {', '.join(words)}, got {value!r}."
            raise error(msg)


def read_yaml(path: Path) -> Any:
    """Reads a YAML or JSON file; nothing in it is executed.

    Raises:
        OSError: If it cannot be read.
        ValueError: If it is not YAML, or its values are too many or too deep.
    """
    if path.stat().st_size > _LARGEST_FILE:
        msg = f"it has more than {_LARGEST_FILE} bytes"
        raise ValueError(msg)
    text = path.read_text(encoding="utf-8")
    try:
        plain = yaml.safe_load(text)
    except (yaml.YAMLError, *_UNREADABLE) as error:
        raise ValueError(str(error) or type(error).__name__) from error
    waiting, seen = [(plain, 0)], 0
    while waiting:  # a list, not recursion: an alias may contain itself
        value, depth = waiting.pop()
        seen += 1
        if depth > _DEEPEST or seen > _MOST_VALUES:
            msg = f"it holds more than {_MOST_VALUES} values, or more than {_DEEPEST} levels"
            raise ValueError(msg)
        if isinstance(value, dict | list):
            parts = value.values() if isinstance(value, dict) else value
            waiting += [(part, depth + 1) for part in parts]
    return plain
