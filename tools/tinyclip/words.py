"""What TINYCLIP is taught to say: texts, and which of them are true of which surface.

A text asks for some attributes (a colour, a material, a shape, a kind of surface) and is true of
every surface that has them all. How many it asks for is its level: ``"striped red mug"`` says more
than ``"mug"``, which says more than ``"object"``.
"""

import random
from dataclasses import dataclass
from itertools import product

from f3rm.synthetic.objects import COLOURS, MATERIALS, SHAPES, Description

SURFACES = ("table", "floor", "wall")
"""Names of what is no object, in the scenes."""

UNSEEN_PAIRS: frozenset[tuple[str, str]] = frozenset(
    {
        ("red", "cylinder"),
        ("orange", "mug"),
        ("yellow", "cone"),
        ("green", "ball"),
        ("turquoise", "ring"),
        ("blue", "bottle"),
        ("purple", "box"),
        ("pink", "bowl"),
        ("white", "mug"),
        ("black", "cone"),
    }
)
"""Pairs of colour and shape that neither a training picture nor a training text holds."""

_SYNONYMS: dict[str, tuple[str, ...]] = {
    "box": ("box", "box", "cube", "block"),
    "ball": ("ball", "ball", "sphere"),
    "ring": ("ring", "ring", "torus", "donut"),
    "mug": ("mug", "mug", "cup"),
    "turquoise": ("turquoise", "turquoise", "cyan", "teal"),
    "purple": ("purple", "purple", "violet"),
    "shiny": ("shiny", "shiny", "glossy"),
    "wooden": ("wooden", "wooden", "wood"),
    "dotted": ("dotted", "dotted", "spotted"),
    "checkered": ("checkered", "checkered", "checked"),
    "floor": ("floor", "floor", "ground"),
    "wall": ("wall", "wall", "background"),
}
_TEMPLATES = ("{}", "{}", "{}", "a {}", "the {}", "one {}", "a photo of a {}", "an image of a {}")

_OBJECT_WORDS = ("object", "things")
_SURFACE_WORDS = ("stuff", "texture")


@dataclass(frozen=True)
class Text:
    """A text by what it asks for; its wording is drawn anew each time.

    Attributes:
        wanted: The attributes, e.g. ``{"red", "mug"}``.
        words: The same in the order in which they are said.
        plain: Whether it is always said as it is, without synonyms or a template.
    """

    wanted: frozenset[str]
    words: str
    level: int
    plain: bool = False

    def say(self, rng: random.Random) -> str:
        """Returns a wording."""
        if self.plain:
            return self.words
        words = [rng.choice(_SYNONYMS.get(word, (word,))) for word in self.words.split()]
        return rng.choice(_TEMPLATES).format(" ".join(words))


def attributes(thing: Description) -> frozenset[str]:
    """Returns what is true of an object."""
    said = {thing.shape, thing.material, *_OBJECT_WORDS, "object-kind"}
    if thing.colour is not None:
        said.add(thing.colour)
    return frozenset(said)


def surface_attributes(name: str) -> frozenset[str]:
    """Returns what is true of a table, a floor or a wall."""
    return frozenset({name, *_SURFACE_WORDS})


def describe(*words: str) -> Text:
    """Returns the text that asks for some attributes, e.g. ``describe("red", "mug")``."""
    return Text(frozenset(words), " ".join(words), level=len(words))


def generic_texts() -> list[Text]:
    """Returns LERF's canonical phrases, the least that can be said."""
    words = (*_OBJECT_WORDS, *_SURFACE_WORDS)
    return [Text(frozenset({word}), word, level=0, plain=True) for word in words]


def single_texts() -> list[Text]:
    """Returns texts of one attribute: colours, materials, shapes, surfaces."""
    texts = [describe(word) for word in (*COLOURS, *SHAPES, *SURFACES)]
    texts += [describe(material) for material in MATERIALS if material != "plain"]
    for word in (*COLOURS, *(material for material in MATERIALS if material != "plain")):
        texts.append(Text(frozenset({word, "object-kind"}), f"{word} object", level=1))
    return texts


def pair_texts(*, unseen: bool = False) -> list[Text]:
    """Returns texts of colour and shape.

    Args:
        unseen: Whether those that training leaves out are meant, instead of the others.
    """
    pairs = product(COLOURS, SHAPES)
    return [describe(*pair) for pair in pairs if (pair in UNSEEN_PAIRS) == unseen]


def material_texts() -> list[Text]:
    """Returns texts of material and shape."""
    materials = [material for material in MATERIALS if material != "plain"]
    return [describe(*pair) for pair in product(materials, SHAPES)]


def full_text(thing: Description) -> Text:
    """Returns the text that says all of an object, e.g. ``"striped red mug"``."""
    return describe(*thing.name.split())


def vocabulary() -> str:
    """Returns the words that the model is taught, a line for each: kind, word, synonyms."""
    kinds = {
        "colour": COLOURS,
        "material": MATERIALS[1:],
        "shape": SHAPES,
        "surface": SURFACES,
        "canonical": (*_OBJECT_WORDS, *_SURFACE_WORDS),
        "template": sorted({*" ".join(_TEMPLATES).replace("{}", "").split(), "and"}),
    }
    lines = [
        " ".join((kind, *dict.fromkeys((word, *_SYNONYMS.get(word, ())))))
        for kind, words in kinds.items()
        for word in words
    ]
    return "\n".join(lines) + "\n"


def is_unseen(thing: Description) -> bool:
    """Returns whether training leaves an object of this colour and shape out."""
    return (thing.colour, thing.shape) in UNSEEN_PAIRS
