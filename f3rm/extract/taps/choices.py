"""One check of settings that come from a person or a file, before they mean anything."""

from collections.abc import Mapping
from typing import Any, get_args

from f3rm.backbones.weights import near_matches
from f3rm.errors import F3rmError


def check_settings(
    owner: type, values: Mapping[str, Any], choices: Mapping[str, Any], error: type[F3rmError]
) -> None:
    """Checks the names of settings, and those values that are words.

    Args:
        owner: The dataclass that they are for.
        values: What was given.
        choices: Setting -> the ``Literal`` that it must be one of.
        error: What is raised.

    Raises:
        F3rmError: Of the class ``error``, if a name or a word is unknown.
    """
    known = [name for name in owner.__dataclass_fields__ if not name.startswith("_")]
    for name, value in values.items():
        if name not in known:
            msg = f"{owner.__name__}: there is no setting {name!r}; {near_matches(name, known)}"
            raise error(msg)
        words = get_args(choices.get(name))
        if words and value not in words:
            listed = ", ".join(words)
            msg = f"{owner.__name__}: {name} must be one of {listed}, got {value!r}. Choose one."
            raise error(msg)
