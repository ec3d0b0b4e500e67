"""Pictures of scores: a colour scale that means the same in every frame, and a composite over RGB.

No picture is stretched to its own smallest and largest score: a phrase that is not in the scene
must look absent.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from nerfstudio.utils.colormaps import apply_float_colormap
from torch import Tensor

from f3rm.semantics.similarity import similarities_from_hidden, to_hidden
from f3rm.semantics.threshold import LEAST_CONTRAST, RELEVANCY_FLOOR, automatic_threshold
from f3rm.viewer.asked import Asked
from f3rm.viewer.elements import escaped

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
"""Colours of queries that are shown apart (Okabe and Ito's, which colour-blind people can tell)."""

_COSINE_FLOOR = 0.2
_DIMMED = 0.45
_OPACITY = 0.65


@dataclass(frozen=True)
class Drawn:
    """What was drawn for a query.

    Attributes:
        images: Pictures by output name.
        thresholds: From which score on each query's pixels stand out; infinity for none.
    """

    images: dict[str, Tensor]
    thresholds: tuple[float, ...]


def draw(
    scores: Float[Tensor, "*batch queries"], asked: Asked, rgb: Float[Tensor, "*batch 3"] | None
) -> Drawn:
    """Draws scores.

    Args:
        scores: One score per pixel and query.
        asked: The queries and how to show them.
        rgb: The picture that a composite is laid over, values in [0, 1]; None for no composite.

    Returns:
        ``similarity``, the highest score of any query; with several ``similarity_1`` and so on; and
        ``similarity_composite``.
    """
    look = asked.look
    images = {"similarity": _shown(scores.amax(-1), asked)}
    if len(asked.queries) > 1:
        for index in range(len(asked.queries)):
            images[f"similarity_{index + 1}"] = _shown(scores[..., index], asked)
    if rgb is None:
        return Drawn(images, ())
    thresholds = tuple(
        _automatic(scores[..., index], asked, index) if look.threshold is None else look.threshold
        for index in range(len(asked.queries))
    )
    images["similarity_composite"] = composite(rgb, scores, thresholds)
    return Drawn(images, thresholds)


def scores_of(
    hidden: Float[Tensor, "*batch hidden"], asked: Asked, head_weight: Tensor
) -> Float[Tensor, "*batch queries"]:
    """Scores composited hidden vectors against all queries, without the C feature channels."""
    return similarities_from_hidden(
        hidden, [to_hidden(query, head_weight) for query in asked.queries]
    )


def _automatic(scores: Float[Tensor, "*batch"], asked: Asked, index: int) -> float:
    floor = RELEVANCY_FLOOR if len(asked.queries[index].negatives) else _COSINE_FLOOR
    contrast = 0.0 if asked.is_present[index] else LEAST_CONTRAST
    return automatic_threshold(scores.flatten(), floor=floor, least_contrast=contrast)


def _shown(scores: Float[Tensor, "*batch"], asked: Asked) -> Float[Tensor, "*batch channels"]:
    if not asked.look.coloured:
        return scores[..., None]
    span = max(asked.look.high - asked.look.low, 1e-6)
    return apply_float_colormap(((scores - asked.look.low) / span).clamp(0, 1)[..., None], "turbo")


def composite(
    rgb: Float[Tensor, "*batch 3"],
    scores: Float[Tensor, "*batch queries"],
    thresholds: tuple[float, ...],
) -> Float[Tensor, "*batch 3"]:
    """Lays the colours of found queries over a picture and dims the rest to grey.

    Args:
        rgb: The picture, values in [0, 1].
        scores: One score per pixel and query.
        thresholds: From which score on a pixel belongs to a query; where several claim it, the one
            whose threshold it exceeds most gets it.
    """
    excess = scores - scores.new_tensor(thresholds)
    best, query = excess.max(dim=-1)
    palette = rgb.new_tensor(PALETTE)[: len(thresholds)] / 255  # (queries, 3)
    found = (1 - _OPACITY) * rgb + _OPACITY * palette[query]
    grey = rgb.mean(dim=-1, keepdim=True).expand_as(rgb) * _DIMMED
    return torch.where((best >= 0)[..., None], found, grey)


def legend(asked: Asked, thresholds: tuple[float, ...]) -> str:
    """Returns markdown that says what each colour means."""
    look = asked.look
    chosen = "automatic" if look.threshold is None else "yours"
    lines: list[str] = []
    for index, label in enumerate(asked.labels):
        red, green, blue = PALETTE[index]
        swatch = f"<span style={{{{color: 'rgb({red}, {green}, {blue})'}}}}>&#9632;</span>"
        line = f"{swatch} {index + 1}. {escaped(label)}"
        if index < len(thresholds):
            found = thresholds[index] < float("inf")
            line += f": from {thresholds[index]:.2f} ({chosen})" if found else ": not found"
        lines.append(line)
    compares = any(len(query.negatives) for query in asked.queries)
    kind = "relevancy (0.5: as near to a negative)" if compares else "cosine"
    lines.append(f"Scale of {kind}: {look.low:.2f} blue to {look.high:.2f} red")
    return "  \n".join(lines)
