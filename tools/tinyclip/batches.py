"""Training batches: random cut-outs of the pictures, the regions in them, and texts about them."""

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np
import torch
from jaxtyping import Bool, Float, Int, UInt8
from torch import Tensor
from torch.nn import functional as F  # noqa: N812 (the customary name)

from f3rm.synthetic.objects import COLOURS, MATERIALS, SHAPES, TELLING_MATERIALS, Description
from tools.tinyclip.pictures import ScenePictures
from tools.tinyclip.words import (
    Text,
    attributes,
    describe,
    full_text,
    generic_texts,
    is_unseen,
    material_texts,
    pair_texts,
    single_texts,
    surface_attributes,
)

CELL = 32
"""Pixels of the network's input per cell of its last map."""
_SAMPLES = 8
"""Pixels across a cell that decide what the cell shows."""
_INSIDE = 0.4
"""Share of a cell that an object must cover for the cell to count as its."""
_MAX_OBJECTS = 40
_FALSE_FULL_TEXTS = 24
_FALSE_MATERIALS = 2
_FALSE_PAIRS = 0.5
"""Share of the texts of two attributes that a batch is not about."""
_ZOOM = (0.5, 4.0)
"""Least and largest magnification of a cut-out."""
_CELLS_ACROSS = (
    (0.0, 0.22, 0.45, 0.55, 1.0),
    (1.4, 1.2, 1.2, 0.8, 0.8),
    (1.9, 2.4, 4.2, 7.0, 7.0),
)
"""Least and most cells across the thing that a cut-out is about, at shares of the training."""
_NOISE_NUMBERS = 1 << 20
_CAPTION_OBJECTS = 4
_LEAST_PATCHES = 2
NOTHING = -100
"""Number of what is no thing, as torch's cross entropy leaves it out."""


@dataclass(frozen=True)
class Regions:
    """Parts of a batch's pictures that texts can be about.

    Attributes:
        weights: How each region's embedding is averaged from its picture's patches; rows sum to 1.
        picture: Which picture each region is in.
        truth: Attributes of each region.
        things: The things among them.
        shapes: Of each patch, the number of the shape that it shows, or :data:`NOTHING`.
        materials: Likewise of the material.
    """

    weights: Float[Tensor, "regions patches"]
    picture: Int[Tensor, " regions"]
    truth: tuple[frozenset[str], ...]
    things: frozenset[Description]
    shapes: Int[Tensor, "batch patches"]
    materials: Int[Tensor, "batch patches"]


@dataclass(frozen=True)
class Batch:
    """What one training step sees.

    Attributes:
        images: Pictures, RGB in [0, 1].
        regions: Their regions.
        texts: Wordings of :attr:`levels` and :attr:`true`'s columns.
        levels: How much each text asks for.
        true: Whether a text is true of a region.
        captions: One sentence per picture, about all of it.
    """

    images: Float[Tensor, "batch 3 height width"]
    regions: Regions
    texts: tuple[str, ...]
    levels: Int[Tensor, " texts"]
    true: Bool[Tensor, "regions texts"]
    captions: tuple[str, ...]


def draw_batch(
    scenes: Sequence[ScenePictures],
    rng: np.random.Generator,
    *,
    size: int,
    grid: tuple[int, int],
    progress: float = 1.0,
) -> Batch:
    """Draws a batch.

    Args:
        scenes: What it is drawn from.
        rng: Where chance comes from.
        size: Number of pictures.
        grid: Cells (rows, columns) of each.
        progress: How much of the training is over: at first things fill their pictures.
    """
    words = random.Random(int(rng.integers(2**31)))
    images, ids, chosen = [], [], []
    for _ in range(size):
        scene = scenes[int(rng.integers(len(scenes)))]
        image, numbers = _cut_out(scene, rng, grid, progress)
        images.append(image)
        ids.append(numbers)
        chosen.append(scene)
    shares = patch_shares(torch.stack(ids), grid)
    regions = _regions(shares, [_whole(numbers) for numbers in ids], chosen, rng)
    texts = _texts(regions, words)
    true = torch.tensor([[text.wanted <= truth for text in texts] for truth in regions.truth])
    return Batch(
        images=torch.stack(images),
        regions=regions,
        texts=tuple(text.say(words) for text in texts),
        levels=torch.tensor([text.level for text in texts]),
        true=true,
        captions=tuple(
            _caption(scene, share, words) for scene, share in zip(chosen, shares, strict=True)
        ),
    )


