"""Pictures of scores: a colour scale that means the same in every frame, and a composite over RGB.

No picture is stretched to its own smallest and largest score: a phrase that is not in the scene
must look absent.
"""

from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from f3rm.colours.palette import PALETTE, coloured, composite
from f3rm.language.active_query import ActiveQuery, DisplaySettings
from f3rm.language.threshold import found_from
from f3rm.viewer.elements import escaped


@dataclass(frozen=True)
class Drawn:
    """The pictures of a query.

    Attributes:
        images: Pictures by output name.
        thresholds: Score from which each prompt's pixels are found; infinity for none.
    """

    images: dict[str, Tensor]
    thresholds: tuple[float, ...]


def draw(
    scores: Float[Tensor, "*batch prompts"],
    query: ActiveQuery,
    rgb: Float[Tensor, "*batch 3"] | None,
) -> Drawn:
    """Draws scores.

    Args:
        scores: One score per pixel and prompt.
        query: The prompts and how to show them.
        rgb: The picture under a composite, values in [0, 1]; None for no composite.

    Returns:
        ``similarity``, the highest score of any prompt; with several also ``similarity_1``
        and so on; ``similarity_composite``.
    """
    threshold = query.settings.threshold
    images = {"similarity": _shown(scores.amax(-1), query.settings)}
    if len(query.labels) > 1:
        for index in range(len(query.labels)):
            images[f"similarity_{index + 1}"] = _shown(scores[..., index], query.settings)
    if rgb is None:
        return Drawn(images, ())
    prompts = zip(scores.unbind(-1), query.compares, query.is_present, strict=True)
    thresholds = tuple(
        found_from(score.flatten(), compares=compares, is_present=present)
        if threshold is None
        else threshold
        for score, compares, present in prompts
    )
    images["similarity_composite"] = composite(rgb, scores, thresholds)
    return Drawn(images, thresholds)


def _shown(
    scores: Float[Tensor, "*batch"], settings: DisplaySettings
) -> Float[Tensor, "*batch channels"]:
    if not settings.coloured:
        return scores[..., None]
    return coloured(scores, settings.low, settings.high)


def legend(query: ActiveQuery, thresholds: tuple[float, ...]) -> str:
    """Returns markdown that says what each colour means."""
    settings = query.settings
    chosen = "automatic" if settings.threshold is None else "yours"
    lines: list[str] = []
    for index, label in enumerate(query.labels):
        red, green, blue = PALETTE[index]
        swatch = f"<span style={{{{color: 'rgb({red}, {green}, {blue})'}}}}>&#9632;</span>"
        line = f"{swatch} {index + 1}. {escaped(label)}"
        if index < len(thresholds):
            found = thresholds[index] < float("inf")
            line += f": from {thresholds[index]:.2f} ({chosen})" if found else ": not found"
        lines.append(line)
    kind = "relevancy (0.5: as near to a negative)" if any(query.compares) else "cosine"
    lines.append(f"Scale of {kind}: {settings.low:.2f} blue to {settings.high:.2f} red")
    return "  \n".join(lines)
