"""Named queries of a run: one JSON file beside its config.yml, replaced as a whole."""

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, NoReturn, get_args

import torch

from f3rm.errors import F3rmError
from f3rm.language.text_encoder import QueryText
from f3rm.viewer.asked import Example, Look, ScoreKind, Several

FILE_NAME = "f3rm_queries.json"

_VERSION = 1


class QueryFileError(F3rmError):
    """The file of named queries cannot be read or written."""


@dataclass(frozen=True)
class NamedQuery:
    """All that a person has set to ask something.

    Attributes:
        text: The typed words, without the canonical negatives.
        canonical: Whether the canonical negatives are added.
        head: The head that is asked.
        look: How scores are shown.
        examples: Points and images.
    """

    text: QueryText
    canonical: bool
    head: str
    look: Look
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
            msg = f"save: name must not be empty, got {name!r}. Type a name first."
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
            msg = f"save: the run's folder must be writable, got: {error}. The query was not saved."
            raise QueryFileError(msg) from error

    def _refuse(self, found: str, error: Exception | None = None) -> NoReturn:
        msg = (
            f"read: {str(self.path)!r} must be as the viewer wrote it, got {found}. Move it away "
            "to begin anew."
        )
        raise QueryFileError(msg) from error


def _plain(query: NamedQuery) -> dict[str, Any]:
    return {
        "text": asdict(query.text),
        "canonical": query.canonical,
        "head": query.head,
        "look": asdict(query.look),
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
    text, look = plain["text"], plain["look"]
    return NamedQuery(
        text=QueryText(str(text["positives"]), str(text["negatives"]), float(text["temperature"])),
        canonical=bool(plain["canonical"]),
        head=str(plain["head"]),
        look=_look(look),
        examples=tuple(_example(example) for example in plain["examples"]),
    )


def _look(plain: Mapping[str, Any]) -> Look:
    known = {field.name for field in fields(Look)}
    look = Look(**{name: value for name, value in plain.items() if name in known})
    numbers = [look.temperature, look.low, look.high]
    numbers += [] if look.threshold is None else [look.threshold]
    if not all(isinstance(number, int | float) and math.isfinite(number) for number in numbers):
        msg = f"numbers that are none: {numbers}"
        raise ValueError(msg)
    if look.several not in get_args(Several) or look.score not in get_args(ScoreKind):
        msg = f"{look.several!r} and {look.score!r}"
        raise ValueError(msg)
    return look


def _example(plain: Mapping[str, Any]) -> Example:
    features = {
        str(name): torch.tensor([float(value) for value in values])
        for name, values in plain["features"].items()
    }
    return Example(str(plain["label"]), bool(plain["is_positive"]), features)