def patch_shares(
    ids: Int[Tensor, "batch height width"], grid: tuple[int, int]
) -> Float[Tensor, "batch patches objects"]:
    """Returns how much of each patch each object covers, patches row by row."""
    rows, cols = grid
    high, wide = ids.shape[1] // rows, ids.shape[2] // cols
    cells = ids.unflatten(1, (rows, high)).unflatten(3, (cols, wide))
    cells = cells.permute(0, 1, 3, 2, 4).reshape(len(ids), rows * cols, high * wide)
    counts = torch.zeros(len(ids), rows * cols, _MAX_OBJECTS)
    counts.scatter_add_(2, cells.long(), torch.ones(cells.shape))
    return counts / (high * wide)


def _cut_out(
    scene: ScenePictures, rng: np.random.Generator, grid: tuple[int, int], progress: float
) -> tuple[Float[Tensor, "3 height width"], Int[Tensor, "height width"]]:
    index = int(rng.integers(len(scene.rgb)))
    top, left, height, width = _window(
        scene.boxes[index], (scene.ids.shape[1], scene.ids.shape[2]), rng, grid, progress
    )
    window = (index, slice(top, top + height), slice(left, left + width))
    image = _photographed(scene.rgb[window], rng)[None]
    size = (grid[0] * CELL, grid[1] * CELL)
    image = F.interpolate(image, size=size, mode="bilinear", antialias=True)[0]
    numbers = torch.from_numpy(scene.ids[window]).float()[None, None]
    samples = (grid[0] * _SAMPLES, grid[1] * _SAMPLES)
    ids = F.interpolate(numbers, size=samples, mode="nearest-exact")[0, 0].int()
    if rng.random() < 0.5:
        image, ids = image.flip(-1), ids.flip(-1)
    return image, ids


def _window(
    boxes: tuple[tuple[int, int, int, int, int], ...],
    full: tuple[int, int],
    rng: np.random.Generator,
    grid: tuple[int, int],
    progress: float,
) -> tuple[int, int, int, int]:
    """Returns top, left, height and width of a cut-out about one of the things, if there is one."""
    boxes = boxes or ((0, 0, 0, *full),)
    _, top, left, height, width = boxes[int(rng.integers(len(boxes)))]
    shares, least, most = _CELLS_ACROSS
    low, high = (
        math.log(min(float(np.interp(progress, shares, cells)), 0.97 * grid[0]))
        for cells in (least, most)
    )
    zoom = math.exp(rng.uniform(low, high)) * CELL / max(height, width)
    zoom = min(max(zoom, _ZOOM[0]), _ZOOM[1])
    aspect = grid[1] / grid[0]
    rows = int(min(full[0], full[1] / aspect, grid[0] * CELL / zoom))
    cols = int(rows * aspect)
    middle = (top + height / 2, left + width / 2)
    spare = (max(rows - height, 0) / 2, max(cols - width, 0) / 2)
    moved = [place + rng.uniform(-room, room) for place, room in zip(middle, spare, strict=True)]
    return (
        int(min(max(moved[0] - rows / 2, 0), full[0] - rows)),
        int(min(max(moved[1] - cols / 2, 0), full[1] - cols)),
        rows,
        cols,
    )


def _photographed(
    pixels: UInt8[np.ndarray, "height width 3"], rng: np.random.Generator
) -> Float[Tensor, "3 height width"]:
    """Changes exposure, contrast and white balance a little, and adds blur and noise."""
    balance = rng.uniform(0.94, 1.06, (3, 1)) * rng.uniform(0.75, 1.2)
    tones = np.linspace(0, 1, 256) ** rng.uniform(0.75, 1.3)
    curves = (tones * balance).astype(np.float32)
    image = torch.from_numpy(np.stack([curves[c][pixels[..., c]] for c in range(3)]))
    if rng.random() < 0.3:
        small = F.interpolate(image[None], scale_factor=0.5, mode="bilinear", antialias=True)
        image = F.interpolate(small, size=image.shape[1:], mode="bilinear")[0]
    return image.add_(_noise(image.shape, rng), alpha=0.02 * float(rng.random())).clamp_(0, 1)


def _noise(shape: torch.Size, rng: np.random.Generator) -> Tensor:
    """Returns a piece of standard normal noise that was drawn once, in another place each time."""
    start = int(rng.integers(_NOISE_NUMBERS))
    return _noise_bank()[start : start + shape.numel()].view(shape)


@lru_cache(maxsize=1)
def _noise_bank() -> Tensor:
    rng = np.random.default_rng(0)
    return torch.from_numpy(rng.standard_normal(2 * _NOISE_NUMBERS, dtype=np.float32))


