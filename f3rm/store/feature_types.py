"""Parsing feature types: names joined by ``+``, each with its own settings in brackets.

``DINO+CLIP[tap=-1|dense(nacclip);window=336,224]`` is DINO with its defaults, and CLIP with another
dense rule and in windows. Settings are ``tap``, ``side`` (length of the shorter image side in
pixels), ``window`` (side and step in pixels) and ``scales`` (factors).
"""

import difflib
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TypeVar

from f3rm.backbones.taps import Tap
from f3rm.backbones.weights import joined_parts, near_matches
from f3rm.errors import FeatureTypeError

Value = TypeVar("Value")

SettingValue = str | int | tuple[int, int] | tuple[float, ...]

_PART = re.compile(r"(?P<name>[^\[\]+]*)(?:\[(?P<settings>[^\[\]]*)\])?")


def split_type(text: str) -> list[tuple[str, dict[str, SettingValue]]]:
    """Splits a feature type into names and the fields that their settings change.

    Args:
        text: A type as a user writes it.

    Returns:
        Upper-case names, and fields of :class:`~f3rm.store.spec.FeatureSpec`.

    Raises:
        FeatureTypeError: If brackets or settings are malformed.
        TapError: If a tap is malformed.
    """
    parts: list[tuple[str, dict[str, SettingValue]]] = []
    for word in text.split("+"):
        found = _PART.fullmatch(word.strip())
        if found is None:
            raise FeatureTypeError(
                f"--feature-type: a type must look like CLIP or CLIP[window=336,224], got {word!r}."
            )
        settings = (found["settings"] or "").split(";")
        changes = dict(_setting(setting) for setting in settings if setting.strip())
        parts.append((found["name"].strip().upper(), changes))
    return parts


def parse_weights(weights: Mapping[str, str] | Sequence[str]) -> Mapping[str, str]:
    """Parses entries like ``CLIP=PATH``; a mapping is returned as it is.

    Raises:
        FeatureTypeError: If an entry is malformed.
    """
    if isinstance(weights, Mapping):
        return weights
    parsed: dict[str, str] = {}
    for entry in weights:
        name, separator, value = entry.partition("=")
        if not (name and separator and value):
            raise FeatureTypeError(
                f"--weights must look like CLIP=PATH, got {entry!r}. Name the type they are for."
            )
        parsed[name] = value
    return parsed


def by_type(option: str, values: Mapping[str, Value], parts: Sequence[str]) -> dict[str, Value]:
    """Returns an option's values by upper-case type.

    Args:
        option: Name of the option, for the message.
        values: Values by type, in any case.
        parts: Types in use.

    Raises:
        FeatureTypeError: If a value is given for a type that is not in use.
    """
    chosen = {name.strip().upper(): value for name, value in values.items()}
    for name in chosen:
        if name not in parts:
            raise FeatureTypeError(
                f"{option} must name one of the types in use, "
                f"{', '.join(parts)}, got {name!r}. {suggestion(name, list(parts))}"
            )
    return chosen


def suggestion(name: str, known: Sequence[str]) -> str:
    """Returns a sentence with the known names closest to a wrong one."""
    near = difflib.get_close_matches(name, known, n=3, cutoff=0.4)
    return f"Did you mean {' or '.join(near)}?" if near else "Choose one of these."


def absolute_if_local(weights: str) -> str:
    """Makes local paths absolute, so that a saved run finds them; keeps the names of weights."""
    return ",".join(_absolute(part) for part in joined_parts(weights))


def _absolute(weights: str) -> str:
    path = Path(weights).expanduser()
    return str(path.absolute()) if path.exists() else weights


def _setting(text: str) -> tuple[str, SettingValue]:
    key, _, value = (word.strip() for word in text.partition("="))
    if key not in _SETTINGS:
        raise FeatureTypeError(
            f"--feature-type: there is no setting {key!r}; {near_matches(key, _SETTINGS)}"
        )
    field, read, meaning = _SETTINGS[key]
    try:
        return field, read(value)
    except ValueError as error:
        raise FeatureTypeError(
            f"--feature-type: {key} must be {meaning}, got {value!r}. Write e.g. "
            "CLIP[window=336,224;scales=0.75,1]."
        ) from error


def _window(value: str) -> tuple[int, int]:
    side, step = (int(number) for number in value.split(","))
    return side, step


def _scales(value: str) -> tuple[float, ...]:
    return tuple(float(number) for number in value.split(","))


_SETTINGS: Mapping[str, tuple[str, Callable[[str], SettingValue], str]] = {
    "tap": ("tap", lambda value: str(Tap.parse(value)), "a tap"),
    "side": ("short_side", int, "a whole number of pixels"),
    "window": ("window", _window, "a side and a step in pixels"),
    "scales": ("scales", _scales, "factors"),
}
"""Name in brackets -> field of the specification, its parser, its meaning in messages."""
