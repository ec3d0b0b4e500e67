"""Taps: one small expression for what is read out of a model, and where.

``layer[:facet][@select][|operation[(arguments)]]*``, for example ``-1|dense(maskclip)``,
``-1:query@all``, ``final@all|proj``, ``res4|avg(8,3,0)|flatten`` or ``head``. The expression is
also the name of its result: two taps of one layer differ in it.

Results, batch first and channels last (B images, C channels):

==============  =====================================================================
``@patch``      a map (B, rows, cols, C); the default, and what convolutions give
``@all``        tokens (B, N, C): class token, registers, then patches row by row
``@reg``        tokens (B, R, C): the registers
``@cls``        a vector (B, C): the class token; of the facet ``attn`` a map
                (B, rows, cols, heads): how much it attends to each patch
layer ``head``  a vector (B, C), as every layer of the kind ``vector``
``attn``        with ``@all`` and ``@patch`` a matrix (B, heads, N, N), queries first
==============  =====================================================================

No tensors here: :mod:`f3rm.backbones.tap_values` computes.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, TypeVar, get_args

from f3rm.backbones.weights import near_matches
from f3rm.errors import TapError

Facet = Literal["token", "attn_out", "mlp_out", "query", "key", "value", "attn"]
"""A quantity of a transformer block: the residual stream after it (``token``), what its attention
or its MLP adds to the stream, its queries, keys and values (before scaling, heads side by side), or
its attention weights."""

Select = Literal["patch", "all", "cls", "reg"]
"""Which tokens."""

Form = Literal["map", "tokens", "vector", "matrix"]
"""Axes of a tap's result; the table above has the shapes."""

Argument = int | tuple[int, int] | str
"""A number, a height and a width written ``3x5``, or a name."""

_Word = TypeVar("_Word", bound=str)

_TAP = re.compile(
    r"(?P<layer>-?[A-Za-z0-9_./]+)(?::(?P<facet>\w+))?(?:@(?P<select>\w+))?(?P<rest>(?:\|.*)?)"
)
_OPERATION = re.compile(r"(?P<name>\w+)(?:\((?P<arguments>[^()]*)\))?")
_PAIR = re.compile(r"(\d+)x(\d+)")
_HEADED: tuple[Facet, ...] = ("query", "key", "value")
_VALUES: tuple[Form, ...] = ("map", "tokens", "vector")
_WINDOW = "kernel, stride and padding (at most half the kernel) in cells"
_SIDES = "rows and cols, at least 1"


@dataclass(frozen=True)
class OpRule:
    """An operation's input, output and arguments.

    Attributes:
        takes: Forms that it works on.
        gives: The form of the result; None if it stays.
        arguments: Fewest and most arguments.
        meaning: The arguments in words, for messages.
        example: How it is written.
    """

    takes: tuple[Form, ...]
    gives: Form | None = None
    arguments: tuple[int, int] = (0, 0)
    meaning: str = "none"
    example: str = ""


OP_RULES: Mapping[str, OpRule] = {
    "norm": OpRule(_VALUES),
    "proj": OpRule(_VALUES),
    "dense": OpRule(("map",), None, (1, 1), "the name of a rule", "dense(maskclip)"),
    "heads": OpRule(_VALUES),
    "l2": OpRule(_VALUES),
    "avg": OpRule(("map",), None, (1, 3), _WINDOW, "avg(8,3,0)"),
    "max": OpRule(("map",), None, (1, 3), _WINDOW, "max(8,3,0)"),
    "adaptive_avg": OpRule(("map",), None, (1, 2), _SIDES, "adaptive_avg(2,2)"),
    "adaptive_max": OpRule(("map",), None, (1, 2), _SIDES, "adaptive_max(2,2)"),
    "mean": OpRule(("map", "tokens"), "vector"),
    "amax": OpRule(("map", "tokens"), "vector"),
    "flatten": OpRule(_VALUES, "vector"),
}
MODEL_OPS = ("norm", "proj", "dense")
"""Operations with a model's own weights, so that not every layer of every model has them."""

_WINDOWED_OPS = {"avg", "max", "adaptive_avg", "adaptive_max"}


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
            msg = f"There is no operation {self.name!r}; {near_matches(self.name, OP_RULES)}"
            raise TapError(msg)
        fewest, most = rule.arguments
        if not fewest <= len(self.arguments) <= most:
            wanted = f"{fewest}" if fewest == most else f"{fewest} to {most}"
            problem = f"{self.name} must have {wanted} arguments, got {len(self.arguments)} in"
        elif not self._has_valid_arguments():
            problem = f"The arguments of {self.name} must be {rule.meaning}, got"
        else:
            return
        raise TapError(f"{problem} {str(self)!r}. Write e.g. {rule.example or self.name}.")

    @classmethod
    def parse(cls, text: str) -> "Op":
        """Reads one operation, such as ``avg(8,3,0)``.

        Raises:
            TapError: If it is malformed.
        """
        found = _OPERATION.fullmatch(text.strip())
        if found is None:
            msg = f"An operation must look like mean or avg(8,3,0), got {text!r}. Rewrite it."
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

    def _has_valid_arguments(self) -> bool:
        if self.name == "dense":
            return isinstance(self.arguments[0], str)
        if any(isinstance(a, str) for a in self.arguments):
            return False
        if self.name not in ("avg", "max"):
            return all(min(pair) >= 1 for pair in self.pairs())
        kernel, stride, padding = self.window()
        # torch's pooling refuses a padding of more than half the kernel, deep inside the run.
        fits = all(2 * pad <= size for pad, size in zip(padding, kernel, strict=True))
        return min(kernel) >= 1 and min(stride) >= 1 and fits


