"""Which images share a chunk: a function of the images, and of how an older cache was cut.

It depends on neither worker nor time, so that any number of workers make the same chunks.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import xxhash

from f3rm.store.geometry import Size
from f3rm.store.images import ImageInfo
from f3rm.store.manifest import ImageRecord

_SCATTERED = 2
"""An older cut is given up when it has this many times as many chunks as needed."""

Names = Sequence[Sequence[str]]
"""Names of the images of every chunk."""


@dataclass(frozen=True)
class InputKind:
    """Properties that inputs of one network call share.

    Attributes:
        canvas: Height and width of the network input in pixels.
        kept: Height and width of the part of it that shows the image.
        frames: Number of frames.
        is_clip: Whether there is a time axis, even of one frame.
    """

    canvas: Size
    kept: Size
    frames: int = 1
    is_clip: bool = False

    @property
    def num_pixels(self) -> int:
        """Pixels of one network input."""
        return self.frames * math.prod(self.canvas)


@dataclass(frozen=True)
class ChunkPlan:
    """One chunk to be made.

    Attributes:
        file: Name of the chunk file.
        kind: The kind of network input of all its images.
        grid: Rows and columns of cells of one row of the chunk.
        images: Its images, in the order of the rows.
        codec: Hash of the fitted codec that its rows are written with; empty if there is none.
    """

    file: str
    kind: InputKind
    grid: Size
    images: tuple[ImageInfo, ...]
    codec: str = ""

    @property
    def inputs(self) -> str:
        """A hash of the images, their order, and the codec; equal inputs give equal chunks."""
        images = [(info.item.name, info.content, info.size) for info in self.images]
        return _inputs_hash(images, self.codec)


@dataclass(frozen=True)
class Group:
    """Images that may share chunks, in the order of the dataset.

    Attributes:
        kind: The kind of their network inputs.
        grid: Rows and columns of cells of each.
        shard_size: Largest number of images in a chunk.
        images: The images.
    """

    kind: InputKind
    grid: Size
    shard_size: int
    images: Sequence[ImageInfo]


def plan_chunks(groups: Iterable[Group], older: Names = ()) -> list[ChunkPlan]:
    """Cuts groups into chunks.

    Images that share a chunk in an older cache stay together, so that a removed or added image
    changes only its own chunk; new images fill up the last chunk of their kind.

    Args:
        groups: Groups of all images of the dataset.
        older: How an older cache was cut; ignored if a chunk is larger than the group's, or if
            there are more than twice as many chunks as needed.
    """
    plans: list[ChunkPlan] = []
    for group in groups:
        for part in _cut_group(group.images, older, group.shard_size):
            plans.append(ChunkPlan(f"chunk_{len(plans):04d}.npy", group.kind, group.grid, part))
    return plans


def recorded_inputs(images: Sequence[ImageRecord], codec: str = "") -> str:
    """Returns the :attr:`ChunkPlan.inputs` of a finished chunk, given its images in order."""
    return _inputs_hash([(image.name, image.content, image.size) for image in images], codec)


def _inputs_hash(images: Sequence[tuple[str, str, Size]], codec: str) -> str:
    digest = xxhash.xxh3_128(codec.encode())
    for name, content, size in images:
        # The length tells where the name ends, as it may hold any character.
        digest.update(f"{len(name)}:{name}|{content}|{size[0]}x{size[1]}\n".encode())
    return digest.hexdigest()


def _cut_group(
    members: Sequence[ImageInfo], older: Names, shard_size: int
) -> list[tuple[ImageInfo, ...]]:
    """Cuts the images of a group; see :func:`plan_chunks`."""
    if max((len(names) for names in older), default=0) > shard_size:
        older = ()
    left = {info.item.name: info for info in members}
    parts = [[left.pop(name) for name in names if name in left] for names in older]
    parts = [part for part in parts if part]
    new = list(left.values())
    if parts:  # new images fill the last chunk, so that at most one older chunk changes
        room = shard_size - len(parts[-1])
        parts[-1].extend(new[:room])
        new = new[room:]
    parts.extend(new[start : start + shard_size] for start in range(0, len(new), shard_size))
    needed = -(-len(members) // shard_size)
    if len(parts) > _SCATTERED * needed:
        return _cut_group(members, (), shard_size)
    return [tuple(part) for part in parts]
