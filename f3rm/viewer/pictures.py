"""Pictures of scores: a colour scale that means the same in every frame, and a composite over RGB.

No picture is stretched to its own smallest and largest score: a phrase that is not in the scene
must look absent.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from f3rm.colours.palette import coloured, composite, palette_of
from f3rm.language.active_query import ActiveQuery, DisplaySettings
from f3rm.language.threshold import Certainty, found_from, presence, shown_certainty
from f3rm.viewer.elements import escaped


@dataclass(frozen=True)
class Drawn:
    """The pictures of a query.

    Attributes:
        images: Pictures by output name.
        thresholds: Score from which each prompt's pixels are found; infinity for none.
        certainties: Whether each prompt is found in this picture, by its best score.
    """

    images: dict[str, Tensor]
    thresholds: tuple[float, ...]
    certainties: tuple[Certainty, ...]


def picture_names(query: ActiveQuery | None) -> tuple[str, ...]:
    """Names a query's pictures; None for those that every query has.

    Returns:
        ``similarity``, the highest score of any prompt; with several also ``similarity_1``
        and so on; ``similarity_composite``.
    """
    count = 0 if query is None else len(query.labels)
    each = (f"similarity_{index + 1}" for index in range(count if count > 1 else 0))
    return ("similarity", *each, "similarity_composite")


def draw(
    scores: Float[Tensor, "*batch prompts"],
    query: ActiveQuery,
    rgb: Float[Tensor, "*batch 3"] | None,
    shown: Collection[str] | None = None,
) -> Drawn:
    """Draws scores.

    Args:
        scores: One score per pixel and prompt.
        query: The prompts and how to show them.
        rgb: The picture under a composite, values in [0, 1]; None for no composite.
        shown: The names of the pictures to draw; None for all of :func:`picture_names`.
    """
    best, *each, composed = picture_names(query)
    wanted = picture_names(query) if shown is None else shown
    images: dict[str, Tensor] = {}
    if best in wanted:
        images[best] = _shown(scores.amax(-1), query.settings)
    for index, name in enumerate(each):
        if name in wanted:
            images[name] = _shown(scores[..., index], query.settings)
    if rgb is None:
        return Drawn(images, (), ())
    found = [_found(query, index, scores[..., index]) for index in range(len(query.labels))]
    thresholds = tuple(threshold for threshold, _ in found)
    if composed in wanted:
        images[composed] = composite(rgb, scores, thresholds, palette_of(query.labels))
    return Drawn(images, thresholds, tuple(certainty for _, certainty in found))


def _found(
    query: ActiveQuery, prompt: int, scores: Float[Tensor, "*batch"]
) -> tuple[float, Certainty]:
    """Returns the threshold of a prompt in this picture, and whether it is there."""
    chosen, compares = query.settings.threshold, query.compares[prompt]
    present = query.is_present[prompt]
    if not query.is_known[prompt]:
        return float("inf") if chosen is None else chosen, "unknown word"
    if chosen is not None:
        return chosen, "found" if bool((scores >= chosen).any()) else "absent"
    threshold = found_from(scores.flatten(), compares=compares, is_present=present)
    if present:
        return threshold, "found" if threshold < float("inf") else "absent"
    return threshold, presence(float(scores.max()), compares=compares)


def _shown(
    scores: Float[Tensor, "*batch"], settings: DisplaySettings
) -> Float[Tensor, "*batch channels"]:
    if not settings.coloured:
        return scores[..., None]
    return coloured(scores, settings.low, settings.high)


def legend_entry(number: int, label: str, shown: str, colour: Sequence[int]) -> str:
    """Returns markdown of a prompt's colour (RGB in [0, 255]), its label, and its answer if any."""
    red, green, blue = colour
    swatch = f"<span style={{{{color: 'rgb({red}, {green}, {blue})'}}}}>&#9632;</span>"
    return f"{swatch} {number}. {escaped(label)}" + (shown and f": {shown}")


def legend(query: ActiveQuery, drawn: Drawn) -> str:
    """Returns markdown that says what each colour means."""
    settings, colours = query.settings, (palette_of(query.labels) * 255).round().int().tolist()
    chosen = "automatic" if settings.threshold is None else "yours"
    lines: list[str] = []
    for index, label in enumerate(query.labels):
        shown = ""
        if drawn.thresholds:
            threshold = drawn.thresholds[index]
            shown = shown_certainty(drawn.certainties[index], threshold)
            shown += f" ({chosen})" if f"{threshold:.2f}" in shown else ""
        lines.append(legend_entry(index + 1, label, shown, colours[index]))
    if settings.rule == "backbone" and all(query.standard is None for query in query.queries):
        lines.append("The backbone has no calibration: scored by lerf")
    if settings.rule == "scene" and any(query.text_map is not None for query in query.queries):
        lines.append("The run keeps no mean of its features in this language: scored by lerf")
    kind = "relevancy (0.5: as near to a negative)" if any(query.compares) else "cosine"
    lines.append(f"Scale of {kind}: {settings.low:.2f} blue to {settings.high:.2f} red")
    return "  \n".join(lines)
