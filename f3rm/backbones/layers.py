"""A backbone's layers, and the check that a tap fits them.

Descriptions are enough for both, so that a wrong name fails before an image is decoded.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import get_args

from f3rm.backbones.taps import MODEL_OPS, Facet, Form, Tap
from f3rm.backbones.weights import near_matches
from f3rm.errors import TapError

FACETS: tuple[Facet, ...] = get_args(Facet)

_WITH_REGISTERS = 2  # prefix tokens: a class token and at least one register
_LONGEST_HINT = 300
_LONGEST_LIST = 3


@dataclass(frozen=True)
class LayerInfo:
    """One layer that taps can name.

    Attributes:
        name: As taps write it.
        kind: ``tokens`` of a transformer, a ``map`` or a ``vector``.
        channels: Its channels; for the facet ``attn`` the number of heads counts instead.
        stride: Pixels between neighbouring cells; 0 for vectors.
        facets: Quantities that can be read from it.
        ops: The model's own operations (``norm``, ``proj``, ``dense``) that can follow it.
        prefix_tokens: Tokens before the patches: the class token and registers.
        is_dense_only: Whether ``dense(...)`` is the only way to read it.
    """

    name: str
    kind: Form
    channels: int
    stride: int
    facets: tuple[Facet, ...] = ("token",)
    ops: tuple[str, ...] = ()
    prefix_tokens: int = 0
    is_dense_only: bool = False


def dense_layer(channels: int, stride: int) -> LayerInfo:
    """Describes the only layer of a model that has dense features and nothing else to read."""
    return LayerInfo("-1", "map", channels, stride, ops=("dense",), is_dense_only=True)


def find_layer(layers: Sequence[LayerInfo], tap: Tap) -> LayerInfo:
    """Finds the layer of a tap; negative numbers count the blocks from the last one.

    Raises:
        TapError: If there is no such layer; the message has near matches.
    """
    by_name = {layer.name: layer for layer in layers}
    if tap.layer in by_name:
        return by_name[tap.layer]
    num_blocks = sum(layer.name.isdecimal() for layer in layers)
    if tap.layer.startswith("-") and tap.layer[1:].isdecimal():
        number = str(num_blocks + int(tap.layer))
        if number in by_name:
            return by_name[number]
    if tap.layer.lstrip("-").isdecimal() and num_blocks:
        hint = f"blocks are numbered 0 to {num_blocks - 1}, or -{num_blocks} to -1"
    else:
        hint = near_matches(tap.layer, by_name)
        if len(hint) > _LONGEST_HINT:
            hint = f"this model has {len(layers)} layers, which f3rm layers lists"
    msg = f"There is no layer {tap.layer!r}, got the tap {str(tap)!r}; {hint}"
    raise TapError(msg)


def check_tap(layers: Sequence[LayerInfo], tap: Tap, *, dense_rules: Sequence[str] = ()) -> None:
    """Checks that a model has a tap's layer, facet, tokens and operations.

    Args:
        layers: All layers of the model.
        tap: The tap.
        dense_rules: The rules that ``dense(...)`` may name.

    Raises:
        TapError: If it lacks one of them.
    """
    layer = find_layer(layers, tap)
    tap.form(layer.kind)
    got = f"got the tap {str(tap)!r}"
    problem = ""
    if tap.facet not in layer.facets:
        owners = [each.name for each in layers if tap.facet in each.facets]
        problem = (
            f"The layer {layer.name} has no facet {tap.facet!r}, {got}; it has "
            f"{', '.join(layer.facets)}. {_span(owners)}"
        )
    elif layer.is_dense_only and not (tap.ops and tap.ops[0].name == "dense"):
        problem = (
            f"The layer {layer.name} of this model can be read by a dense rule only, {got}. Write "
            f"{layer.name}|dense({dense_rules[0]})."
        )
    elif tap.select == "reg" and layer.prefix_tokens < _WITH_REGISTERS:
        problem = (
            f"This model has no registers, {got}. Choose @patch, @all or @cls, or a model with "
            "registers."
        )
    elif tap.select == "cls" and layer.prefix_tokens < 1:
        problem = (
            f"The layer {layer.name} has no class token, {got}. Choose @patch, @all or a pooling "
            "operation such as mean."
        )
    if problem:
        raise TapError(problem)
    for op in tap.ops:
        if op.name in MODEL_OPS and op.name not in layer.ops:
            owners = [each.name for each in layers if op.name in each.ops]
            msg = f"{op.name} cannot follow the layer {layer.name}, {got}. {_span(owners)}"
            raise TapError(msg)
        if op.name == "dense" and op.arguments[0] not in dense_rules:
            rule = str(op.arguments[0])
            msg = f"This model has no dense rule {rule!r}; {near_matches(rule, dense_rules)}"
            raise TapError(msg)


def _span(owners: Sequence[str]) -> str:
    """Names the layers that have a facet or an operation; the first and the last of many."""
    if not owners:
        return "No layer of this model has it."
    if len(owners) > _LONGEST_LIST:
        owners = [f"{owners[0]} ... {owners[-1]}"]
    return f"Layers that have it: {', '.join(owners)}."
