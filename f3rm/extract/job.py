"""The request of one extraction, as a value that can be sent to other processes."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from f3rm.backbones.base import Backbone
from f3rm.errors import CacheError, DatasetError
from f3rm.store.items import ImageItem
from f3rm.store.manifest import MANIFEST
from f3rm.store.spec import FeatureSpec

OnError = Literal["raise", "record"]
"""For an image that cannot be extracted: end the run, or record the reason and go on."""

LoadBackbone = Callable[..., Backbone]
"""Called as ``load(ref, device=device, towers=("image",))``."""


@dataclass(frozen=True)
class Job:
    """One feature type of one dataset.

    Attributes:
        items: The images.
        spec: The specification.
        folder: The cache folder, absolute; it need not exist.
        device: ``auto``, ``cpu``, ``cuda`` or ``cuda:N``.
        shard_size: Largest number of images in a chunk file.
        shard_bytes: Largest number of bytes of a chunk's data; None for ``shard_size`` alone.
        maps: Whether the taps must give maps, as look-ups at pixels need them.
        batch_size: Images per network call; None chooses by image size.
        force: Whether to extract anew even if the cache is valid.
        progress: Whether to show progress bars.
        on_error: Whether an image that cannot be extracted ends the run, or is recorded.
        renew: Whether to verify every chunk of a cache that seems valid, and to reuse sound ones
            only.
        before: With ``force`` or ``renew``, identity of the cache to be replaced, from
            :func:`identity_of`.
    """

    items: Sequence[ImageItem]
    spec: FeatureSpec
    folder: Path
    device: str = "auto"
    shard_size: int = 64
    shard_bytes: int | None = None
    maps: bool = False
    batch_size: int | None = None
    force: bool = False
    progress: bool = True
    on_error: OnError = "raise"
    renew: bool = False
    before: tuple[int, int] | None = None

    def __post_init__(self) -> None:
        names = [item.name for item in self.items]
        if not names or len(set(names)) != len(names):
            msg = (
                "The dataset must have at least one image, and each image once, got "
                f"{len(names)} with {len(set(names))} names."
            )
            raise DatasetError(msg)
        for option, value in (("--shard-size", self.shard_size), ("--batch-size", self.batch_size)):
            if value is not None and value < 1:
                raise CacheError(f"{option} must be at least 1, got {value}.")


def identity_of(folder: Path) -> tuple[int, int] | None:
    """Returns an identity of the finished cache in a folder, new even if the same bytes replace it.

    It lets a worker that starts late see that another one has already replaced the cache.
    """
    try:
        status = (folder / MANIFEST).stat()
    except OSError:
        return None
    return status.st_ino, status.st_mtime_ns
