"""Pictures of scores: a colour scale that means the same in every frame, and a composite over RGB.

No picture is stretched to its own smallest and largest score: a phrase that is not in the scene
must look absent.
"""

from dataclasses import dataclass

from jaxtyping import Float
from nerfstudio.utils.colormaps import apply_float_colormap
from torch import Tensor

from f3rm.colours.palette import PALETTE, composite
from f3rm.language.relevancy import similarities_from_hidden, to_hidden
from f3rm.language.threshold import found_from
from f3rm.viewer.asked import Asked
from f3rm.viewer.elements import escaped


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
    compares = len(asked.queries[index].negatives) > 0
    present = asked.is_present[index]
    return found_from(scores.flatten(), compares=compares, is_present=present)


def _shown(scores: Float[Tensor, "*batch"], asked: Asked) -> Float[Tensor, "*batch channels"]:
    look = asked.look
    return coloured(scores, look.low, look.high) if look.coloured else scores[..., None]


def coloured(scores: Float[Tensor, "*batch"], low: float, high: float) -> Float[Tensor, "*batch 3"]:
    """Colours scores by a scale that is the same for every picture.

    Args:
        scores: The scores.
        low: The score that gets the first colour, blue.
        high: The score that gets the last one, red.
    """
    span = max(high - low, 1e-6)
    return apply_float_colormap(((scores - low) / span).clamp(0, 1)[..., None], "turbo")


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
