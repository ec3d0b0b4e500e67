"""Queries of several phrases: ``red mug or (bowl and not blue)``, ``mug > handle``.

``and``, ``or`` and ``not`` are operators, ``>`` leads from an object to its part, ``;`` separates
questions, and quotation marks keep a phrase as it is: ``"black and white ball"``. Scores are
relevancies in [0, 1]: ``and`` is the smallest, ``or`` the largest, ``not`` one minus.

*Source:* fuzzy logic with minimum and maximum (Zadeh, 1965); conditional queries for parts follow
LERF-TOGO (Rashid et al., 2023).
"""

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import reduce
from itertools import groupby

import torch
from torch import Tensor

from f3rm.errors import F3rmError

_TOKEN = re.compile(r'"[^"]*"|[()>;]|[^\s()>;"]+|"')
_OPERATORS = frozenset(("and", "or", "not"))
_SIGNS = frozenset("()>;")
_DEEPEST = 32
"""Levels of brackets, negations and parts: far more than anyone asks, far fewer than Python's."""
_SHOWN_LETTERS = 200
_LONGEST = 1000
"""Letters of a question: CLIP reads 77 word pieces, about 300 letters, of each phrase."""


class ExpressionError(F3rmError):
    """A question cannot be parsed."""


@dataclass(frozen=True)
class Phrase:
    """A phrase as the text tower reads it."""

    text: str

    def __str__(self) -> str:
        words = {word.lower() for word in self.text.split()}
        return f'"{self.text}"' if words & _OPERATORS or _SIGNS & set(self.text) else self.text


@dataclass(frozen=True)
class Negation:
    """The complement of an expression."""

    of: "Expression"

    def __str__(self) -> str:
        return f"not {_bracketed(self.of)}"


@dataclass(frozen=True)
class Every:
    """The intersection of several expressions."""

    of: tuple["Expression", ...]

    def __str__(self) -> str:
        return " and ".join(_bracketed(part) for part in self.of)


@dataclass(frozen=True)
class Either:
    """The union of several expressions."""

    of: tuple["Expression", ...]

    def __str__(self) -> str:
        return " or ".join(_bracketed(part) for part in self.of)


@dataclass(frozen=True)
class PartOf:
    """A part, where its object is."""

    whole: "Expression"
    part: "Expression"

    def __str__(self) -> str:
        return f"{_bracketed(self.whole)} > {_bracketed(self.part)}"


Expression = Phrase | Negation | Every | Either | PartOf


def _bracketed(expression: Expression) -> str:
    return str(expression) if isinstance(expression, Phrase) else f"({expression})"


def split_questions(text: str) -> list[str]:
    """Splits at semicolons outside quotation marks, strips, and drops what is empty."""
    runs = groupby(_TOKEN.finditer(text), key=lambda token: token[0] == ";")
    pieces: list[str] = []
    for separates, run in runs:
        tokens = list(run)
        if not separates:
            pieces.append(text[tokens[0].start() : tokens[-1].end()])
    return pieces


def parse(text: str) -> Expression:
    """Parses one question.

    Args:
        text: The question, in the syntax of this module.

    Raises:
        ExpressionError: If it is empty or too long, or operators and brackets do not fit.
    """
    if len(text) > _LONGEST:
        msg = (
            f"A question may have {_LONGEST} letters, got {len(text)}: {text[:40]!r}... Name one "
            "object in a few words; semicolons separate several questions."
        )
        raise ExpressionError(msg)
    reader = _Reader(text)
    expression = reader.either()
    reader.end()
    return expression


