"""Reads a finished cache: values of any tap by image, and of maps features at pixels and cells.

A pixel's row id comes from :class:`~f3rm.store.row_index.RowIndex`, the row from mapped chunks or
from the memory where :meth:`FeatureStore.resident` put it, and the codec decodes it.
:func:`gather_reference` is the readable reference of :meth:`FeatureStore.gather`.
"""

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float, Float32, Int, Shaped
from torch import Tensor

from f3rm.errors import CacheError, CacheMismatchError, StrPath, as_path
from f3rm.store.chunks import map_chunk
from f3rm.store.codec_files import read_codec
from f3rm.store.codecs import Codec
from f3rm.store.gather import Engine, MappedRows, RowSource
from f3rm.store.geometry import Size
from f3rm.store.layout import Layout, Shape
from f3rm.store.manifest import Manifest, read_manifest
from f3rm.store.placement import (
    WORDS,
    Memory,
    Placement,
    ResidentRows,
    choose_placement,
)
from f3rm.store.row_index import RowIndex

GatherMode = Literal["nearest", "bilinear"]

log = logging.getLogger(__name__)


class FeatureStore:
    """One feature type of one dataset, open for reading.

    Attributes:
        folder: The cache folder.
        manifest: Its manifest.
        channels: Feature channels C.
        names: Names of the images in the order of their indices.
        rows: Source of the stored rows.
    """

    def __init__(self, folder: Path, manifest: Manifest, *, engine: Engine = "auto") -> None:
        """Maps the chunks that ``manifest`` names; see :meth:`open`."""
        self.folder = folder
        self.manifest = manifest
        self.channels = manifest.channels
        self.names = tuple(image.name for image in manifest.images)
        self._index = {name: number for number, name in enumerate(self.names)}
        self._codec = read_codec(folder, manifest.codec, manifest.channels)
        self._codecs: dict[torch.device, Codec] = {}  # by device; filled by any thread
        maps = [map_chunk(folder, chunk) for chunk in manifest.chunks]
        self._chunks = [chunk.reshape(-1, chunk.shape[-1]) for chunk in maps]
        self._row_index = RowIndex(manifest)
        self.rows: RowSource = MappedRows(self._chunks, engine=engine)

    @classmethod
    def open(cls, folder: StrPath, *, engine: Engine = "auto") -> "FeatureStore":
        """Opens a cache after checking its manifest and the length, shape and type of every chunk.

        Args:
            folder: The folder with ``manifest.json``.
            engine: ``auto`` gathers rows with numba if it is installed, else with NumPy.

        Raises:
            CacheError: If there is no usable manifest.
            CacheMismatchError: If a chunk is missing, or not the one that the manifest describes.
            ImplementationError: If ``engine`` is ``numba`` and it is not installed.
        """
        folder = as_path(folder)
        return cls(folder, read_manifest(folder), engine=engine)

    def __len__(self) -> int:
        """Returns the number of images."""
        return len(self.names)

    def __reduce__(self) -> tuple[object, ...]:
        """Pickles the folder only: worker processes open the cache instead of copying features."""
        return FeatureStore.open, (self.folder,)

    @property
    def num_bytes(self) -> int:
        """Bytes of all chunks on disk."""
        return sum(chunk.bytes for chunk in self.manifest.chunks)

    @property
    def resident_bytes(self) -> int:
        """Bytes of all rows in one tensor of the stored type, the widest where chunks differ."""
        widest = np.result_type(*(chunk.dtype for chunk in self._chunks))
        return sum(chunk.size for chunk in self._chunks) * widest.itemsize

    def resident(self, device: torch.device) -> "FeatureStore":
        """Returns a store of the same features with all rows in one tensor.

        Args:
            device: The GPU, or the CPU for RAM. Look-ups return features on it.
        """
        copy = FeatureStore(self.folder, self.manifest)
        copy.rows = ResidentRows(self._chunks, device)
        return copy

    def index(self, name: str) -> int:
        """Returns the index of an image.

        Args:
            name: Its ``file_path`` as in transforms.json.

        Raises:
            CacheMismatchError: If the cache has no such image.
        """
        if name not in self._index:
            raise CacheMismatchError(
                f"No image {name!r} among the {len(self)} in {str(self.folder)!r}. "
                "Run f3rm extract again."
            )
        return self._index[name]

    def image_size(self, index: int) -> Size:
        """Returns height and width of an image file in pixels."""
        return self.manifest.images[index].size

    def grid_size(self, index: int) -> Size:
        """Returns rows and columns of an image's feature map."""
        image = self.manifest.images[index]
        return self.manifest.chunks[image.chunk].shape[1:3]

    def feature_map(self, index: int) -> Float32[Tensor, "rows cols channels"]:
        """Returns a copy of an image's whole map in fp32."""
        features = self._features(self._row_index.whole(int(index)))
        return features.reshape(*self.grid_size(index), self.channels)

    def gather(
        self,
        images: Int[Tensor, " rays"],
        xy: Float[Tensor, "rays 2"],
        *,
        mode: GatherMode = "nearest",
        device: torch.device | str | None = None,
    ) -> Float32[Tensor, "rays channels"]:
        """Looks up features at pixels.

        Args:
            images: Index of the image per ray.
            xy: Pixel-centre coordinates (x, y) in the image file: (0, 0) is the centre of its first
                pixel. Outside the image, or in padding, the nearest valid cell is read.
            mode: The nearest cell, or bilinear interpolation between cell centres.
            device: Device of the result; None for that of the rows: the CPU, unless
                :meth:`resident` put them elsewhere.

        Returns:
            Features in fp32.

        Raises:
            IndexError: If an image index is out of range.
        """
        numbers = self._checked_images(images)
        if mode == "nearest":
            return self._features(self._row_index.nearest(numbers, xy), device)
        row_ids, corner_weights = self._row_index.corners(numbers, xy)
        codes = self.rows.take(row_ids.reshape(-1))
        codes = codes.to(device or self.rows.device).view(4, len(numbers), codes.shape[-1])
        weights = torch.from_numpy(corner_weights).to(codes.device, torch.float32)
        blended = torch.zeros(codes.shape[1:], device=codes.device)
        for corner, weight in zip(codes, weights, strict=True):
            blended.addcmul_(corner.float(), weight[:, None])
        return self._decoded(blended)

    @property
    def taps(self) -> tuple[str, ...]:
        """Names of the taps."""
        return self.manifest.spec.taps

    def value_shape(self, index: int, tap: str) -> Shape:
        """Returns the shape of an image's value of a tap, channels last."""
        return self.manifest.chunks[self.manifest.images[index].chunk].taps[tap]

    def values(
        self, images: Int[np.ndarray, " images"], tap: str
    ) -> Shaped[np.ndarray, "images ..."]:
        """Reads one tap of some images; of other taps, no byte is read.

        Args:
            images: Indices of the images, in any order.
            tap: One of :attr:`taps`.

        Returns:
            Values in the type on disk, the widest if chunks differ; decoded in fp32.

        Raises:
            CacheError: If the images' values differ in shape.
        """
        records = [self.manifest.images[index] for index in images.tolist()]
        numbers = np.array([record.chunk for record in records], dtype=np.int64)
        rows = np.array([record.row for record in records], dtype=np.int64)
        chunks = {number: self.manifest.chunks[number] for number in {*numbers.tolist()} or {0}}
        shapes = {chunk.taps[tap] for chunk in chunks.values()}
        if len(shapes) > 1:
            raise CacheError(
                f"Items have values of different shapes for {tap!r}: {sorted(shapes)}. Extract "
                "with resize='exact' or a pooling operation, or take one item at a time."
            )
        values = np.empty((len(records), *shapes.pop()), self.value_dtype)
        for number, chunk in chunks.items():
            mine = np.flatnonzero(numbers == number)
            stored = self._chunks[number].reshape(chunk.shape)
            if self.manifest.codec.name == "none":
                layout = Layout(chunk.taps, self.channels)
                values[mine] = layout.unpack(stored, tap, rows[mine])
            else:  # of a single tap, whose cells are those of the chunk
                decoded = self._codec.decode(torch.from_numpy(stored[rows[mine]]))
                values[mine] = decoded.numpy().reshape(len(mine), *values.shape[1:])
        return values

    @property
    def value_dtype(self) -> np.dtype:
        """Type of :meth:`values`."""
        if self.manifest.codec.name != "none":
            return np.dtype(np.float32)
        return np.result_type(*(chunk.dtype for chunk in self._chunks))

    def cells(
        self,
        images: Int[Tensor, " cells"],
        rows: Int[Tensor, " cells"],
        cols: Int[Tensor, " cells"],
    ) -> Float32[Tensor, "cells channels"]:
        """Looks up single cells of feature maps, in fp32.

        Raises:
            IndexError: If an index is out of range.
        """
        numbers = self._checked_images(images)
        row, col = rows.cpu().long().numpy(), cols.cpu().long().numpy()
        return self._features(self._row_index.cells(numbers, row, col))

    def sample(self, num: int, seed: int) -> Float32[Tensor, "num channels"]:
        """Draws distinct valid cells at random over all images, reading only these.

        The result depends on images and seed, not on how the cache is cut into chunks.

        Args:
            num: Number of cells; all of them if there are fewer.
            seed: Seed of the draw.

        Returns:
            Features in fp32 on the CPU.
        """
        return self._features(self._row_index.sample(num, seed), "cpu")

    def _checked_images(self, images: Int[Tensor, " rays"]) -> Int[np.ndarray, " rays"]:
        numbers = images.detach().cpu().long().numpy()
        if numbers.size and not 0 <= numbers.min() <= numbers.max() < len(self):
            raise IndexError(
                f"images must be indices from 0 to {len(self) - 1}, got {numbers.min()} to "
                f"{numbers.max()}. FeatureStore.index returns the index of an image."
            )
        return numbers

    def _features(
        self, row_ids: Int[np.ndarray, " rows"], device: torch.device | str | None = None
    ) -> Float32[Tensor, "rows channels"]:
        """Reads and decodes rows; they are transferred in the stored type, which is smaller."""
        codes = self.rows.take(row_ids).to(device or self.rows.device)
        features = self._decoded(codes)
        # A row source may reuse its memory, so a view of it is never returned.
        return features.clone() if features.data_ptr() == codes.data_ptr() else features

    def _decoded(self, codes: Shaped[Tensor, "rows stored"]) -> Float32[Tensor, "rows channels"]:
        codec = self._codecs.get(codes.device)
        if codec is None:  # a race is harmless: either thread's copy is right
            codec = self._codecs.setdefault(codes.device, self._codec.to(codes.device))
        return codec.decode(codes)


