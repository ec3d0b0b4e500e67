"""Errors and value types shared by all rooms.

Neither torch nor any other module of f3rm is imported here, so that light paths (the entry point,
the command line's help) stay light.
"""

import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from numbers import Real
from pathlib import Path
from typing import Any

StrPath = str | os.PathLike[str]
"""A file or folder as an argument of public functions; see :func:`as_path`."""


def as_path(path: StrPath) -> Path:
    """Returns a file or folder argument, a string or any path-like object, as a path.

    Raises:
        F3rmError: If it is something else.
    """
    try:
        return Path(path)
    except TypeError as error:
        raise F3rmError(f"A file or folder must be a path, got {path!r}.") from error


def check_number(name: str, value: Any, *, above: float | int) -> None:
    """Checks a number given as an argument; None, for a default, is accepted.

    Args:
        name: Name of the argument.
        value: Its value.
        above: It must be greater than this.

    Raises:
        F3rmError: If it is not.
    """
    is_number = not isinstance(value, bool) and isinstance(value, Real)
    if value is not None and not (is_number and float(value) > above):
        raise F3rmError(f"{name} must be a number above {above:g}, got {value!r}.")


def printable(text: str, *, lines: bool = False) -> str:
    """Replaces unprintable characters, such as a terminal's control sequences, by Python's escapes.

    File names and texts in files are untrusted: each one passes through here before it is printed,
    logged or put into a table.

    Args:
        text: The text.
        lines: Whether to keep line breaks and tabs.
    """
    kept = "\n\t" if lines else ""
    return "".join(
        letter if letter.isprintable() or letter in kept else ascii(letter)[1:-1] for letter in text
    )


class F3rmError(Exception):
    """Base class of f3rm's errors; messages say what was found and what to do next."""

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
    """A tap is malformed, or names a layer that its backbone does not have."""


class BackboneUnavailableError(F3rmError):
    """A backbone's package, weights or text tower is not available."""


class DeviceError(F3rmError):
    """The requested device or placement is not available on this machine, or its memory is full."""


class ImplementationError(F3rmError):
    """The requested implementation or engine (tiny-cuda-nn, numba, ...) is not available here."""


class CacheError(F3rmError):
    """A feature cache cannot be read or written."""


class CacheMismatchError(CacheError):
    """A feature cache exists but was made from other images, settings or files."""


@dataclass(frozen=True)
class BackboneRef:
    """A frozen 2D model by plain strings that are enough to load it again.

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
        identity: The weights' identity, wherever they are stored (``xxh3:...`` of a local file or
            folder, ``hub:...`` of a name), and the tap; empty if unknown.
    """

    name: str
    channels: int
    has_text: bool
    backbone: BackboneRef
    identity: str = ""

    def __str__(self) -> str:
        """Returns name and channels, and whether it answers text."""
        return f"{self.name} ({self.channels} channels{', text' * self.has_text})"

    def is_same_model(self, other: "HeadSpec") -> bool:
        """Returns whether two heads distil the same model, wherever its weights are stored.

        If the identity of one is unknown, the model's name decides.
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
        fields: dict[str, Any] = {**plain, "backbone": BackboneRef(**plain["backbone"])}
        return cls(**fields)
