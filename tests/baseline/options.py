"""The options of every command, and the configurations that ns-train starts from."""

import copy
import importlib
import re
import warnings
from argparse import Action
from collections.abc import Iterator, Mapping
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

import tyro
import yaml

from f3rm.f3rm_config import f3rm_big_method, f3rm_lite_method, f3rm_method
from f3rm.scripts import cli, extract_features_standalone

METHODS = (f3rm_method, f3rm_lite_method, f3rm_big_method)
DEFAULT = re.compile(r"\((?:default: (?P<value>.*)|required)\)$", re.S)


def command_options() -> dict[str, list[str]]:
    """Lists each command's options: names, type or choices, and default; no prose."""
    commands: dict[str, Any] = {
        "extract_features_standalone.py": extract_features_standalone.Extract,
    }
    for name, (where, _) in cli.COMMANDS.items():
        module, _, attribute = where.partition(":")
        commands[f"f3rm {name}"] = getattr(importlib.import_module(module), attribute)
    found: dict[str, list[str]] = {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # tyro's, of get_parser
        for name, command in sorted(commands.items()):
            found.update(_parser_options(name, tyro.extras.get_parser(command, prog=name)))
    return found


def _parser_options(name: str, parser: Any) -> Iterator[tuple[str, list[str]]]:
    positional: list[str] = []
    options: list[str] = []
    for action in parser._actions:
        if isinstance(action.choices, Mapping):
            positional.append(f"COMMAND {'|'.join(action.choices)}")
            for sub, subparser in action.choices.items():
                yield from _parser_options(f"{name} {sub}", subparser)
        elif action.dest != "help":
            rows = options if action.option_strings else positional
            rows.append(_option(action))
    yield name, [*positional, *sorted(options)]


def _option(action: Action) -> str:
    names = "|".join(action.option_strings) or f"<{action.dest}>"
    match = DEFAULT.search(action.help or "")
    assert match is not None, f"tyro says neither a default nor that {names} is required"
    value = "required" if match["value"] is None else f"= {match['value']}"
    return " ".join(filter(None, (names, str(action.metavar or ""), value)))


def training_options() -> dict[str, dict[str, str]]:
    """Lists every value of ns-train's f3rm, and what differs in the other methods."""
    base, *others = (dict(_values(method.config)) for method in METHODS)
    found = {"f3rm": base}
    for method, values in zip(METHODS[1:], others, strict=True):
        differing = {key: value for key, value in values.items() if base.get(key) != value}
        gone = dict.fromkeys(base.keys() - values.keys(), "is not there")
        found[str(method.config.method_name)] = {**differing, **gone}
    return found


def _values(value: Any, path: str = "") -> Iterator[tuple[str, str]]:
    if is_dataclass(value) and not isinstance(value, type):
        value = {field.name: getattr(value, field.name) for field in fields(value)}
    if isinstance(value, dict) and value:
        for name, inner in value.items():
            yield from _values(inner, f"{path}.{name}" if path else str(name))
    else:
        yield path, _text(value)


def _text(value: Any) -> str:
    if isinstance(value, Path):
        return value.as_posix()
    named = getattr(value, "__name__", None)
    return named if isinstance(named, str) else repr(value)


def run_config() -> str:
    """Returns the ``config.yml`` that training writes, whose classes are named with modules."""
    config = copy.deepcopy(f3rm_lite_method.config)
    config.data = Path("scene")
    return yaml.dump(config)
