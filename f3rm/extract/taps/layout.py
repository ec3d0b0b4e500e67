"""Values of any shapes as the rows of one chunk, and back.

The engine stores (images, rows, cols, channels). One map is stored as it is; several taps, or
tokens and vectors, lie one after another, cut into cells of as many channels as divide them all.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor

from f3rm.store.chunks import Rows
from f3rm.store.geometry import Size

Shape = tuple[int, ...]
Shapes = Mapping[str, Shape]
"""Tap -> shape of its value for one item, channels last."""


@dataclass(frozen=True)
class Layout:
    """Where the values of taps lie in a row.

    Attributes:
        shapes: What the taps give for one item.
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
        """Shape of the only tap if it is stored as a map: rows, columns and channels."""
        if len(self.shapes) != 1:
            return None
        shape = next(iter(self.shapes.values()))
        return shape if len(shape) == 3 and shape[2] == self.channels else None

    def pack(
        self, values: Mapping[str, Shaped[Tensor, "batch ..."]]
    ) -> Float[Tensor, "batch rows cols channels"]:
        """Puts the values of a batch into rows."""
        parts = [values[tap].flatten(1) for tap in self.shapes]  # (batch, values) each
        row = parts[0] if len(parts) == 1 else torch.cat([part.float() for part in parts], dim=1)
        return row.reshape(len(row), *self.grid, self.channels)

    def unpack(
        self, rows: Rows, tap: str, wanted: Int[np.ndarray, " wanted"]
    ) -> Shaped[np.ndarray, "wanted ..."]:
        """Reads one tap's values of some items of a chunk, and nothing else.

        Args:
            rows: The chunk, perhaps mapped.
            tap: One of those in :attr:`shapes`.
            wanted: Which items of the chunk.
        """
        sizes = {name: math.prod(shape) for name, shape in self.shapes.items()}
        start = sum(sizes[name] for name in list(sizes)[: list(sizes).index(tap)])
        flat = rows.reshape(len(rows), -1)  # (images, values)
        return flat[wanted, start : start + sizes[tap]].reshape(len(wanted), *self.shapes[tap])


def common_channels(shapes: list[Shapes]) -> int:
    """Returns the largest number of channels that divides the last axis of every value."""
    return math.gcd(*(shape[-1] for one in shapes for shape in one.values()))