def place_stores(
    stores: Mapping[str, FeatureStore],
    wanted: Placement,
    *,
    device: torch.device,
    budget: int | None = None,
) -> dict[str, FeatureStore]:
    """Chooses a placement for the rows of all stores together, moves them and logs it.

    Args:
        stores: Stores by name.
        wanted: ``auto``, ``gpu``, ``ram`` or ``mmap``.
        device: Device of the batches.
        budget: Bytes that the rows of all stores may take together; by default 30 % of the free
            GPU memory, or 50 % of the available RAM.

    Raises:
        DeviceError: If the GPU is wanted and batches go elsewhere, or the rows do not fit.
    """
    num_bytes = sum(store.resident_bytes for store in stores.values())
    memory = Memory.now(device)
    placement = choose_placement(wanted, num_bytes, memory=memory, budget=budget)
    names = ", ".join(stores)
    log.info(
        "Features (%s): %.2f GiB, read from %s.", names, num_bytes / (1 << 30), WORDS[placement]
    )
    if placement == "mmap":
        return dict(stores)
    target = device if placement == "gpu" else torch.device("cpu")
    return {name: store.resident(target) for name, store in stores.items()}


def gather_reference(
    store: FeatureStore,
    images: Int[Tensor, " rays"],
    xy: Float[Tensor, "rays 2"],
    *,
    mode: GatherMode = "nearest",
) -> Float[Tensor, "rays channels"]:
    """Gathers like :meth:`FeatureStore.gather`, ray by ray: slow and readable, for tests."""
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
