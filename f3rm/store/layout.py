"""Layout of a chunk's rows: values of any shapes as cells of equal channels, and back.

A chunk is (images, rows, cols, channels). A single map is stored as it is. Several taps, or tokens
and vectors, are concatenated and cut into cells of as many channels as divide them all.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor

from f3rm.store.geometry import Size

Shape = tuple[int, ...]
Shapes = Mapping[str, Shape]
"""Tap -> shape of its value for one item, channels last."""


@dataclass(frozen=True)
class Layout:
    """Positions of the taps' values in a row.

    Attributes:
        shapes: Shape of one item's value by tap, in the order of storage.
        channels: Values per cell; divides the number of values of every tap.
    """

    shapes: Shapes
    channels: int

    @property
    def grid(self) -> Size:
        """Rows and columns of cells."""
        shape = self.map_shape
        if shape is not None:
            return shape[0], shape[1]
        return 1, sum(math.prod(shape) for shape in self.shapes.values()) // self.channels

    @property
    def map_shape(self) -> Shape | None:
        """(rows, cols, channels) if a single map is stored, else None."""
        if len(self.shapes) != 1:
            return None
        shape = next(iter(self.shapes.values()))
        return shape if len(shape) == 3 and shape[2] == self.channels else None

    def pack(
        self, values: Mapping[str, Shaped[Tensor, "batch ..."]]
    ) -> Float[Tensor, "batch rows cols channels"]:
        """Concatenates the values of a batch into rows."""
        parts = [values[tap].flatten(1) for tap in self.shapes]  # (batch, values) each
        # Converted only if needed: taps may differ in type, and one tap alone keeps its own.
        row = parts[0] if len(parts) == 1 else torch.cat([part.float() for part in parts], dim=1)
        return row.reshape(len(row), *self.grid, self.channels)

    def unpack(
        self, rows: Shaped[np.ndarray, "images ..."], tap: str, wanted: Int[np.ndarray, " wanted"]
    ) -> Shaped[np.ndarray, "wanted ..."]:
        """Reads one tap of some items of a chunk; of a mapped chunk, no other byte is read.

        Args:
            rows: The chunk, mapped or in memory.
            tap: A key of :attr:`shapes`.
            wanted: Positions of items in the chunk.
        """
        sizes = {name: math.prod(shape) for name, shape in self.shapes.items()}
        start = sum(sizes[name] for name in list(sizes)[: list(sizes).index(tap)])
        flat = rows.reshape(len(rows), -1)  # (images, values)
        return flat[wanted, start : start + sizes[tap]].reshape(len(wanted), *self.shapes[tap])


def common_channels(shapes: list[Shapes]) -> int:
    """Returns the largest number of channels that divides the last axis of every value."""
    return math.gcd(*(shape[-1] for one in shapes for shape in one.values()))
