"""Taps: one small expression for what is read out of a model, and where.

``layer[:facet][@select][|operation[(arguments)]]*``, for example ``-1|dense(maskclip)``,
``-1:query@all``, ``final@all|proj``, ``res4|avg(8,3,0)|flatten`` or ``head``. The expression is the
name of what it gives: nothing else is needed to tell two taps of one layer apart.

What a tap gives, batch first and channels last (B images, C channels):

==============  =====================================================================
``@patch``      a map (B, rows, cols, C); the default, and what convolutions give
``@all``        tokens (B, N, C): class token, registers, then patches row by row
``@reg``        tokens (B, R, C): the registers
``@cls``        a vector (B, C): the class token; of the facet ``attn`` a map
                (B, rows, cols, heads): how much it attends to each patch
layer ``head``  a vector (B, C), as every layer of the kind ``vector``
``attn``        with ``@all`` and ``@patch`` a matrix (B, heads, N, N), queries first
==============  =====================================================================

This module knows no tensors; :mod:`f3rm.backbones.tap_values` computes.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, TypeVar, get_args

from f3rm.backbones.tap_ops import MODEL_OPS, OP_RULES, WINDOWED_OPS, Form, Op
from f3rm.backbones.weights import near_matches
from f3rm.errors import TapError

__all__ = ["Facet", "Form", "Op", "Select", "Tap", "parse_taps"]

Facet = Literal["token", "attn_out", "mlp_out", "query", "key", "value", "attn"]
"""Which quantity of a transformer block: the residual stream after it, what its attention or its
MLP adds to the stream, its queries, keys and values (before scaling, heads side by side), or its
attention weights."""

Select = Literal["patch", "all", "cls", "reg"]
"""Which tokens."""

_Word = TypeVar("_Word", bound=str)

_TAP = re.compile(
    r"(?P<layer>-?[A-Za-z0-9_./]+)(?::(?P<facet>\w+))?(?:@(?P<select>\w+))?(?P<rest>(?:\|.*)?)"
)
_HEADED: tuple[Facet, ...] = ("query", "key", "value")


@dataclass(frozen=True)
class Tap:
    """What to read out of a model; see the module's text for the expression and the results.

    Attributes:
        layer: ``11`` or ``-1`` (blocks of a transformer), ``embed``, ``final`` (after the last
            norm), ``head``, ``res4``, or another name that the backbone's ``layers()`` lists.
        facet: Which quantity of the layer.
        select: Which tokens.
        ops: What is done with them on the device, in order.
    """

    layer: str
    facet: Facet = "token"
    select: Select = "patch"
    ops: tuple[Op, ...] = ()

    def __post_init__(self) -> None:
        parsed = _TAP.fullmatch(self.layer)
        if parsed is None or parsed["layer"] != self.layer:
            msg = (
                "Tap: layer must be made of letters, digits, '_', '.', '/' and a leading '-', got "
                f"{self.layer!r}. f3rm layers lists the layers of a model."
            )
            raise TapError(msg)
        _known("facet", self.facet, get_args(Facet))
        _known("select", self.select, get_args(Select))
        self._check_facet()
        self._check_dense()
        self.form("tokens")

    @classmethod
    def parse(cls, text: str) -> "Tap":
        """Reads a tap expression.

        Args:
            text: Such as ``"-1:query@all"``; spaces around ``|`` and arguments are ignored.

        Raises:
            TapError: If it is malformed, or names an unknown facet, selection or operation.
        """
        found = _TAP.fullmatch(text.strip().replace(" ", ""))
        if found is None:
            msg = (
                "Tap: a tap must look like layer[:facet][@select][|operation]..., got "
                f"{text!r}. Write e.g. -1:query@all or res4|avg(8,3,0)."
            )
            raise TapError(msg)
        facet = _known("facet", found["facet"] or "token", get_args(Facet))
        select = _known("select", found["select"] or "patch", get_args(Select))
        words = found["rest"].split("|")[1:]
        return cls(found["layer"], facet, select, tuple(Op.parse(word) for word in words))

    def __str__(self) -> str:
        facet = "" if self.facet == "token" else f":{self.facet}"
        select = "" if self.select == "patch" else f"@{self.select}"
        return "|".join([f"{self.layer}{facet}{select}", *map(str, self.ops)])

    def form(self, kind: Form) -> Form:
        """Returns the axes of the result.

        Args:
            kind: What the layer gives: ``tokens`` of a transformer, a ``map``, or a ``vector``.

        Raises:
            TapError: If an operation cannot work on what it gets.
        """
        form = self.read_form(kind)
        done = False
        for op in self.ops:
            rule = OP_RULES[op.name]
            if form not in rule.takes or (done and op.name != "l2"):
                have = "flattened vector" if done else form
                msg = (
                    f"Tap: {op.name} must follow a {' or '.join(rule.takes)}, got a {have} in "
                    f"{str(self)!r}. Take it out, or put it earlier."
                )
                raise TapError(msg)
            form = rule.gives or form
            done = done or op.name == "flatten"
        return form

    def read_form(self, kind: Form) -> Form:
        """Returns the axes before the operations; arguments and errors as of :meth:`form`."""
        if kind != "tokens":
            if self.select != "patch" or self.facet != "token":
                msg = (
                    f"Tap: {self.layer} gives a {kind}, which has no tokens to choose from, got "
                    f"{str(self)!r}. Leave out the facet and the @{self.select}."
                )
                raise TapError(msg)
            return kind
        if self.facet == "attn":
            return "map" if self.select == "cls" else "matrix"
        forms: Mapping[Select, Form] = {"patch": "map", "cls": "vector"}
        return forms.get(self.select, "tokens")

    def _check_facet(self) -> None:
        if self.facet == "attn" and self.select == "reg":
            msg = (
                f"Tap: attn must be @cls, @patch or @all, got {str(self)!r}. Read @all and take "
                "the registers' rows."
            )
            raise TapError(msg)
        for op in self.ops:
            if op.name in MODEL_OPS and self.facet != "token":
                msg = (
                    f"Tap: {op.name} must be used on the facet token, got {self.facet!r} in "
                    f"{str(self)!r}. Leave out {op.name} or :{self.facet}."
                )
                raise TapError(msg)
        names = [op.name for op in self.ops]
        if "heads" in names and (
            self.facet not in _HEADED
            or names[0] != "heads"
            or names.count("heads") > 1
            or set(names) & set(WINDOWED_OPS)
        ):
            msg = (
                "Tap: heads must come first, once, after query, key or value, and without pooling "
                f"windows, got {str(self)!r}. Write e.g. -1:key|heads."
            )
            raise TapError(msg)

    def _check_dense(self) -> None:
        names = [op.name for op in self.ops]
        if "dense" in names and (
            names[0] != "dense"
            or names.count("dense") > 1
            or set(names) & {"norm", "proj"}
            or self.select != "patch"
        ):
            msg = (
                "Tap: dense must come first, once, on patches, and without norm and proj (it does "
                f"both), got {str(self)!r}. Write e.g. -1|dense(maskclip)."
            )
            raise TapError(msg)


def parse_taps(taps: Sequence["Tap | str"]) -> tuple[Tap, ...]:
    """Reads several taps; what is a :class:`Tap` already stays.

    Raises:
        TapError: If one is malformed.
    """
    return tuple(tap if isinstance(tap, Tap) else Tap.parse(tap) for tap in taps)


def _known(what: str, word: str, known: tuple[_Word, ...]) -> _Word:
    for candidate in known:
        if candidate == word:
            return candidate
    raise TapError(f"Tap: there is no {what} {word!r}; {near_matches(word, known)}")
