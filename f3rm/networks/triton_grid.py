"""Hash grids in Triton, on a GPU: launches, gradients, and the check before the first use.

Imported only where Triton is installed, which comes with torch on Linux.
"""

import contextlib
import hashlib
import json
import os
import subprocess
from collections.abc import Callable
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import platformdirs
import torch
import triton
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import once_differentiable
from triton.errors import TritonError

from f3rm.networks import triton_kernels
from f3rm.networks.base import NetworkConfig
from f3rm.networks.fast import Levels
from f3rm.networks.torch_network import HashGrid, TorchNetwork

BLOCK = 128
"""Points of a program: four warps, 1,024 numbers of eight features."""
_LARGEST = 2.0**30
"""Bound of the corners of levels without one, so that they are integers of 32 bits."""
_POINTS = 4096
_TOLERANCES = {torch.float32: 1e-4, torch.float16: 1e-2}
"""Largest difference between kernel and twin in the check, relative to the largest number."""
# Of Triton's compiler, of the C compiler that it calls, of CUDA, and of versions that do not fit.
_ERRORS = (
    *(TritonError, RuntimeError, OSError, subprocess.SubprocessError),
    *(AssertionError, AttributeError, TypeError, ValueError),
)


class TritonNetwork(TorchNetwork):
    """The torch trunk, its parameters and their names, with its hash grid read in Triton."""

    def __init__(self, config: NetworkConfig) -> None:
        super().__init__(config)
        self.grid.implementation = "triton"


def interpolate(
    positions: Float[Tensor, "points 3"], table: Float[Tensor, "rows features"], levels: Levels
) -> Float[Tensor, "points encoding"]:
    """Interpolates every level at positions; gradients flow into the table and the positions.

    Args:
        positions: Positions in [0, 1]^3, float32.
        table: Rows of all levels, float32.
        levels: Their layout.

    Returns:
        Encodings in autocast's precision, float32 without it.
    """
    return _Interpolate.apply(positions.contiguous(), table.contiguous(), levels)


class _Interpolate(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, positions: Tensor, table: Tensor, levels: Levels) -> Tensor:
        ctx.save_for_backward(positions, table)
        ctx.levels, kind = levels, positions.device.type
        dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else table.dtype
        width = len(levels.scales) * table.shape[1]
        out = positions.new_empty(len(positions), width, dtype=dtype)
        _launch(levels, positions, table, out=out)
        return out

    @staticmethod
    @once_differentiable
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any, *gradients: Tensor
    ) -> tuple[Tensor | None, Tensor | None, None]:
        positions, table = ctx.saved_tensors
        shape = (len(ctx.levels.scales), *positions.shape)
        of_points = positions.new_empty(shape) if ctx.needs_input_grad[0] else None
        of_table = torch.zeros_like(table) if ctx.needs_input_grad[1] else None
        wanted = {"of_points": of_points, "of_table": of_table}
        _launch(ctx.levels, positions, table, gradient=gradients[0].contiguous(), **wanted)
        return None if of_points is None else of_points.sum(dim=0), of_table, None


def _launch(levels: Levels, points: Tensor, table: Tensor, **others: Tensor | None) -> None:
    """Runs the kernel on all points and levels."""
    if not len(points):
        return
    tensors = {name: others.get(name) for name in ("out", "gradient", "of_table", "of_points")}
    bounds, layout = _constants(levels, points.device)
    features, blocks = table.shape[1], triton.cdiv(len(points), BLOCK)
    with torch.cuda.device_of(points):  # Triton launches on the current GPU, whatever the tensors'
        triton_kernels.grid[blocks, len(levels.scales)](
            points,
            table,
            *tensors.values(),
            bounds,
            layout,
            len(points),
            levels=len(levels.scales),
            features=features,
            width=triton.next_power_of_2(features),
            block=BLOCK,
        )


