"""The operations of a tap: what they are called, what they take and what they give.

This module knows no tensors; :mod:`f3rm.backbones.tap_values` computes.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from f3rm.backbones.weights import near_matches
from f3rm.errors import TapError

Argument = int | tuple[int, int] | str
"""A number, a height and a width written ``3x5``, or a name."""

Form = Literal["map", "tokens", "vector", "matrix"]
"""Axes of what a tap gives; :mod:`f3rm.backbones.taps` has a table."""

_OPERATION = re.compile(r"(?P<name>\w+)(?:\((?P<arguments>[^()]*)\))?")
_PAIR = re.compile(r"(\d+)x(\d+)")


@dataclass(frozen=True)
class OpRule:
    """What an operation takes and gives.

    Attributes:
        arguments: Fewest and most arguments.
        takes: Forms that it works on.
        gives: The form of the result; None if it stays.
    """

    arguments: tuple[int, int]
    takes: tuple[Form, ...]
    gives: Form | None = None


_VALUES: tuple[Form, ...] = ("map", "tokens", "vector")
OP_RULES: Mapping[str, OpRule] = {
    "norm": OpRule((0, 0), _VALUES),
    "proj": OpRule((0, 0), _VALUES),
    "dense": OpRule((1, 1), ("map",)),
    "heads": OpRule((0, 0), _VALUES),
    "l2": OpRule((0, 0), _VALUES),
    "avg": OpRule((1, 3), ("map",)),
    "max": OpRule((1, 3), ("map",)),
    "adaptive_avg": OpRule((1, 2), ("map",)),
    "adaptive_max": OpRule((1, 2), ("map",)),
    "mean": OpRule((0, 0), ("map", "tokens"), "vector"),
    "amax": OpRule((0, 0), ("map", "tokens"), "vector"),
    "flatten": OpRule((0, 0), _VALUES, "vector"),
}
MODEL_OPS = ("norm", "proj", "dense")
"""Operations that use a model's own weights, so that not every layer of every model has them."""

WINDOWED_OPS = ("avg", "max", "adaptive_avg", "adaptive_max")
"""Operations that pool a map to a smaller map."""


@dataclass(frozen=True)
class Op:
    """An operation of a tap.

    Attributes:
        name: ``norm`` (the model's last norm), ``proj`` (its projection), ``dense(rule)`` (a
            last-block rule of dense CLIP), ``heads`` (channels to (heads, C / heads)), ``l2`` (unit
            length), ``avg(kernel, stride, padding)``, ``max(...)``, ``adaptive_avg(rows, cols)``,
            ``adaptive_max(...)``, ``mean``, ``amax`` (over all positions) or ``flatten``.
        arguments: Its arguments, in order.
    """

    name: str
    arguments: tuple[Argument, ...] = ()

    def __post_init__(self) -> None:
        rule = OP_RULES.get(self.name)
        if rule is None:
            msg = f"Tap: there is no operation {self.name!r}; {near_matches(self.name, OP_RULES)}"
            raise TapError(msg)
        fewest, most = rule.arguments
        if not fewest <= len(self.arguments) <= most:
            wanted = f"{fewest}" if fewest == most else f"{fewest} to {most}"
            msg = (
                f"Tap: {self.name} must have {wanted} arguments, got {len(self.arguments)} in "
                f"{str(self)!r}. Write e.g. {_EXAMPLES.get(self.name, self.name)}."
            )
            raise TapError(msg)
        self._check_arguments()

    @classmethod
    def parse(cls, text: str) -> "Op":
        """Reads one operation, such as ``avg(8,3,0)``.

        Raises:
            TapError: If it is malformed.
        """
        found = _OPERATION.fullmatch(text.strip())
        if found is None:
            msg = f"Tap: an operation must look like mean or avg(8,3,0), got {text!r}. Rewrite it."
            raise TapError(msg)
        words = (found["arguments"] or "").split(",")
        arguments = tuple(_argument(word.strip()) for word in words if word.strip())
        return cls(found["name"], arguments)

    def __str__(self) -> str:
        if not self.arguments:
            return self.name
        words = (f"{a[0]}x{a[1]}" if isinstance(a, tuple) else str(a) for a in self.arguments)
        return f"{self.name}({','.join(words)})"

    def pairs(self) -> tuple[tuple[int, int], ...]:
        """Returns numeric arguments as (height, width) each."""
        numbers = (a for a in self.arguments if not isinstance(a, str))
        return tuple(a if isinstance(a, tuple) else (a, a) for a in numbers)

    def window(self) -> tuple[tuple[int, int], tuple[int, int], tuple[int, int]]:
        """Returns kernel, stride and padding of ``avg`` and ``max``, as (height, width) each.

        As in torch, the stride is the kernel and the padding none unless given.
        """
        kernel, *rest = self.pairs()
        return kernel, rest[0] if rest else kernel, rest[1] if len(rest) > 1 else (0, 0)

    def _check_arguments(self) -> None:
        is_name = [isinstance(a, str) for a in self.arguments]
        if self.name == "dense":
            valid = all(is_name)
        elif self.name in ("avg", "max"):
            valid = not any(is_name) and _is_window(*self.window())
        else:
            valid = not any(is_name) and all(min(pair) >= 1 for pair in self.pairs())
        if not valid:
            msg = (
                f"Tap: the arguments of {self.name} must be {_MEANINGS.get(self.name, 'none')}, "
                f"got {str(self)!r}. Write e.g. {_EXAMPLES.get(self.name, self.name)}."
            )
            raise TapError(msg)


_EXAMPLES = {
    "dense": "dense(maskclip)",
    "avg": "avg(8,3,0)",
    "max": "max(8,3,0)",
    "adaptive_avg": "adaptive_avg(2,2)",
    "adaptive_max": "adaptive_max(2,2)",
}
_MEANINGS = {
    "dense": "the name of a rule",
    "avg": "kernel, stride and padding (at most half the kernel) in cells",
    "max": "kernel, stride and padding (at most half the kernel) in cells",
    "adaptive_avg": "rows and cols, at least 1",
    "adaptive_max": "rows and cols, at least 1",
}


def _argument(word: str) -> Argument:
    pair = _PAIR.fullmatch(word)
    if pair is not None:
        return int(pair[1]), int(pair[2])
    return int(word) if word.isdecimal() else word


def _is_window(kernel: tuple[int, int], stride: tuple[int, int], padding: tuple[int, int]) -> bool:
    """Returns whether torch's pooling accepts them."""
    fits = all(2 * pad <= size for pad, size in zip(padding, kernel, strict=True))
    return min(kernel) >= 1 and min(stride) >= 1 and fits
