"""Interpolates hash grids in compiled code: with numba on a CPU, in Triton on a GPU."""

import importlib
import importlib.util
import logging
import os
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Float, Float32, Int64
from torch import Tensor

from f3rm.distribution import how_to_install

logger = logging.getLogger(__name__)

PRIMES = (1, 2654435761, 805459861)
"""Strides of Instant-NGP's spatial hash, Nerfstudio's too."""

Implementation = Literal["tcnn", "triton", "torch"]

_NUMBA, _TRITON = "f3rm.networks.hash_kernel", "f3rm.networks.triton_grid"  # import what they name


@dataclass(frozen=True, eq=False)
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


def is_fast(positions: Tensor, table: Tensor, implementation: Implementation = "torch") -> bool:
    """Returns whether :func:`interpolate` takes these tensors on this machine."""
    return _kernel_of(positions, table, implementation) is not None


def interpolate(
    positions: Float[Tensor, "points 3"],
    table: Float[Tensor, "rows features"],
    levels: Levels,
    implementation: Implementation = "torch",
) -> Float[Tensor, "points encoding"]:
    """Interpolates every level at positions; gradients flow into table and positions.

    Args:
        positions: Positions in [0, 1]^3, float32.
        table: Rows of all levels, float32.
        levels: Their layout.
        implementation: ``triton`` for Triton; numba on a CPU otherwise.
    """
    kernel: Any = importlib.import_module(_kernel_of(positions, table, implementation) or _NUMBA)
    return kernel.interpolate(positions, table, levels)


def triton_is_interpreted() -> bool:
    """Returns whether Triton's interpreter is on, which computes on a CPU, for tests."""
    return os.environ.get("TRITON_INTERPRET") == "1"


def _kernel_of(positions: Tensor, table: Tensor, implementation: Implementation) -> str | None:
    """Returns the module that interpolates these tensors; None for torch itself."""
    if positions.dtype != torch.float32 or table.dtype != torch.float32:
        return None
    devices = {positions.device.type, table.device.type}
    if implementation == "triton" and (devices == {"cuda"} or triton_is_interpreted()):
        return _TRITON
    return _NUMBA if devices == {"cpu"} and _is_installed() else None


@lru_cache
def _is_installed() -> bool:
    installed = importlib.util.find_spec("numba") is not None
    if not installed:
        logger.warning(
            "numba is not installed: hash grids take about ten times as long on this CPU. Run %s.",
            how_to_install("fast"),
        )
    return installed
