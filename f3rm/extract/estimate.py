"""The costs of a run, known before it starts: images, chunks, bytes, free space, time."""

import logging
import math
import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from f3rm.errors import CacheError
from f3rm.extract.encoder import Encoder
from f3rm.extract.plan import ChunkPlan
from f3rm.store.chunks import HEADER_BYTES

log = logging.getLogger(__name__)

_SHORT_SECONDS = 1.0
_MEGABYTE = 1e6


@dataclass(frozen=True)
class Preflight:
    """The costs of one feature type.

    Attributes:
        name: The feature type.
        folder: Where the cache will be.
        device: The device that computes, e.g. ``cuda:0``.
        num_images: Images of the dataset.
        num_chunks: Chunk files of the cache.
        new_images: Images to be computed.
        new_chunks: Chunk files to be written.
        bytes_needed: Bytes of these files.
        bytes_free: Free space on the disk.
        seconds: Expected time of one worker; None if not measured.
    """

    name: str
    folder: Path
    device: str
    num_images: int
    num_chunks: int
    new_images: int
    new_chunks: int
    bytes_needed: int
    bytes_free: int
    seconds: float | None = None

    def __str__(self) -> str:
        """Returns one line for people."""
        expected = "" if self.seconds is None else f", about {duration(self.seconds)}"
        return (
            f"{self.name}: {self.new_images} of {self.num_images} images to compute on "
            f"{self.device}, {self.new_chunks} of {self.num_chunks} chunks to write, "
            f"{self.bytes_needed / _MEGABYTE:.1f} MB needed, "
            f"{self.bytes_free / _MEGABYTE:.1f} MB free{expected}; in {self.folder}"
        )

    def check_room(self) -> None:
        """Checks that the files fit onto the disk.

        Raises:
            CacheError: If they do not.
        """
        if self.bytes_needed > self.bytes_free:
            msg = (
                f"{self.name} features need {self.bytes_needed} bytes in {str(self.folder)!r}, but "
                f"only {self.bytes_free} are free. Make room, or pass --cache-dir with a folder on "
                "another disk, or a smaller --codec."
            )
            raise CacheError(msg)


def estimate(
    plans: Sequence[ChunkPlan], new: Sequence[ChunkPlan], encoder: Encoder, folder: Path
) -> Preflight:
    """Counts images, chunks and bytes.

    Args:
        plans: All chunks.
        new: The chunks that must be computed.
        encoder: Computes them.
        folder: Where the cache will be; it need not exist.
    """
    item_bytes = np.dtype(encoder.stored_dtype).itemsize
    cells = [len(plan.images) * math.prod(plan.grid) for plan in new]
    return Preflight(
        name=encoder.spec.name,
        folder=folder,
        device=str(encoder.device),
        num_images=sum(len(plan.images) for plan in plans),
        num_chunks=len(plans),
        new_images=sum(len(plan.images) for plan in new),
        new_chunks=len(new),
        bytes_needed=sum(
            HEADER_BYTES + count * encoder.stored_channels * item_bytes for count in cells
        ),
        bytes_free=free_bytes(folder),
    )


def seconds_of(plans: Sequence[ChunkPlan], encoder: Encoder) -> float:
    """Predicts how long chunks take, from one batch of the first chunk.

    Raises:
        ImageError: If an image cannot be read.
        DeviceError: If not even one image fits into memory.
    """
    if not plans:
        return 0.0
    plan = plans[0]
    batch = plan.images[: encoder.batch_size(plan.kind)]
    seconds = _time(encoder, plan, len(batch))
    if seconds < _SHORT_SECONDS:  # the first batch also warms up: measure once more if it is cheap
        seconds = _time(encoder, plan, len(batch))
    # The time of an image is taken as proportional to its pixels.
    pixels = sum(len(other.images) * other.kind.num_pixels for other in plans)
    return seconds * pixels / (len(batch) * plan.kind.num_pixels)


class Countdown:
    """Logs once, after the second batch, how long the remaining images will take."""

    def __init__(self, num_images: int) -> None:
        """Starts; ``num_images`` are to be computed by this worker or others."""
        self._left = num_images
        self._ends: list[float] = []  # when the first two batches were done

    def advance(self, num_images: int) -> None:
        """Counts a batch; the first one only starts the clock, as it also warms up."""
        self._left -= num_images
        if len(self._ends) == 2:
            return
        self._ends.append(time.monotonic())
        if len(self._ends) == 2 and self._left > 0:
            elapsed = self._ends[1] - self._ends[0]
            expected = duration(elapsed * self._left / num_images)
            log.info("About %s for the %d images left.", expected, self._left)


def duration(seconds: float) -> str:
    """Returns a time in seconds, minutes or hours, whichever reads best."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def _time(encoder: Encoder, plan: ChunkPlan, count: int) -> float:
    start = time.monotonic()
    inputs = [encoder.read(plan, info) for info in plan.images[:count]]
    if encoder.codec is not None:
        for stored in encoder.stored(inputs, plan, encoder.stored_dtype):
            stored.wait()
    else:
        for features in encoder.features(inputs, plan):
            features.cpu()
    return time.monotonic() - start


def free_bytes(folder: Path) -> int:
    """Returns the free bytes on the disk of a folder, which need not exist."""
    # The nearest folder that exists is on the disk on which the others will be made.
    existing = folder
    while not existing.exists() and existing != existing.parent:
        existing = existing.parent
    return shutil.disk_usage(existing).free
