"""What the objects of a generated scene are called, and prompts that are true of none of them.

Names must tell objects apart, and some only by their material. Absent prompts share none, one or
two words with a name, since a model that knows colours alone refuses the easy ones.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from itertools import permutations, product

import numpy as np

from f3rm.synthetic.objects import (
    COLOURS,
    SHAPES,
    TELLING_MATERIALS,
    Description,
    draw_description,
    of_another_material,
)
from f3rm.synthetic.truth import AbsentKind, AbsentPrompt

UNKNOWN_WORDS = (
    *("fox", "keyboard", "guitar", "umbrella", "laptop", "banana", "bicycle", "shoe"),
    *("book", "teapot", "lamp", "cactus", "hammer", "clock", "pillow", "violin"),
)
"""Words that no object, surface or canonical phrase has."""

_FANCY = 0.5
_MAX_ALIKE = 2
"""Largest number of names with one colour, or with one shape, for each pair of twins."""


def draw_descriptions(
    rng: np.random.Generator, least: int, most: int, *, doubles: int = 1
) -> list[Description]:
    """Draws the objects of a scene.

    Of ``doubles`` names there are two objects; ``doubles`` others come with an object that differs
    by material alone. No other names share both colour and shape, and no name is part of another:
    whoever asks for the "red mug" must not be right about half of a "striped red mug". One colour
    and one shape are left out.

    Args:
        rng: The random generator.
        least: Fewest objects.
        most: Most objects.
        doubles: Number of names with twins, and of pairs that differ by material alone.
    """
    colours = set(COLOURS) - {str(rng.choice(list(COLOURS)))}
    shapes = set(SHAPES) - {str(rng.choice(SHAPES))}
    wanted = int(rng.integers(least, most + 1)) - 2 * doubles
    alike = _MAX_ALIKE * doubles
    drawn: list[Description] = []
    while len(drawn) < wanted:
        in_pair = len(drawn) < doubles
        new = draw_description(rng, fancy=1.0 if in_pair else _FANCY)
        known = new.shape in shapes and (new.colour is None or new.colour in colours)
        if not known or (in_pair and new.colour is None):
            continue
        crowded = (
            sum(other.shape == new.shape for other in drawn) >= alike
            or sum(other.colour == new.colour for other in drawn) >= alike
        )
        if not crowded and (new.colour, new.shape) not in _looks(drawn):
            drawn.append(new)
    others = [of_another_material(rng, own) for own in drawn[:doubles]]
    return [*drawn, *others, *drawn[doubles : 2 * doubles]]


def _looks(described: Sequence[Description]) -> set[tuple[str | None, str]]:
    return {(own.colour, own.shape) for own in described}


def draw_absent(
    rng: np.random.Generator, described: Sequence[Description]
) -> tuple[AbsentPrompt, ...]:
    """Draws prompts of every kind that are true of no object.

    Args:
        rng: The random generator.
        described: The objects of the scene.
    """
    names = [set(own.name.split()) for own in described]
    drawn: dict[str, AbsentPrompt] = {}
    for kind, number, candidates in _KINDS:
        texts = [text for text in dict.fromkeys(candidates(described)) if text not in drawn]
        for index in rng.permutation(len(texts))[:number]:
            words = set(texts[index].split())
            shared = max(len(words & name) for name in names)
            drawn[texts[index]] = AbsentPrompt(texts[index], kind, shared)
    return tuple(drawn.values())


def _unknown(_: Sequence[Description]) -> Iterator[str]:
    yield from UNKNOWN_WORDS


def _coloured_unknown(described: Sequence[Description]) -> Iterator[str]:
    colours, _, _, _ = _used_words(described)
    yield from map(" ".join, product(colours, UNKNOWN_WORDS))


def _absent_shape(described: Sequence[Description]) -> Iterator[str]:
    yield from _used_words(described)[3]


def _half_absent(described: Sequence[Description]) -> Iterator[str]:
    colours, shapes, absent_colours, absent_shapes = _used_words(described)
    yield from map(" ".join, product(absent_colours, shapes))
    yield from map(" ".join, product(colours, absent_shapes))


def _absent_pair(described: Sequence[Description]) -> Iterator[str]:
    colours, shapes, _, _ = _used_words(described)
    looks = _looks(described)
    yield from (" ".join(pair) for pair in product(colours, shapes) if pair not in looks)


def _swapped(described: Sequence[Description]) -> Iterator[str]:
    looks = _looks(described)
    for one, other in permutations((own for own in described if own.colour is not None), 2):
        if not looks & {(one.colour, other.shape), (other.colour, one.shape)}:
            yield replace(one, colour=other.colour).name


def _wrong_material(described: Sequence[Description]) -> Iterator[str]:
    for own in described:
        others = (replace(own, material=material) for material in TELLING_MATERIALS)
        yield from (other.name for other in others if own.colour and other not in described)


def _used_words(
    described: Sequence[Description],
) -> tuple[list[str], list[str], list[str], list[str]]:
    """Returns colours and shapes of the scene, and those that it lacks."""
    seen = {own.colour for own in described}, {own.shape for own in described}
    return (
        [colour for colour in COLOURS if colour in seen[0]],
        [shape for shape in SHAPES if shape in seen[1]],
        [colour for colour in COLOURS if colour not in seen[0]],
        [shape for shape in SHAPES if shape not in seen[1]],
    )


_KINDS: tuple[tuple[AbsentKind, int, Callable[[Sequence[Description]], Iterator[str]]], ...] = (
    ("unknown_word", 1, _unknown),
    ("unknown_word", 1, _coloured_unknown),
    ("absent_word", 1, _absent_shape),
    ("absent_word", 2, _half_absent),
    ("swapped", 2, _swapped),
    ("absent_pair", 3, _absent_pair),
    ("wrong_material", 4, _wrong_material),
)
"""Kind, number of prompts, and all that could be drawn."""
