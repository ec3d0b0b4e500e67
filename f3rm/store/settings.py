"""Settings that a person writes: in YAML files, and in brackets after the name of a feature type.

With YAML aliases a file of a few lines can expand to more values than memory holds, or contain
itself. A file that passes here is no larger than a person's specification, aliases expanded.

``DINO+CLIP[tap=-1|dense(nacclip);window=336,224]`` is DINO with its defaults, and CLIP with another
dense rule and in windows. Settings are ``tap``, ``side`` (length of the shorter image side in
pixels), ``window`` (side and step in pixels), ``scales`` (factors whose maps are averaged) and
``pyramid`` (factors that get a head each, of which the best one answers a prompt).
"""

import difflib
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import is_dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args, get_origin, get_type_hints

import msgspec
import yaml

from f3rm.backbones.taps import Tap
from f3rm.backbones.weights import joined_parts, near_matches
from f3rm.errors import F3rmError, FeatureTypeError, StrPath, as_path

Settings = TypeVar("Settings")
Value = TypeVar("Value")

PYRAMID = "pyramid"
"""The setting that makes a specification per scale; no field of one."""

SettingValue = int | tuple[str] | tuple[int, int] | tuple[float, ...]

_LARGEST_FILE = 1 << 20
_MOST_VALUES = 10_000
_DEEPEST = 32
_PART = re.compile(r"(?P<name>[^\[\]+]*)(?:\[(?P<settings>[^\[\]]*)\])?")

# PyYAML raises these besides its own error: on bad numbers and dates, and on deep nesting.
_UNREADABLE = (ValueError, LookupError, TypeError, AttributeError, ArithmeticError, RecursionError)


def check_settings(owner: type, values: Mapping[str, object], error: type[F3rmError]) -> None:
    """Checks the names of settings, and the values of those that are one of several words.

    Args:
        owner: The dataclass of the settings; fields of a ``Literal`` type take only its words, and
            fields of a dataclass may be mappings of its settings.
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
        if isinstance(value, Mapping) and is_dataclass(types[name]):
            check_settings(types[name], value, error)


def settings_of(
    owner: type[Settings], values: Mapping[str, object], error: type[F3rmError]
) -> Settings:
    """Makes a dataclass of YAML's or JSON's values; missing ones have their defaults.

    Args:
        owner: The dataclass.
        values: The settings by name.
        error: The class of the error to raise.

    Raises:
        F3rmError: Of the class ``error``, if a name is unknown or a value has the wrong kind.
    """
    check_settings(owner, values, error)
    try:
        return msgspec.convert(values, owner)
    except (msgspec.ValidationError, UnicodeError) as wrong:  # YAML can hold half a letter
        raise error(f"{owner.__name__}: {wrong}.") from wrong


def read_settings(path: StrPath, error: type[F3rmError]) -> Mapping[str, Any]:
    """Reads a YAML or JSON file whose content is a mapping; nothing in it is executed.

    Args:
        path: The file.
        error: The class of the error to raise.

    Raises:
        F3rmError: Of the class ``error``, if it cannot be read, or holds something else, or its
            values are too many or too deep.
    """
    path = as_path(path)
    try:
        if path.stat().st_size > _LARGEST_FILE:
            raise ValueError(f"it has more than {_LARGEST_FILE} bytes")
        plain = _bounded_yaml(path.read_text(encoding="utf-8"))
    except FileNotFoundError as missing:
        raise error(f"No such file: {str(path)!r}.") from missing
    except (OSError, ValueError) as wrong:
        raise error(f"{str(path)!r} is not readable YAML: {wrong}") from wrong
    if not isinstance(plain, Mapping):
        raise error(
            f"{str(path)!r} must hold settings by name, got a {type(plain).__name__}. See "
            "docs/toolkit.md for an example."
        )
    return plain


def _bounded_yaml(text: str) -> Any:
    try:
        plain = yaml.safe_load(text)
    except (yaml.YAMLError, *_UNREADABLE) as wrong:
        raise ValueError(str(wrong) or type(wrong).__name__) from wrong
    waiting, seen = [(plain, 0)], 0
    while waiting:  # a list, not recursion: an alias may contain itself
        value, depth = waiting.pop()
        seen += 1
        if depth > _DEEPEST or seen > _MOST_VALUES:
            raise ValueError(
                f"it holds more than {_MOST_VALUES} values, or more than {_DEEPEST} levels"
            )
        if isinstance(value, dict | list):
            parts = value.values() if isinstance(value, dict) else value
            waiting += [(part, depth + 1) for part in parts]
    return plain


def split_type(text: str) -> list[tuple[str, dict[str, SettingValue]]]:
    """Splits a feature type into names and the fields that their settings change.

    Args:
        text: A type as a user writes it.

    Returns:
        Upper-case names, and fields of :class:`~f3rm.store.spec.FeatureSpec` or of its preparation.

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
    "tap": ("taps", lambda value: (str(Tap.parse(value)),), "a tap"),
    "side": ("size", int, "a whole number of pixels"),
    "window": ("window", _window, "a side and a step in pixels"),
    "scales": ("scales", _scales, "factors"),
    "pyramid": (PYRAMID, _scales, "factors"),
}
"""Name in brackets -> field of the specification or preparation, parser, meaning in messages."""
