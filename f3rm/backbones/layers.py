"""What a backbone's layers offer, and whether a tap fits them.

The answers come from descriptions alone, so that a wrong name fails before an image is decoded.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import get_args

from f3rm.backbones.tap_ops import MODEL_OPS, Form
from f3rm.backbones.taps import Facet, Tap
from f3rm.backbones.weights import near_matches
from f3rm.errors import TapError

FACETS: tuple[Facet, ...] = get_args(Facet)

_WITH_REGISTERS = 2
_LONGEST_HINT = 300


@dataclass(frozen=True)
class LayerInfo:
    """One layer that taps can name.

    Attributes:
        name: As taps write it.
        kind: What it gives: ``tokens`` of a transformer, a ``map`` or a ``vector``.
        channels: Its channels; for a facet ``attn`` the number of heads counts instead.
        stride: Pixels between neighbouring cells; 0 for vectors.
        facets: What can be read from it.
        ops: Which of the model's own operations (``norm``, ``proj``, ``dense``) can follow it.
        prefix_tokens: Tokens before the patches: the class token and registers.
        is_dense_only: Whether it can be read by ``dense(...)`` only.
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
    """Describes the only layer of a model whose dense features are all that can be read."""
    return LayerInfo("-1", "map", channels, stride, ops=("dense",), is_dense_only=True)


def find_layer(layers: Sequence[LayerInfo], tap: Tap) -> LayerInfo:
    """Finds the layer of a tap; negative numbers count the blocks from the last one.

    Args:
        layers: All layers of a model.
        tap: The tap.

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
    msg = f"Tap: there is no layer {tap.layer!r} in {str(tap)!r}; {hint}"
    raise TapError(msg)


def check_tap(layers: Sequence[LayerInfo], tap: Tap, *, dense_rules: Sequence[str] = ()) -> None:
    """Checks that a model can give what a tap asks for.

    Args:
        layers: All layers of the model.
        tap: The tap.
        dense_rules: The rules that ``dense(...)`` may name.

    Raises:
        TapError: If the layer is unknown, or it does not have the facet, the tokens or an
            operation.
    """
    layer = find_layer(layers, tap)
    tap.form(layer.kind)
    if tap.facet not in layer.facets:
        msg = (
            f"Tap: the layer {layer.name} has no facet {tap.facet!r} (in {str(tap)!r}), it has "
            f"{', '.join(layer.facets)}. {_layers_with(layers, tap.facet)}"
        )
        raise TapError(msg)
    if layer.is_dense_only and not (tap.ops and tap.ops[0].name == "dense"):
        msg = (
            f"Tap: the layer {layer.name} of this model is read by a dense rule only, got "
            f"{str(tap)!r}. Write {layer.name}|dense({dense_rules[0]})."
        )
        raise TapError(msg)
    if tap.select == "reg" and layer.prefix_tokens < _WITH_REGISTERS:
        msg = (
            f"Tap: this model has no registers, got {str(tap)!r}. Choose @patch, @all or @cls, or "
            "a model with registers."
        )
        raise TapError(msg)
    if tap.select == "cls" and layer.prefix_tokens < 1:
        msg = (
            f"Tap: the layer {layer.name} has no class token, got {str(tap)!r}. Choose @patch, "
            "@all or a pooling operation such as mean."
        )
        raise TapError(msg)
    for op in tap.ops:
        if op.name in MODEL_OPS and op.name not in layer.ops:
            msg = (
                f"Tap: {op.name} cannot follow the layer {layer.name} of this model, got "
                f"{str(tap)!r}. {_layers_with_op(layers, op.name)}"
            )
            raise TapError(msg)
        if op.name == "dense" and op.arguments[0] not in dense_rules:
            rule = str(op.arguments[0])
            msg = f"Tap: there is no rule {rule!r} here; {near_matches(rule, dense_rules)}"
            raise TapError(msg)


def _layers_with(layers: Sequence[LayerInfo], facet: Facet) -> str:
    names = [layer.name for layer in layers if facet in layer.facets]
    return f"Layers that have it: {_span(names)}." if names else "No layer of this model has it."


def _layers_with_op(layers: Sequence[LayerInfo], op: str) -> str:
    names = [layer.name for layer in layers if op in layer.ops]
    return f"Layers that have it: {_span(names)}." if names else "No layer of this model has it."


def _span(names: Sequence[str]) -> str:
    return ", ".join(names) if len(names) <= 1 + _WITH_REGISTERS else f"{names[0]} ... {names[-1]}"
