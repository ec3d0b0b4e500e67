"""The operations of taps, computed on the device where the model runs."""

from collections.abc import Callable, Mapping, Sequence

import torch
from jaxtyping import Shaped
from torch import Tensor
from torch.nn import functional as F  # noqa: N812 (the customary name)

from f3rm.backbones.taps import OP_RULES, Form, Op, Tap

ModelOps = Mapping[str, Callable[[Tensor], Tensor]]
"""A model's own operations by name: ``norm`` and ``proj`` on the last axis."""


def apply_ops(
    values: Shaped[Tensor, "batch ..."],
    ops: Sequence[Op],
    form: Form,
    *,
    model_ops: ModelOps | None = None,
    num_heads: int = 1,
) -> Shaped[Tensor, "batch ..."]:
    """Applies the operations of a tap, in order.

    Args:
        values: A layer's output, channels last: a map (batch, rows, cols, channels), tokens (batch,
            tokens, channels) or a vector (batch, channels).
        ops: The operations, which :func:`f3rm.backbones.layers.check_tap` has accepted.
        form: The axes of ``values``.
        model_ops: The model's own operations.
        num_heads: Heads of the attention, for ``heads``.

    Returns:
        The result. A flattened map is ordered channel by channel, as ``torch.flatten`` orders maps
        with channels first; flattened tokens are ordered token by token.
    """
    own = model_ops or {}
    for op in ops:
        if op.name in own:
            values = own[op.name](values)
        elif op.name == "heads":
            values = values.unflatten(-1, (num_heads, -1))
        else:
            values = _PLAIN[op.name](values, op, form)
        form = OP_RULES[op.name].gives or form
    return values


def select_tokens(
    tokens: Shaped[Tensor, "batch tokens *channels"],
    tap: Tap,
    *,
    prefix_tokens: int,
    grid: tuple[int, int],
) -> Shaped[Tensor, "batch ..."]:
    """Takes the tokens that a tap selects.

    Args:
        tokens: Class token, registers, then patches row by row.
        tap: Whose ``select`` counts.
        prefix_tokens: Tokens before the patches.
        grid: (rows, cols) of patches.

    Returns:
        A map for patches, a vector for the class token, tokens otherwise.
    """
    if tap.select == "patch":
        return tokens[:, prefix_tokens:].unflatten(1, grid)
    if tap.select == "cls":
        return tokens[:, 0]
    return tokens[:, 1:prefix_tokens] if tap.select == "reg" else tokens


def select_weights(
    weights: Shaped[Tensor, "batch heads tokens tokens"],
    tap: Tap,
    *,
    prefix_tokens: int,
    grid: tuple[int, int],
) -> Shaped[Tensor, "batch ..."]:
    """Takes the attention weights that a tap selects.

    Args:
        weights: Queries by keys.
        tap: Whose ``select`` counts.
        prefix_tokens: Tokens before the patches.
        grid: (rows, cols) of patches.

    Returns:
        All of them; those among patches; or those of the class token as a map (batch, rows, cols,
        heads).
    """
    if tap.select == "cls":
        return weights[:, :, 0, prefix_tokens:].transpose(1, 2).unflatten(1, grid)
    return weights[:, :, prefix_tokens:, prefix_tokens:] if tap.select == "patch" else weights


def _pooled(values: Tensor, op: Op, _: Form) -> Tensor:
    """Pools a map by windows; torch pools maps with channels first."""
    maps = values.permute(0, 3, 1, 2)  # (batch, channels, rows, cols)
    kernel, stride, padding = op.window()
    pool = F.avg_pool2d if op.name == "avg" else F.max_pool2d
    return pool(maps, kernel, stride, padding).permute(0, 2, 3, 1)


def _pooled_to_size(values: Tensor, op: Op, _: Form) -> Tensor:
    maps = values.permute(0, 3, 1, 2)  # (batch, channels, rows, cols)
    pairs = op.pairs()
    size = (pairs[0][0], pairs[-1][1])  # adaptive_avg(2), (2,3) and (2x3) all give rows and cols
    pool = F.adaptive_avg_pool2d if op.name == "adaptive_avg" else F.adaptive_max_pool2d
    return pool(maps, size).permute(0, 2, 3, 1)


def _reduced(values: Tensor, op: Op, form: Form) -> Tensor:
    positions = (1, 2) if form == "map" else (1,)
    return values.mean(positions) if op.name == "mean" else values.amax(positions)


def _flattened(values: Tensor, _: Op, form: Form) -> Tensor:
    if form == "map":
        values = values.flatten(3).permute(0, 3, 1, 2)  # (batch, channels, rows, cols)
    return values.flatten(1)


_PLAIN: Mapping[str, Callable[[Tensor, Op, Form], Tensor]] = {
    "l2": lambda values, _, __: F.normalize(values, dim=-1),
    "avg": _pooled,
    "max": _pooled,
    "adaptive_avg": _pooled_to_size,
    "adaptive_max": _pooled_to_size,
    "mean": _reduced,
    "amax": _reduced,
    "flatten": _flattened,
}


def result_of_ops(
    shape: tuple[int, ...],
    ops: Sequence[Op],
    form: Form,
    *,
    widths: Mapping[str, int],
    num_heads: int,
) -> tuple[int, ...]:
    """Returns the shape of a tap's result, without computing.

    Args:
        shape: Of the layer's output, with the batch.
        ops: The operations.
        form: The axes of ``shape``.
        widths: Channels after each of the model's own operations.
        num_heads: Heads of the attention.
    """

    def widened(width: int) -> Callable[[Tensor], Tensor]:
        return lambda values: values.new_empty(*values.shape[:-1], width)

    stand_ins = {name: widened(width) for name, width in widths.items()}
    # Run on a tensor without data, so that shapes cannot disagree with what is computed.
    values = torch.empty(shape, device="meta")
    return tuple(apply_ops(values, ops, form, model_ops=stand_ins, num_heads=num_heads).shape)
