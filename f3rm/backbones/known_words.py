"""The words of a text tower that knows few, read from a file beside its weights.

A line of ``vocabulary.txt`` is a kind, a word and its synonyms: ``colour turquoise cyan teal``.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

FILE_NAME = "vocabulary.txt"

_NEUTRAL = ("canonical", "template")
"""Kinds whose words describe no object: "things", "a photo of"."""


@dataclass(frozen=True)
class KnownWords:
    """All words that a text tower was trained on, in lower case.

    Attributes:
        kinds: Groups of synonyms by kind (``colour``, ``shape``, ...). Groups of one kind exclude
            each other: what is red is not blue.
        neutral: Words that may be said and describe no object.
    """

    kinds: Mapping[str, tuple[tuple[str, ...], ...]]
    neutral: frozenset[str] = frozenset()

    @property
    def all(self) -> frozenset[str]:
        """Every known word."""
        groups = [group for kind in self.kinds.values() for group in kind]
        return self.neutral.union(*groups)


def read_known_words(folder: Path | None) -> KnownWords | None:
    """Reads the words of the model in a folder; None where no file lists them.

    Args:
        folder: The folder of the weights; None for weights that are elsewhere.
    """
    file = None if folder is None else folder / FILE_NAME
    if file is None or not file.is_file():
        return None
    kinds: dict[str, tuple[tuple[str, ...], ...]] = {}
    neutral: set[str] = set()
    for line in file.read_text(encoding="utf-8").splitlines():
        kind, *words = line.split() or ("",)
        if kind in _NEUTRAL:
            neutral.update(words)
        elif words:
            kinds[kind] = (*kinds.get(kind, ()), tuple(words))
    return KnownWords(kinds, frozenset(neutral))