def _argument(word: str) -> Argument:
    pair = _PAIR.fullmatch(word)
    if pair is not None:
        return int(pair[1]), int(pair[2])
    return int(word) if word.isdecimal() else word


@dataclass(frozen=True)
class Tap:
    """A place in a model to read; see the module's text for the expression and the results.

    Attributes:
        layer: ``11`` or ``-1`` (blocks of a transformer), ``embed``, ``final`` (after the last
            norm), ``head``, ``res4``, or another name that the backbone's ``layers()`` lists.
        facet: Which quantity of the layer.
        select: Which tokens.
        ops: Operations on them, in order, on the model's device.
    """

    layer: str
    facet: Facet = "token"
    select: Select = "patch"
    ops: tuple[Op, ...] = ()

    def __post_init__(self) -> None:
        parsed = _TAP.fullmatch(self.layer)
        if parsed is None or parsed["layer"] != self.layer:
            msg = (
                "A layer must be made of letters, digits, '_', '.', '/' and a leading '-', got "
                f"{self.layer!r}. f3rm layers lists the layers of a model."
            )
            raise TapError(msg)
        _known("facet", self.facet, get_args(Facet))
        _known("select", self.select, get_args(Select))
        self._check_facet()
        self._check_order()
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
                "A tap must look like layer[:facet][@select][|operation]..., got "
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
            kind: The layer's kind: ``tokens`` of a transformer, a ``map``, or a ``vector``.

        Raises:
            TapError: If an operation cannot work on its input.
        """
        form = self.read_form(kind)
        is_flat = False
        for op in self.ops:
            rule = OP_RULES[op.name]
            # A flattened vector has lost its channel axis, so only its length can still change.
            if form not in rule.takes or (is_flat and op.name != "l2"):
                have = "flattened vector" if is_flat else form
                msg = (
                    f"{op.name} must follow a {' or '.join(rule.takes)}, got a {have} in the tap "
                    f"{str(self)!r}. Take it out, or put it earlier."
                )
                raise TapError(msg)
            form = rule.gives or form
            is_flat = is_flat or op.name == "flatten"
        return form

    def read_form(self, kind: Form) -> Form:
        """Returns the axes before the operations; arguments and errors as of :meth:`form`."""
        if kind != "tokens":
            if self.select != "patch" or self.facet != "token":
                msg = (
                    f"The layer {self.layer} gives a {kind}, which has no tokens to choose from, "
                    f"got the tap {str(self)!r}. Leave out the facet and the @{self.select}."
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
                f"The facet attn must be @cls, @patch or @all, got the tap {str(self)!r}. Read "
                "@all and take the registers' rows."
            )
            raise TapError(msg)
        for op in self.ops:
            if op.name in MODEL_OPS and self.facet != "token":
                msg = (
                    f"{op.name} must be used on the facet token, got {self.facet!r} in the tap "
                    f"{str(self)!r}. Leave out {op.name} or :{self.facet}."
                )
                raise TapError(msg)

    def _check_order(self) -> None:
        """Checks ``heads`` and ``dense``, which must come first and exclude other operations."""
        names = [op.name for op in self.ops]
        if "heads" in names and (
            self.facet not in _HEADED
            or names[0] != "heads"
            or names.count("heads") > 1
            or set(names) & _WINDOWED_OPS
        ):
            msg = (
                "heads must come first, once, after query, key or value, and without pooling "
                f"windows, got the tap {str(self)!r}. Write e.g. -1:key|heads."
            )
            raise TapError(msg)
        if "dense" in names and (
            names[0] != "dense"
            or names.count("dense") > 1
            or set(names) & {"norm", "proj"}
            or self.select != "patch"
        ):
            msg = (
                "dense must come first, once, on patches, and without norm and proj (it does "
                f"both), got the tap {str(self)!r}. Write e.g. -1|dense(maskclip)."
            )
            raise TapError(msg)


def parse_taps(taps: Sequence["Tap | str"]) -> tuple[Tap, ...]:
    """Reads several taps; a :class:`Tap` stays as it is.

    Raises:
        TapError: If one is malformed.
    """
    return tuple(tap if isinstance(tap, Tap) else Tap.parse(tap) for tap in taps)


def _known(kind: str, word: str, known: tuple[_Word, ...]) -> _Word:
    for candidate in known:
        if candidate == word:
            return candidate
    raise TapError(f"There is no {kind} {word!r}; {near_matches(word, known)}")
