"""Which images share a chunk: a function of the list of images alone, not of who works or when."""

from collections.abc import Sequence
from dataclasses import dataclass

import xxhash

from f3rm.features.geometry import Size, network_size
from f3rm.features.images import ImageInfo
from f3rm.features.records import ImageRecord


@dataclass(frozen=True)
class ChunkPlan:
    """One chunk to be made.

    Attributes:
        file: Name of the chunk file.
        network_size: Height and width of the network input in pixels, the same for all its images.
        grid: Rows and columns of its feature maps.
        images: Its images, in the order of the rows.
    """

    file: str
    network_size: Size
    grid: Size
    images: tuple[ImageInfo, ...]

    @property
    def inputs(self) -> str:
        """A hash of the images and their order."""
        return inputs_hash([(info.item.name, info.content, info.size) for info in self.images])


def plan_chunks(
    images: Sequence[ImageInfo], *, short_side: int, patch: int, shard_size: int
) -> list[ChunkPlan]:
    """Groups images by network size, in order of appearance, and cuts the groups into chunks.

    Args:
        images: All images of the dataset, in its order.
        short_side: Length in pixels that the shorter side is resized to.
        patch: Pixels per feature cell.
        shard_size: Largest number of images in a chunk.
    """
    groups: dict[Size, list[ImageInfo]] = {}
    for info in images:
        groups.setdefault(network_size(info.size, short_side, patch), []).append(info)
    plans: list[ChunkPlan] = []
    for size, members in groups.items():
        grid = (size[0] // patch, size[1] // patch)
        for start in range(0, len(members), shard_size):
            part = tuple(members[start : start + shard_size])
            plans.append(ChunkPlan(f"chunk_{len(plans):04d}.npy", size, grid, part))
    return plans


def recorded_inputs(images: Sequence[ImageRecord]) -> str:
    """Returns the :attr:`ChunkPlan.inputs` of a finished chunk, given its images in order."""
    return inputs_hash([(image.name, image.content, image.size) for image in images])


def inputs_hash(images: Sequence[tuple[str, str, Size]]) -> str:
    """Hashes names, content hashes and sizes in order."""
    digest = xxhash.xxh3_128()
    for name, content, size in images:
        digest.update(f"{len(name)}:{name}|{content}|{size[0]}x{size[1]}\n".encode())
    return digest.hexdigest()