def _regions(
    shares: Float[Tensor, "batch patches objects"],
    whole: Sequence[frozenset[int]],
    scenes: Sequence[ScenePictures],
    rng: np.random.Generator,
) -> Regions:
    """Takes each whole thing and each surface that fills cells; of its cells, some are drawn."""
    inside = shares > _INSIDE
    weights, pictures, truths = [], [], []
    things: set[Description] = set()
    shapes, materials = torch.full((2, *shares.shape[:2]), NOTHING)
    for picture, number in inside.any(dim=1).nonzero().tolist():
        patches = inside[picture, :, number].nonzero()[:, 0]
        scene = scenes[picture]
        if scene.things[number] is not None and number not in whole[picture]:
            continue
        thing = scene.things[number]
        if thing is not None:
            things.add(thing)
            shapes[picture, patches] = SHAPES.index(thing.shape)
            materials[picture, patches] = MATERIALS.index(thing.material)
        # Alone, a few, or all: what is read out densely are single patches, but shapes are learnt
        # from many.
        for wanted in (len(patches), int(rng.choice([1, 1, 2, 4]))):
            count = min(len(patches), wanted)
            drawn = patches[torch.from_numpy(rng.permutation(len(patches))[:count])]
            weight = torch.zeros(shares.shape[1])
            weight[drawn] = 1 / count
            weights.append(weight)
            pictures.append(picture)
            truths.append(_truth(scene, number))
    return Regions(
        torch.stack(weights),
        torch.tensor(pictures),
        tuple(truths),
        frozenset(things),
        shapes,
        materials,
    )


def _whole(ids: Int[Tensor, "height width"]) -> frozenset[int]:
    """Returns what a cut-out shows without cutting it, or at least in its middle."""
    border = torch.cat((ids[0], ids[-1], ids[:, 0], ids[:, -1]))
    middle = ids[ids.shape[0] // 2, ids.shape[1] // 2]
    return frozenset(ids.unique().tolist()) - frozenset(border.tolist()) | {int(middle)}


def _truth(scene: ScenePictures, number: int) -> frozenset[str]:
    thing = scene.things[number]
    return surface_attributes(scene.names[number]) if thing is None else attributes(thing)


def _texts(regions: Regions, words: random.Random) -> list[Text]:
    """Returns all shortest texts, what is true of the regions, and about as much that is false.

    The false ones that teach most differ from a true one by one word, the material above all.
    """
    things = sorted(regions.things, key=str)
    false = [_false_thing(words) for _ in range(_FALSE_FULL_TEXTS)]
    false += [other for thing in things for other in _near_misses(thing, words)]
    full = [full_text(thing) for thing in sorted({*things, *false}, key=str)]
    truths = set(regions.truth)
    pairs = [
        text
        for text in (*pair_texts(), *material_texts())
        if words.random() < _FALSE_PAIRS or any(text.wanted <= truth for truth in truths)
    ]
    texts = [*generic_texts(), *single_texts(), *pairs, *full]
    return list({text.wanted: text for text in texts}.values())


def _false_thing(words: random.Random) -> Description:
    thing = Description(
        words.choice(SHAPES), words.choice(list(COLOURS)), words.choice(TELLING_MATERIALS)
    )
    return _false_thing(words) if is_unseen(thing) else thing


def _near_misses(thing: Description, words: random.Random) -> list[Description]:
    """Returns things that differ by one word: two of other materials, a colour and a shape."""
    if thing.colour is None:
        return []
    materials = [material for material in TELLING_MATERIALS if material != thing.material]
    near = [replace(thing, material=other) for other in words.sample(materials, _FALSE_MATERIALS)]
    if thing.material != "plain":
        near.append(replace(thing, colour=words.choice(list(COLOURS))))
        near.append(replace(thing, shape=words.choice(SHAPES)))
    return [other for other in near if not is_unseen(other)]


def _caption(
    scene: ScenePictures, shares: Float[Tensor, "patches objects"], words: random.Random
) -> str:
    """Returns a sentence that lists what fills most of a picture."""
    filled = (shares > _INSIDE).sum(dim=0)
    seen = [int(number) for number in filled.argsort(descending=True)]
    seen = [number for number in seen if filled[number] >= _LEAST_PATCHES]
    seen = [number for number in seen if scene.things[number] is not None][:_CAPTION_OBJECTS]
    names = [f"a {describe(*scene.names[number].split()).words}" for number in seen]
    if not names:
        return "things" if not seen else "stuff"
    words.shuffle(names)
    return " and ".join(names)