class _Reader:
    """Parses the tokens of a question from left to right."""

    def __init__(self, text: str) -> None:
        self._text = text
        self._tokens = _TOKEN.findall(text)
        self._next = 0
        self._depth = 0

    def either(self) -> Expression:
        parts = self._separated("or", self._every)
        return parts[0] if len(parts) == 1 else Either(tuple(parts))

    def end(self) -> None:
        if self._next < len(self._tokens):
            raise self._refused(f"{self._tokens[self._next]!r} where it should end")

    def _every(self) -> Expression:
        parts = self._separated("and", self._part)
        return parts[0] if len(parts) == 1 else Every(tuple(parts))

    def _part(self) -> Expression:
        parts = self._separated(">", self._unary)
        if len(parts) > _DEEPEST:
            raise self._refused(f"more than {_DEEPEST} parts of parts")
        return reduce(PartOf, parts)

    def _separated(self, sign: str, read: Callable[[], Expression]) -> list[Expression]:
        parts = [read()]
        while self._take(sign):
            parts.append(read())
        return parts

    def _unary(self) -> Expression:
        self._depth += 1
        if self._depth > _DEEPEST:
            raise self._refused(f"more than {_DEEPEST} levels of brackets and negations")
        try:
            return self._operand()
        finally:
            self._depth -= 1

    def _operand(self) -> Expression:
        if self._take("not"):
            return Negation(self._unary())
        if self._take("("):
            inside = self.either()
            if not self._take(")"):
                raise self._refused("a bracket that is not closed")
            return inside
        words: list[str] = []
        while self._next < len(self._tokens) and self._is_word(self._tokens[self._next]):
            words.append(self._tokens[self._next].strip('"'))
            self._next += 1
        phrase = " ".join(" ".join(words).split())
        if not phrase:
            raise self._refused("nothing where a phrase should be")
        return Phrase(phrase)

    def _is_word(self, token: str) -> bool:
        if token == '"':
            raise self._refused("a quotation mark that is not closed")
        return token not in _SIGNS and token.lower() not in _OPERATORS

    def _take(self, sign: str) -> bool:
        here = self._tokens[self._next].lower() if self._next < len(self._tokens) else None
        self._next += here == sign
        return here == sign

    def _refused(self, found: str) -> ExpressionError:
        long = len(self._text) > _SHOWN_LETTERS
        shown = f"{self._text[:_SHOWN_LETTERS]}..." if long else self._text
        return ExpressionError(
            f"A question must be phrases joined by and, or, not and >, got {shown!r} "
            f'with {found}. Put a phrase that has such words in quotation marks: "black and white".'
        )


def phrases_of(expression: Expression) -> tuple[str, ...]:
    """Returns the phrases of a question, each once, in their order."""
    return tuple(
        dict.fromkeys(node.text for node in _nodes(expression) if isinstance(node, Phrase))
    )


def wholes_of(expression: Expression) -> tuple[Expression, ...]:
    """Returns the left sides of all ``object > part``, innermost first."""
    return tuple(node.whole for node in _nodes(expression) if isinstance(node, PartOf))[::-1]


def _nodes(expression: Expression) -> Iterator[Expression]:
    yield expression
    match expression:
        case Phrase():
            return
        case Negation(of=inner):
            yield from _nodes(inner)
        case Every(of=parts) | Either(of=parts):
            for part in parts:
                yield from _nodes(part)
        case PartOf(whole=whole, part=part):
            yield from _nodes(whole)
            yield from _nodes(part)


def combined(
    expression: Expression,
    scores: Callable[[str], Tensor],
    threshold: Callable[[Expression], float],
) -> Tensor:
    """Scores a question.

    Args:
        expression: The question.
        scores: Relevancy of a phrase, tensors of one shape.
        threshold: Score threshold for the left side of ``object > part``; parts elsewhere score 0.

    Returns:
        Scores of the same shape.
    """
    match expression:
        case Phrase(text=text):
            return scores(text)
        case Negation(of=inner):
            return 1 - combined(inner, scores, threshold)
        case Every(of=parts):
            return reduce(torch.minimum, [combined(part, scores, threshold) for part in parts])
        case Either(of=parts):
            return reduce(torch.maximum, [combined(part, scores, threshold) for part in parts])
        case PartOf(whole=whole, part=part):
            there = combined(whole, scores, threshold) >= threshold(whole)
            return combined(part, scores, threshold) * there
