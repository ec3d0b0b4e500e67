"""Segments of photographs, from files of any tool, and the mean target feature of each.

A cell of a feature map covers a whole patch and knows of its surroundings, so targets are blurred
where objects meet. Averaged over the segment that a pixel is in, they change where segments end.

A photograph's file is named after it, ``frame_1.png`` or ``frame_1.npz`` for ``images/frame_1.jpg``
or in the same folders. Both hold a label map (0 or less for no segment; a PNG may be coloured, with
black for none), an ``.npz`` also a stack of masks (masks, height, width) that may overlap.
"""

import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np
import torch
import xxhash
from jaxtyping import Float, Int, Shaped
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from f3rm.errors import DatasetError, printable

SUFFIXES = (".npz", ".png")

_MOST = np.iinfo(np.uint16).max
_SAMPLED = 1 << 16
"""Pixels of a photograph whose features are averaged: about nine per cell of CLIP's map."""

_UNREADABLE = (OSError, ValueError, KeyError, zipfile.BadZipFile, UnidentifiedImageError)


@dataclass(frozen=True)
class Segments:
    """Label maps of several photographs, one after the other.

    Attributes:
        labels: The label of each pixel, rows of photographs joined; 0 for no segment.
        starts: Index in ``labels`` of each photograph's first pixel.
        sizes: Height and width of each photograph's label map; 0 by 0 where it has no file.
        first: Number of segments of all photographs before each one.
        count: Segments of all photographs.
    """

    labels: NDArray[np.uint16]
    starts: Int[np.ndarray, " images"]
    sizes: Int[np.ndarray, "images 2"]
    first: Int[np.ndarray, " images"]
    count: int

    @property
    def key(self) -> str:
        """Names the content."""
        return xxhash.xxh3_128_hexdigest(self.labels.tobytes())

    @classmethod
    def read(cls, folder: Path, names: Sequence[str]) -> "Segments":
        """Reads the segments of photographs; some may have none.

        Args:
            folder: The folder of the files.
            names: The ``file_path`` of each photograph.

        Raises:
            DatasetError: If a file is damaged, or no photograph has one.
        """
        found = [_file_of(folder, name) for name in names]
        if not any(found):
            msg = (
                f"{str(folder)!r} has no segments of these photographs, e.g. of {names[0]!r}: "
                f"expected {PurePosixPath(names[0]).stem}{SUFFIXES[1]} or {SUFFIXES[0]}."
            )
            raise DatasetError(msg)
        empty = np.zeros((0, 0), dtype=np.uint16)
        return cls.of([empty if file is None else read_labels(file) for file in found])

    @classmethod
    def of(cls, maps: Sequence[NDArray[np.uint16]]) -> "Segments":
        """Joins label maps, each with labels from 1 to its number of segments."""
        counts = np.array([int(labels.max(initial=0)) for labels in maps])
        areas = np.array([labels.size for labels in maps])
        return cls(
            labels=np.concatenate([labels.ravel() for labels in maps]),
            starts=np.cumsum(areas) - areas,
            sizes=np.array([labels.shape for labels in maps]),
            first=np.cumsum(counts) - counts,
            count=int(counts.sum()),
        )

    def at(
        self, images: Int[Tensor, " rays"], places: Float[Tensor, "rays 2"]
    ) -> Int[Tensor, " rays"]:
        """Returns the segment at places of photographs, counted over all of them; -1 for none.

        Args:
            images: Indices of photographs.
            places: (y, x) as a share of height and width, in [0, 1].
        """
        image = images.numpy()
        height, width = self.sizes[image].T
        known = height > 0
        row, col = (
            np.clip((place * size).astype(np.int64), 0, np.maximum(size - 1, 0))
            for place, size in zip(places.numpy().T, (height, width), strict=True)
        )
        pixel = np.where(known, self.starts[image] + row * width + col, 0)
        labels = self.labels[pixel].astype(np.int64)
        inside = known & (labels > 0)
        return torch.from_numpy(np.where(inside, self.first[image] + labels - 1, -1))

    def means(
        self, features: Callable[[int, Float[Tensor, "pixels 2"]], Float[Tensor, "pixels channels"]]
    ) -> Float[Tensor, "segments channels"]:
        """Averages the features of each segment, over at most 65,536 pixels of a photograph.

        Args:
            features: From a photograph's index, and places in it, to features on the CPU.

        Returns:
            Means; NaN for a segment that is smaller than the step between these pixels.
        """
        sums: Tensor | None = None
        counts = torch.zeros(self.count)
        for image in np.flatnonzero(self.sizes[:, 0]):
            height, width = (int(side) for side in self.sizes[image])
            step = max(1, round((height * width / _SAMPLED) ** 0.5))
            y, x = torch.meshgrid(
                torch.arange(step // 2, height, step),
                torch.arange(step // 2, width, step),
                indexing="ij",
            )
            places = torch.stack(((y + 0.5) / height, (x + 0.5) / width), dim=-1).reshape(-1, 2)
            ids = self.at(torch.full((len(places),), int(image)), places)
            places, ids = places[ids >= 0], ids[ids >= 0]
            found = features(int(image), places).float()
            sums = found.new_zeros(self.count, found.shape[-1]) if sums is None else sums
            sums.index_add_(0, ids, found)
            counts.index_add_(0, ids, torch.ones(len(ids)))
        return (torch.zeros(self.count, 0) if sums is None else sums) / counts[:, None]

    def averaged(
        self,
        image: int,
        values: Float[Tensor, "height width channels"],
        places: Float[Tensor, "height width 2"],
    ) -> Float[Tensor, "height width channels"]:
        """Averages a picture over the segments of a photograph; what is in none keeps its values.

        Args:
            image: Index of the photograph.
            values: The picture, on the CPU.
            places: Where its pixels are in the photograph: (y, x) as a share of height and width.
        """
        places, pixels = places.reshape(-1, 2), values.flatten(0, 1)
        ids = self.at(torch.full((len(places),), image), places)
        found, segment = ids.unique(return_inverse=True)
        sums = pixels.new_zeros(len(found), pixels.shape[1]).index_add_(0, segment, pixels)
        means = (sums / segment.bincount()[:, None])[segment]
        return torch.where((ids >= 0)[:, None], means, pixels).view_as(values)


def _file_of(folder: Path, name: str) -> Path | None:
    path = PurePosixPath(name)
    places = [folder / path.parent / path.stem, folder / path.stem, folder / path.name]
    files = (Path(f"{place}{suffix}") for place in places for suffix in SUFFIXES)
    return next((file for file in files if file.is_file()), None)


def read_labels(file: Path) -> NDArray[np.uint16]:
    """Reads a file of segments as labels from 1 on; 0 for no segment.

    Of overlapping masks the smallest has a pixel: it is the part, the others are the whole.

    Raises:
        DatasetError: If the file is damaged, or holds something else.
    """
    try:
        values = _read_png(file) if file.suffix == ".png" else _read_npz(file)
    except _UNREADABLE as error:
        raise DatasetError(
            f"{printable(str(file))} is no readable file of segments: {error}. Write it again, or "
            "remove it."
        ) from error
    if values.ndim == 3:
        values = _painted(values != 0)
    if values.ndim != 2 or values.dtype.kind not in "iub":
        msg = (
            f"{printable(str(file))} must hold whole numbers of shape (height, width), or masks of "
            f"shape (masks, height, width), got {values.dtype} of shape {values.shape}."
        )
        raise DatasetError(msg)
    values = np.maximum(values, 0)
    known, labels = np.unique(values, return_inverse=True)
    if len(known) > _MOST:
        msg = f"{printable(str(file))} has {len(known)} segments; at most {_MOST} are read."
        raise DatasetError(msg)
    shift = 0 if known[0] == 0 else 1  # without a 0 every pixel is in a segment
    return (labels.reshape(values.shape) + shift).astype(np.uint16)


def _read_npz(file: Path) -> Shaped[np.ndarray, "..."]:
    # Opened here: NumPy leaves open what is no archive.
    with file.open("rb") as opened, np.load(opened, allow_pickle=False) as content:
        return content[content.files[0]]


def _read_png(file: Path) -> Int[np.ndarray, "height width"]:
    with Image.open(file) as image:
        values = np.asarray(image)
    if values.ndim == 2:
        return values.astype(np.int64)
    red, green, blue = (values[..., channel].astype(np.int64) for channel in range(3))
    return (red << 16) | (green << 8) | blue


def _painted(masks: Shaped[np.ndarray, "masks height width"]) -> Int[np.ndarray, "height width"]:
    """Joins masks into one label map, the larger ones below."""
    labels = np.zeros(masks.shape[1:], dtype=np.int64)
    for number in np.argsort(-masks.sum((1, 2)), kind="stable"):
        labels[masks[number]] = number + 1
    return labels
