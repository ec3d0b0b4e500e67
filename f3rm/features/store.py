"""Reading a finished cache: whole maps, rows at pixels, random cells.

Chunks stay on disk and are memory-mapped. Every look-up at pixels goes through the affine that the
manifest records for the image. :func:`gather_reference` is the readable twin of
:meth:`FeatureStore.gather`.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from f3rm._types import CacheMismatchError
from f3rm.features.chunks import map_chunk
from f3rm.features.geometry import Size
from f3rm.features.manifest import Manifest, read_manifest
from f3rm.features.records import ImageRecord

GatherMode = Literal["nearest", "bilinear"]
_Index = Int[np.ndarray, " rays"]


class FeatureStore:
    """One feature type of one dataset, open for reading.

    Attributes:
        folder: Where the cache lies.
        manifest: What it says about itself.
        channels: Feature channels C.
        names: Names of the images in the order of their indices.
    """

    def __init__(self, folder: Path, manifest: Manifest) -> None:
        """Maps the chunks that ``manifest`` names; see :meth:`open`."""
        self.folder = folder
        self.manifest = manifest
        self.channels = manifest.channels
        self.names = tuple(image.name for image in manifest.images)
        self._index = {name: number for number, name in enumerate(self.names)}
        maps = [map_chunk(folder, chunk) for chunk in manifest.chunks]
        self._flat = [chunk.reshape(-1, self.channels) for chunk in maps]
        self._dtype = np.result_type(*(flat.dtype for flat in self._flat))
        self._first_rows = np.cumsum([0, *(len(flat) for flat in self._flat)])
        self._set_tables(manifest.images)

    @classmethod
    def open(cls, folder: Path) -> "FeatureStore":
        """Opens a cache after checking its manifest and the length, shape and type of every chunk.

        Args:
            folder: The folder with ``manifest.json``.

        Raises:
            CacheError: If there is no usable manifest.
            CacheMismatchError: If a chunk is missing or not the one that the manifest names.
        """
        return cls(folder, read_manifest(folder))

    def __len__(self) -> int:
        """Returns the number of images."""
        return len(self.names)

    def __reduce__(self) -> tuple[object, ...]:
        """Lets worker processes open the cache by its folder instead of copying the features."""
        return FeatureStore.open, (self.folder,)

    @property
    def num_bytes(self) -> int:
        """Bytes of all chunks on disk."""
        return sum(chunk.bytes for chunk in self.manifest.chunks)

    def index(self, name: str) -> int:
        """Returns the index of an image.

        Args:
            name: Its ``file_path`` as in transforms.json.

        Raises:
            CacheMismatchError: If the cache has no such image.
        """
        if name not in self._index:
            msg = (
                f"FeatureStore.index: name must be one of the {len(self)} images in "
                f"{str(self.folder)!r}, got {name!r}. Run f3rm extract again."
            )
            raise CacheMismatchError(msg)
        return self._index[name]

    def image_size(self, index: int) -> Size:
        """Returns height and width of an image file in pixels."""
        return self.manifest.images[index].size

    def grid_size(self, index: int) -> Size:
        """Returns rows and columns of an image's feature map."""
        image = self.manifest.images[index]
        return self.manifest.chunks[image.chunk].shape[1:3]

    def feature_map(self, index: int) -> Float[Tensor, "rows cols channels"]:
        """Returns a copy of an image's whole map in fp32."""
        rows, cols = self.grid_size(index)
        start = int(self._starts[index]) - int(self._first_rows[self._chunks[index]])
        flat = self._flat[int(self._chunks[index])][start : start + rows * cols]
        return torch.from_numpy(flat.copy()).float().reshape(rows, cols, self.channels)

    def gather(
        self,
        images: Int[Tensor, " rays"],
        xy: Float[Tensor, "rays 2"],
        *,
        mode: GatherMode = "nearest",
    ) -> Float[Tensor, "rays channels"]:
        """Looks up features at pixels.

        Args:
            images: Index of the image per ray.
            xy: Pixel-centre coordinates (x, y) in the image file: (0, 0) is the centre of its first
                pixel. Outside the image, or in padding, the nearest valid cell counts.
            mode: The nearest cell, or bilinear interpolation between cell centres.

        Returns:
            Features in fp32 on the CPU.

        Raises:
            IndexError: If an image index is out of range.
        """
        numbers = self._checked_images(images)
        x, y = xy.detach().cpu().double().numpy().T
        u = np.clip(x * self._scale_x[numbers] + self._offset_x[numbers], *self._cols[:, numbers])
        v = np.clip(y * self._scale_y[numbers] + self._offset_y[numbers], *self._rows[:, numbers])
        if mode == "nearest":
            rows, cols = np.floor(v + 0.5).astype(np.int64), np.floor(u + 0.5).astype(np.int64)
            return self._take(numbers, rows, cols).float()
        return self._bilinear(numbers, u, v)

    def cells(
        self,
        images: Int[Tensor, " cells"],
        rows: Int[Tensor, " cells"],
        cols: Int[Tensor, " cells"],
    ) -> Float[Tensor, "cells channels"]:
        """Looks up single cells of feature maps, in fp32.

        Raises:
            IndexError: If an index is out of range.
        """
        numbers = self._checked_images(images)
        row, col = rows.cpu().long().numpy(), cols.cpu().long().numpy()
        height, width = self._grids[:, numbers]
        if np.any((row < 0) | (row >= height) | (col < 0) | (col >= width)):
            msg = (
                "FeatureStore.cells: rows and cols must lie inside the feature map. See grid_size."
            )
            raise IndexError(msg)
        return self._take(numbers, row, col).float()

    def sample(self, num: int, seed: int) -> Float[Tensor, "num channels"]:
        """Draws distinct valid cells at random over all images, reading only these.

        The result depends on images and seed, not on how the cache is cut into chunks.

        Args:
            num: How many; all of them if there are fewer.
            seed: Seed of the draw.
        """
        rows_per_image = self._rows[1] - self._rows[0] + 1
        cols_per_image = self._cols[1] - self._cols[0] + 1
        ends = np.cumsum(rows_per_image * cols_per_image)
        total = int(ends[-1])
        picked = np.random.default_rng(seed).choice(total, size=min(num, total), replace=False)
        images = np.searchsorted(ends, picked, side="right")
        local = picked - (ends - rows_per_image * cols_per_image)[images]
        rows = self._rows[0][images] + local // cols_per_image[images]
        cols = self._cols[0][images] + local % cols_per_image[images]
        return self._take(images, rows, cols).float()

    def _set_tables(self, images: Sequence[ImageRecord]) -> None:
        """Lays the per-image numbers out as arrays over images."""
        affines = [image.affine for image in images]
        self._scale_x = np.array([affine.scale_x for affine in affines])
        self._offset_x = np.array([affine.offset_x for affine in affines])
        self._scale_y = np.array([affine.scale_y for affine in affines])
        self._offset_y = np.array([affine.offset_y for affine in affines])
        valid = [image.valid.cells() for image in images]
        self._rows = np.array([(rows.start, rows.stop - 1) for rows, _ in valid]).T
        self._cols = np.array([(cols.start, cols.stop - 1) for _, cols in valid]).T
        self._grids = np.array([self.grid_size(number) for number in range(len(images))]).T
        self._chunks = np.array([image.chunk for image in images])
        within = np.array([image.row for image in images]) * self._grids[0] * self._grids[1]
        self._starts = self._first_rows[self._chunks] + within

    def _checked_images(self, images: Int[Tensor, " rays"]) -> _Index:
        numbers = images.detach().cpu().long().numpy()
        if numbers.size and not 0 <= numbers.min() <= numbers.max() < len(self):
            msg = (
                f"FeatureStore: images must be indices from 0 to {len(self) - 1}, got "
                f"{numbers.min()} to {numbers.max()}. Use FeatureStore.index to find an image."
            )
            raise IndexError(msg)
        return numbers

    def _take(self, images: _Index, rows: _Index, cols: _Index) -> Float[Tensor, "rays channels"]:
        """Reads cells sorted by place on disk, with one call per chunk, in the stored type."""
        places = self._starts[images] + rows * self._grids[1][images] + cols
        order = np.argsort(places)
        places = places[order]
        ends = np.searchsorted(places, self._first_rows[1:])
        taken = np.empty((len(places), self.channels), dtype=self._dtype)
        start = 0
        for chunk, end in enumerate(ends.tolist()):
            if end > start:
                local = places[start:end] - self._first_rows[chunk]
                taken[start:end] = self._flat[chunk].take(local, axis=0)
            start = end
        back = np.empty_like(order)
        back[order] = np.arange(len(order))
        return torch.from_numpy(taken).index_select(0, torch.from_numpy(back))

    def _bilinear(
        self, images: _Index, u: Float[np.ndarray, " rays"], v: Float[np.ndarray, " rays"]
    ) -> Float[Tensor, "rays channels"]:
        """Blends the four cells around feature coordinates, which are clipped already."""
        left, top = np.floor(u).astype(np.int64), np.floor(v).astype(np.int64)
        right = np.minimum(left + 1, self._cols[1][images])
        bottom = np.minimum(top + 1, self._rows[1][images])
        rows, cols = np.concatenate([top, top, bottom, bottom]), np.concatenate([left, right] * 2)
        corners = self._take(np.tile(images, 4), rows, cols).reshape(4, len(u), self.channels)
        across, down = torch.from_numpy(u - left).float(), torch.from_numpy(v - top).float()
        weights = [
            (1 - down) * (1 - across),
            (1 - down) * across,
            down * (1 - across),
            down * across,
        ]
        blended = torch.zeros(len(u), self.channels)
        for corner, weight in zip(corners, weights, strict=True):
            blended.addcmul_(corner.float(), weight[:, None])
        return blended


def gather_reference(
    store: FeatureStore,
    images: Int[Tensor, " rays"],
    xy: Float[Tensor, "rays 2"],
    *,
    mode: GatherMode = "nearest",
) -> Float[Tensor, "rays channels"]:
    """Does what :meth:`FeatureStore.gather` does, ray by ray; slow, for tests and for reading."""
    found: list[Tensor] = []
    for index, (x, y) in zip(images.tolist(), xy.double().tolist(), strict=True):
        features = store.feature_map(index)
        image = store.manifest.images[index]
        rows, cols = image.valid.cells()
        u, v = image.affine.cells_from_pixels(x, y)
        u, v = min(max(u, cols[0]), cols[-1]), min(max(v, rows[0]), rows[-1])
        if mode == "nearest":
            found.append(features[int(v + 0.5), int(u + 0.5)])
            continue
        left, top = int(u), int(v)
        right, bottom = min(left + 1, cols[-1]), min(top + 1, rows[-1])
        upper = features[top, left].lerp(features[top, right], u - left)
        lower = features[bottom, left].lerp(features[bottom, right], u - left)
        found.append(upper.lerp(lower, v - top))
    return torch.stack(found) if found else torch.empty(0, store.channels)
