"""Named queries of a run: one JSON file beside its config.yml, replaced as a whole."""

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, NoReturn, get_args

import torch

from f3rm.errors import F3rmError
from f3rm.language.active_query import DisplaySettings, Example, ScoreKind, Several
from f3rm.language.relevancy import Rule
from f3rm.language.text_encoder import QueryText

FILE_NAME = "f3rm_queries.json"

_VERSION = 1


class QueryFileError(F3rmError):
    """The file of named queries cannot be read or written."""


@dataclass(frozen=True)
class NamedQuery:
    """A query with everything that the viewer's panels set.

    Attributes:
        text: The typed words, without the canonical negatives.
        canonical: Whether the canonical negatives are added.
        head: Name of the head.
        settings: How scores are computed and shown.
        examples: Points and images.
    """

    text: QueryText
    canonical: bool
    head: str
    settings: DisplaySettings
    examples: tuple[Example, ...]


class QueryFile:
    """The named queries of a run.

    Args:
        folder: The run's folder.
    """

    def __init__(self, folder: Path) -> None:
        self.path = folder / FILE_NAME

    def read(self) -> dict[str, NamedQuery]:
        """Returns the queries by name; none where nothing was saved yet.

        Raises:
            QueryFileError: If the file is damaged or was written by another version.
        """
        try:
            content = json.loads(self.path.read_text(encoding="utf-8"))
            if content["version"] != _VERSION:
                self._refuse(f"version {content['version']!r}")
            return {name: _query(plain) for name, plain in content["queries"].items()}
        except FileNotFoundError:
            return {}
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            self._refuse(f"{type(error).__name__}: {error}", error)

    def save(self, name: str, query: NamedQuery) -> None:
        """Adds a query, or replaces the one of that name.

        Raises:
            QueryFileError: If the name is empty, or the file cannot be read or written.
        """
        if not name.strip():
            msg = "A saved query needs a name. Type one first."
            raise QueryFileError(msg)
        self._write({**self.read(), name.strip(): query})

    def delete(self, name: str) -> None:
        """Removes a query; one that is not there is no error.

        Raises:
            QueryFileError: If the file cannot be read or written.
        """
        self._write({other: query for other, query in self.read().items() if other != name})

    def _write(self, queries: Mapping[str, NamedQuery]) -> None:
        plain = {name: _plain(query) for name, query in queries.items()}
        text = json.dumps({"version": _VERSION, "queries": plain}, indent=1)
        beside = self.path.with_suffix(".json.tmp")
        try:
            beside.write_text(text, encoding="utf-8")
            beside.replace(self.path)
        except OSError as error:
            msg = f"The query was not saved: {error}. Make the run's folder writable."
            raise QueryFileError(msg) from error

    def _refuse(self, found: str, error: Exception | None = None) -> NoReturn:
        msg = (
            f"{str(self.path)!r} is not a file of saved queries (found {found}). Move it away to "
            "start with an empty one."
        )
        raise QueryFileError(msg) from error


def _plain(query: NamedQuery) -> dict[str, Any]:
    return {
        "text": asdict(query.text),
        "canonical": query.canonical,
        "head": query.head,
        "look": asdict(query.settings),
        "examples": [
            {
                "label": example.label,
                "is_positive": example.is_positive,
                "features": {name: f.tolist() for name, f in example.features.items()},
            }
            for example in query.examples
        ],
    }


def _query(plain: Mapping[str, Any]) -> NamedQuery:
    text = plain["text"]
    return NamedQuery(
        text=QueryText(str(text["positives"]), str(text["negatives"]), float(text["temperature"])),
        canonical=bool(plain["canonical"]),
        head=str(plain["head"]),
        settings=_settings(plain["look"]),
        examples=tuple(_example(example) for example in plain["examples"]),
    )


def _settings(plain: Mapping[str, Any]) -> DisplaySettings:
    known = {field.name for field in fields(DisplaySettings)}
    found = DisplaySettings(**{name: value for name, value in plain.items() if name in known})
    numbers = [found.temperature, found.low, found.high]
    numbers += [] if found.threshold is None else [found.threshold]
    if not all(isinstance(number, int | float) and math.isfinite(number) for number in numbers):
        msg = f"temperature, scale and threshold {numbers}"
        raise ValueError(msg)
    chosen = (found.several, Several), (found.score, ScoreKind), (found.rule, Rule)
    for value, choices in chosen:
        if value not in get_args(choices):
            raise ValueError(f"the setting {value!r}")
    return found


def _example(plain: Mapping[str, Any]) -> Example:
    features = {
        str(name): torch.tensor([float(value) for value in values])
        for name, values in plain["features"].items()
    }
    return Example(str(plain["label"]), bool(plain["is_positive"]), features)
