"""Interpolates hash grids in machine code: on a CPU, in single precision, with numba."""

import importlib
import importlib.util
import logging
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Float32, Int64
from torch import Tensor

from f3rm.distribution import how_to_install

logger = logging.getLogger(__name__)

PRIMES = (1, 2654435761, 805459861)
"""Strides of Instant-NGP's spatial hash, Nerfstudio's too."""

_KERNEL = "f3rm.networks.hash_kernel"  # imports numba


@dataclass(frozen=True)
class Levels:
    """The layout of a hash grid's levels in one table.

    Attributes:
        scales: Cells per axis.
        tops: Largest lower corner; a point beyond it is interpolated in the last cell.
        strides: Factors of a corner's three integer coordinates.
        masks: Size of the level's table less one if the products are hashed; -1 if they are summed.
        offsets: The level's first row.
    """

    scales: Float32[np.ndarray, " levels"]
    tops: Float32[np.ndarray, " levels"]
    strides: Int64[np.ndarray, "levels 3"]
    masks: Int64[np.ndarray, " levels"]
    offsets: Int64[np.ndarray, " levels"]


def is_fast(positions: Tensor, table: Tensor) -> bool:
    """Returns whether :func:`interpolate` takes these tensors on this machine."""
    plain = all(
        tensor.device.type == "cpu" and tensor.dtype == torch.float32
        for tensor in (positions, table)
    )
    return plain and _is_installed()


def interpolate(
    positions: Float[Tensor, "points 3"], table: Float[Tensor, "rows features"], levels: Levels
) -> Float[Tensor, "points encoding"]:
    """Interpolates every level at positions; gradients flow into table and positions.

    Args:
        positions: Positions in [0, 1]^3, float32 on the CPU.
        table: Rows of all levels, float32 on the CPU.
        levels: Their layout.
    """
    kernel: Any = importlib.import_module(_KERNEL)
    return kernel.interpolate(positions, table, levels)


@lru_cache
def _is_installed() -> bool:
    installed = importlib.util.find_spec("numba") is not None
    if not installed:
        logger.warning(
            "numba is not installed: hash grids take about ten times as long on this CPU. Run %s.",
            how_to_install("fast"),
        )
    return installed
