"""Errors and value types that every room shares.

Nothing here imports torch or any other package of ours, so that the light paths (the entry point,
the command line's help) stay light.
"""

import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

StrPath = str | os.PathLike[str]
"""What every public entry takes where it wants a file or folder; see :func:`as_path`."""


def as_path(path: StrPath) -> Path:
    """Returns what a caller gave for a file or folder, a string or any path, as a path."""
    return Path(path)


def printable(text: str, *, lines: bool = False) -> str:
    """Writes the letters that a terminal would not show, or would obey, as Python's escapes.

    Names of files and texts in files are not ours: every one of them passes through here before it
    is printed, logged or put into a table.

    Args:
        text: The text.
        lines: Whether line breaks and tabs stay.
    """
    kept = "\n\t" if lines else ""
    return "".join(
        letter if letter.isprintable() or letter in kept else ascii(letter)[1:-1] for letter in text
    )


class F3rmError(Exception):
    """Base of every error that f3rm raises on purpose; its message says what to do next."""

    def __str__(self) -> str:
        """Returns the message, with control characters of names in it escaped."""
        return printable(super().__str__(), lines=True)


class DatasetError(F3rmError):
    """The dataset folder, its transforms.json or one of its frames cannot be used."""


class ImageError(DatasetError):
    """An image is missing, damaged, or in a mode that training would misread."""


class FeatureTypeError(F3rmError):
    """A feature type, or the weights given for one, has an unknown name."""


class TapError(F3rmError):
    """A tap is malformed, or names what its backbone does not have."""


class BackboneUnavailableError(F3rmError):
    """A backbone's package, weights or text tower cannot be had."""


class DeviceError(F3rmError):
    """The asked device does not exist on this machine."""


class ImplementationError(F3rmError):
    """The asked network implementation (tiny-cuda-nn, torch) is not available here."""


class CacheError(F3rmError):
    """A feature cache cannot be read or written."""


class CacheMismatchError(CacheError):
    """A feature cache exists but was made from other images, settings or files."""


@dataclass(frozen=True)
class BackboneRef:
    """Which frozen 2D model makes a feature: enough to load it again, as plain strings.

    Attributes:
        adapter: Name in the registry of backbones, e.g. ``"clip"``.
        model: The architecture in the words of the adapter's library, e.g.
            ``"ViT-L-14-336-quickgelu"``.
        weights: A tag or hub name that the library knows, or a local path.
    """

    adapter: str
    model: str
    weights: str


@dataclass(frozen=True)
class HeadSpec:
    """One feature head of the field.

    Attributes:
        name: Short lower-case name, e.g. ``"clip"``; also the name of its cache folder.
        channels: Number of feature channels C.
        has_text: Whether the backbone has a text tower, so that the head answers text queries.
        backbone: The model whose features the head distils.
        identity: Which weights these are, wherever they lie (``xxh3:...`` of a local file or
            folder, ``hub:...`` of a name), and the tap that reads them; empty where a checkpoint
            was written without it.
    """

    name: str
    channels: int
    has_text: bool
    backbone: BackboneRef
    identity: str = ""

    def is_same_model(self, other: "HeadSpec") -> bool:
        """Tells whether two heads distil one model; the place of its weights does not matter.

        Where one of them does not know its weights, the model's name decides.
        """
        if self.backbone.adapter != other.backbone.adapter:
            return False
        if self.identity and other.identity:
            return self.identity == other.identity
        return self.backbone.model == other.backbone.model

    def to_dict(self) -> dict[str, Any]:
        """Returns plain strings, numbers and dicts, for checkpoints read with ``weights_only``."""
        return asdict(self)

    @classmethod
    def from_dict(cls, plain: Mapping[str, Any]) -> "HeadSpec":
        """Rebuilds the value written by :meth:`to_dict`."""
        return cls(**{**plain, "backbone": BackboneRef(**plain["backbone"])})
