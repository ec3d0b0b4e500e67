"""What one call of the extractor asks for, as a value that can be sent to other processes."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from f3rm.backbones.base import Backbone
from f3rm.errors import CacheError, DatasetError
from f3rm.store.items import ImageItem
from f3rm.store.manifest import MANIFEST
from f3rm.store.spec import FeatureSpec

OnError = Literal["raise", "record"]
"""What happens to an image that cannot be extracted: the run ends, or goes on without it."""

LoadBackbone = Callable[..., Backbone]
"""Called as ``load(ref, device=device, towers=("image",))``."""


@dataclass(frozen=True)
class Job:
    """One feature type of one dataset.

    Attributes:
        items: The images.
        spec: What to extract.
        folder: Where the cache is or will be, absolute.
        device: ``auto``, ``cpu``, ``cuda`` or ``cuda:N``.
        shard_size: Images per chunk file.
        batch_size: Images per network call; None chooses by image size.
        force: Whether to extract anew even if the cache is valid.
        progress: Whether to show progress bars.
        on_error: What happens to an image that cannot be extracted.
        renew: Whether to look at every chunk of a cache that seems valid, and to keep only what is
            sound.
        before: With ``force`` or ``renew``, the cache that is to be replaced, as
            :func:`identity_of` knows it.
    """

    items: Sequence[ImageItem]
    spec: FeatureSpec
    folder: Path
    device: str = "auto"
    shard_size: int = 64
    batch_size: int | None = None
    force: bool = False
    progress: bool = True
    on_error: OnError = "raise"
    renew: bool = False
    before: tuple[int, int] | None = field(default=None)

    def __post_init__(self) -> None:
        names = [item.name for item in self.items]
        if not names or len(set(names)) != len(names):
            msg = (
                "extract_features: items must be at least one image, each once, got "
                f"{len(names)}. Check the dataset."
            )
            raise DatasetError(msg)
        for argument, value in (("shard_size", self.shard_size), ("batch_size", self.batch_size)):
            if value is not None and value < 1:
                msg = (
                    f"extract_features: {argument} must be at least 1, got {value}. Choose e.g. 64."
                )
                raise CacheError(msg)


def identity_of(folder: Path) -> tuple[int, int] | None:
    """Tells one finished cache in a folder from the next there, even if their bytes are equal."""
    try:
        status = (folder / MANIFEST).stat()
    except OSError:
        return None
    return status.st_ino, status.st_mtime_ns