@lru_cache(maxsize=64)
def _constants(levels: Levels, device: torch.device) -> tuple[Tensor, Tensor]:
    """Returns the kernel's ``bounds`` and ``layout`` of a grid's levels."""
    bottoms = np.where(levels.masks < 0, 0.0, -_LARGEST)
    bounds = np.stack((levels.scales, bottoms, levels.tops.clip(max=_LARGEST)), axis=1)
    layout = np.column_stack((levels.strides, levels.masks, levels.offsets))
    # Strides wrap around as the products of 32 bits do: only their low bits are hashed.
    return (
        torch.from_numpy(bounds.astype(np.float32)).to(device),
        torch.from_numpy(layout.astype(np.int32)).to(device),
    )


def difference(device: torch.device) -> str:
    """Compares kernel and torch twin: values, and gradients of tables and positions.

    Returns:
        What differs, as a clause; empty if nothing does.
    """
    generator = torch.Generator().manual_seed(0)
    for features in (2, 8, 4):  # of Nerfacto, of f3rm and of f3rm-lite: each is a kernel of its own
        config = NetworkConfig(3, features, log2_hashmap_size=12, start_res=8, max_res=64)
        with torch.random.fork_rng(devices=[]):
            grid = HashGrid(config)
        grid.table.data = torch.randn(grid.table.shape, generator=generator)
        points = torch.rand(_POINTS, 3, generator=generator).requires_grad_()
        cotangent = torch.randn(_POINTS, 3 * features, generator=generator)
        # On the CPU, where no setting of the GPU's products makes the twin inexact.
        twin = _with_gradients(grid.reference, points, grid.table, cotangent)
        points, table = (t.detach().to(device).requires_grad_() for t in (points, grid.table))
        kernel = partial(interpolate, table=table, levels=grid.levels)
        for precision, tolerance in _TOLERANCES.items():
            with torch.autocast(device.type, torch.float16, enabled=precision == torch.float16):
                mine = _with_gradients(kernel, points, table, cotangent.to(device))
            names = ("values", "gradients of positions", "gradients of tables")
            for name, found, expected in zip(names, mine, twin, strict=True):
                error = float((found.cpu() - expected).abs().max() / expected.abs().max())
                if not error <= tolerance:
                    return f"its {name} of {features} features differ from torch's by {error:.1e}"
    return ""


def _with_gradients(
    encode: Callable[[Tensor], Tensor], points: Tensor, table: Tensor, cotangent: Tensor
) -> tuple[Tensor, ...]:
    with torch.enable_grad():
        encoded = encode(points)
        given = cotangent.to(encoded.dtype)
        return (encoded.detach(), *torch.autograd.grad(encoded, (points, table), given))


@lru_cache
def problem(device: torch.device) -> str:
    """Returns why ``auto`` leaves Triton out on a device, as a clause; empty if it does not.

    The result of :func:`difference` is remembered by card, versions and kernel in f3rm's cache
    folder, an error is not: a compiler that Triton lacks may be installed tomorrow.
    """
    try:
        return _remembered_difference(device)
    except _ERRORS as error:
        text = str(error).strip().splitlines() or [""]
        return f"its check ended with {type(error).__name__}: {text[-1]}"


def _remembered_difference(device: torch.device) -> str:
    card = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
    source = Path(triton_kernels.__file__).read_bytes() + Path(__file__).read_bytes()
    versions = f"torch {torch.__version__}, triton {triton.__version__}"
    key = f"{card}, {versions}, f3rm {hashlib.sha256(source).hexdigest()[:16]}"
    file = Path(platformdirs.user_cache_dir("f3rm")) / "triton.json"
    known: dict[str, str] = {}
    with contextlib.suppress(OSError, ValueError):
        known = dict(json.loads(file.read_text(encoding="utf-8")))
    if key not in known:
        known[key] = difference(device)
        with contextlib.suppress(OSError):  # without the folder every start takes seconds longer
            file.parent.mkdir(parents=True, exist_ok=True)
            part = file.with_name(f"{file.name}.{os.getpid()}.tmp")
            part.write_text(json.dumps(known, indent=2), encoding="utf-8")
            part.replace(file)
    return known[key]
