"""Which images share a chunk: a function of the images, and of how an older cache was cut.

It depends on neither worker nor time, so that any number of workers make the same chunks.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import xxhash

from f3rm.store.geometry import Fit, Size, network_size
from f3rm.store.images import ImageInfo
from f3rm.store.records import ImageRecord

_SCATTERED = 2
"""An older cut is given up when it has this many times as many chunks as needed."""

Names = Sequence[Sequence[str]]
"""Names of the images of every chunk."""


@dataclass(frozen=True)
class ChunkPlan:
    """One chunk to be made.

    Attributes:
        file: Name of the chunk file.
        network_size: Height and width of the network input in pixels, the same for all its images.
        grid: Rows and columns of its feature maps.
        images: Its images, in the order of the rows.
        codec: Hash of the fitted codec that its rows are written with; empty if there is none.
    """

    file: str
    network_size: Size
    grid: Size
    images: tuple[ImageInfo, ...]
    codec: str = ""

    @property
    def inputs(self) -> str:
        """A hash of the images, their order, and the codec; equal inputs give equal chunks."""
        images = [(info.item.name, info.content, info.size) for info in self.images]
        return _inputs_hash(images, self.codec)


def plan_chunks(
    images: Sequence[ImageInfo],
    *,
    short_side: int,
    patch: int,
    shard_size: int,
    fit: Fit = "stretch",
    older: Names = (),
) -> list[ChunkPlan]:
    """Groups images by network size, in order of appearance, and cuts the groups into chunks.

    Images that share a chunk in an older cache stay together, so that a removed or added image
    changes only its own chunk; new images fill up the last chunk of their size.

    Args:
        images: All images of the dataset, in its order.
        short_side: Shorter side of network inputs in pixels.
        patch: Pixels per cell.
        shard_size: Largest number of images in a chunk.
        fit: How images become network inputs.
        older: How an older cache was cut; ignored if a chunk is larger than ``shard_size``, or if
            there are more than twice as many chunks as needed.
    """
    groups: dict[Size, list[ImageInfo]] = {}
    for info in images:
        groups.setdefault(network_size(info.size, short_side, patch, fit), []).append(info)
    plans: list[ChunkPlan] = []
    for size, members in groups.items():
        grid = (size[0] // patch, size[1] // patch)
        for part in cut_group(members, older, shard_size):
            plans.append(ChunkPlan(f"chunk_{len(plans):04d}.npy", size, grid, part))
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


def cut_group(
    members: Sequence[ImageInfo], older: Names, shard_size: int
) -> list[tuple[ImageInfo, ...]]:
    """Cuts images of one network size into chunks; the arguments are those of plan_chunks."""
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
        return cut_group(members, (), shard_size)
    return [tuple(part) for part in parts]
