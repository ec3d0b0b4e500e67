"""Row ids of a store for many pixels at once; reads no features.

Every pixel goes through the affine that the manifest records for its image.
"""

import numpy as np
from jaxtyping import Float, Int
from torch import Tensor

from f3rm.store.manifest import Manifest

Numbers = Int[np.ndarray, " rays"]


class RowIndex:
    """Arrays over a manifest's images that give the row id of any cell or pixel."""

    def __init__(self, manifest: Manifest) -> None:
        images, chunks = manifest.images, manifest.chunks
        affines = [image.affine for image in images]
        self._scale = np.array([(affine.scale_x, affine.scale_y) for affine in affines])
        self._offset = np.array([(affine.offset_x, affine.offset_y) for affine in affines])
        valid = [image.valid.cells() for image in images]
        self._low = np.array([(cols.start, rows.start) for rows, cols in valid])  # (images, 2), x y
        self._high = np.array([(cols.stop - 1, rows.stop - 1) for rows, cols in valid])
        self._grids = np.array([chunks[image.chunk].shape[1:3] for image in images])
        self._cols = self._grids[:, 1]
        sizes = [chunk.shape[0] * chunk.shape[1] * chunk.shape[2] for chunk in chunks]
        first_rows = np.cumsum([0, *sizes])[[image.chunk for image in images]]
        within = np.array([image.row for image in images]) * self._grids.prod(axis=1)
        self._starts = first_rows + within

    def nearest(self, images: Numbers, xy: Float[Tensor, "rays 2"]) -> Numbers:
        """Returns the row id of the nearest valid cell of each pixel."""
        cell = np.floor(self._coordinates(images, xy) + 0.5).astype(np.int64)
        return self._starts[images] + cell[:, 1] * self._cols[images] + cell[:, 0]

    def corners(
        self, images: Numbers, xy: Float[Tensor, "rays 2"]
    ) -> tuple[Int[np.ndarray, "4 rays"], Float[np.ndarray, "4 rays"]]:
        """Returns row ids and bilinear weights of the four valid cells around each pixel.

        The order is upper left, upper right, lower left, lower right; weights sum to one.
        """
        uv = self._coordinates(images, xy)
        near = np.floor(uv).astype(np.int64)
        far = np.minimum(near + 1, self._high[images])
        starts, cols = self._starts[images], self._cols[images]
        upper, lower = starts + near[:, 1] * cols, starts + far[:, 1] * cols
        left, right = near[:, 0], far[:, 0]
        across, down = (uv - near).T
        weights = ((1 - down) * (1 - across), (1 - down) * across, down * (1 - across))
        row_ids = np.stack([upper + left, upper + right, lower + left, lower + right])
        return row_ids, np.stack([*weights, down * across])

    def cells(self, images: Numbers, rows: Numbers, cols: Numbers) -> Numbers:
        """Returns the row ids of cells of feature maps.

        Raises:
            IndexError: If a cell is outside its map.
        """
        height, width = self._grids[images].T
        if np.any((rows < 0) | (rows >= height) | (cols < 0) | (cols >= width)):
            raise IndexError(
                f"rows and cols must be inside the feature map, got rows up to {rows.max()} and "
                f"cols up to {cols.max()}. See FeatureStore.grid_size."
            )
        return self._starts[images] + rows * width + cols

    def whole(self, image: int) -> Numbers:
        """Returns the row ids of an image's whole feature map, row by row."""
        start = int(self._starts[image])
        return np.arange(start, start + int(self._grids[image].prod()))

    def sample(self, num: int, seed: int) -> Numbers:
        """Draws distinct valid cells at random; all of them if there are fewer than ``num``.

        The cells depend on images and seed, not on how the cache is cut into chunks.
        """
        counts = self._high - self._low + 1  # (images, 2), x y
        ends = np.cumsum(counts.prod(axis=1))
        total = int(ends[-1])
        picked = np.random.default_rng(seed).choice(total, size=min(num, total), replace=False)
        images = np.searchsorted(ends, picked, side="right")
        local = picked - (ends - counts.prod(axis=1))[images]
        y, x = np.divmod(local, counts[images, 0])
        cols, rows = self._low[images, 0] + x, self._low[images, 1] + y
        return self._starts[images] + rows * self._cols[images] + cols

    def _coordinates(
        self, images: Numbers, xy: Float[Tensor, "rays 2"]
    ) -> Float[np.ndarray, "rays 2"]:
        """Returns feature coordinates (u, v), clamped to the valid part of each map."""
        pixels = xy.detach().cpu().double().numpy()  # fp32 would pick other cells at their edges
        uv = pixels * self._scale[images] + self._offset[images]
        return np.clip(uv, self._low[images], self._high[images])
