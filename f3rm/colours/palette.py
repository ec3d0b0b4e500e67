"""Colours of scores and of queries, and the assignment of positions to queries by score."""

from collections.abc import Sequence
from itertools import count

import matplotlib as mpl
import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

PALETTE = (
    (213, 94, 0),
    (86, 180, 233),
    (0, 158, 115),
    (240, 228, 66),
    (204, 121, 167),
    (0, 114, 178),
    (230, 159, 0),
    (160, 160, 160),
)
"""Colours of queries shown side by side (Okabe and Ito's, which colour-blind people can tell)."""

_WORDS = (
    "orange red",
    "turquoise cyan",
    "green",
    "yellow",
    "pink purple violet magenta",
    "blue",
    "brown gold golden",
    "grey gray silver black",
)
"""What people call the colours of the palette, or what is nearest to them."""

_DIMMED = 0.45
_OPACITY = 0.65
_DARKER = 0.55


def coloured(scores: Float[Tensor, "*batch"], low: float, high: float) -> Float[Tensor, "*batch 3"]:
    """Colours scores with matplotlib's map ``turbo``, the same in every picture.

    Args:
        scores: The scores; NaN gets the first colour.
        low: The score of the first colour, blue.
        high: The score of the last one, red.
    """
    share = ((scores - low) / max(high - low, 1e-6)).nan_to_num(0.0).clamp(0, 1)
    table = mpl.colormaps["turbo"](np.arange(256))[:, :3]
    colours = torch.tensor(table, dtype=torch.float32, device=scores.device)  # (256, 3)
    return colours[(share * 255).long()]


def palette(count: int) -> Float[Tensor, "queries 3"]:
    """Returns a colour in [0, 1] for each query; after eight they repeat, darker each time."""
    first = torch.tensor(PALETTE) / 255
    rounds = -(-count // len(PALETTE))
    return torch.cat([first * _DARKER**number for number in range(rounds)] or [first])[:count]


def palette_of(labels: Sequence[str]) -> Float[Tensor, "queries 3"]:
    """Returns a colour in [0, 1] for each query: the one that it names, where that is free.

    A purple thing shown in orange, beside the word purple, is read as a mistake.

    Args:
        labels: The queries in words.
    """
    named: dict[int, int] = {}
    for index, label in enumerate(labels):
        words = set(label.lower().split())
        fitting = (n for n, names in enumerate(_WORDS) if words & set(names.split()))
        chosen = next((number for number in fitting if number not in named.values()), None)
        if chosen is not None:
            named[index] = chosen
    rest = (number for number in count() if number not in named.values())
    order = [named[index] if index in named else next(rest) for index in range(len(labels))]
    return palette(max(order, default=0) + 1)[order]


def best_query_index(
    scores: Float[Tensor, "*batch queries"], thresholds: tuple[float, ...]
) -> Int[Tensor, "*batch"]:
    """Returns the index of the query that each position's scores exceed most, -1 for none.

    Args:
        scores: One score per position and query.
        thresholds: Lowest score that counts, per query; infinity leaves a query out.
    """
    best, query = (scores - scores.new_tensor(thresholds)).max(dim=-1)
    return torch.where(best >= 0, query, -1)


def composite(
    rgb: Float[Tensor, "*batch 3"],
    scores: Float[Tensor, "*batch queries"],
    thresholds: tuple[float, ...],
    colours: Float[Tensor, "queries 3"] | None = None,
) -> Float[Tensor, "*batch 3"]:
    """Lays the colours of found queries over a picture and dims the rest to grey.

    Args:
        rgb: The picture, values in [0, 1].
        scores: One score per pixel and query.
        thresholds: See :func:`best_query_index`.
        colours: In [0, 1]; None for :func:`palette`.
    """
    query = best_query_index(scores, thresholds)
    tints = (palette(len(thresholds)) if colours is None else colours).to(rgb)
    found = (1 - _OPACITY) * rgb + _OPACITY * tints[query.clamp_min(0)]
    grey = rgb.mean(dim=-1, keepdim=True).expand_as(rgb) * _DIMMED
    return torch.where((query >= 0)[..., None], found, grey)
