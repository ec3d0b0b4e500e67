"""The trunk in plain torch, on any device, in any precision.

The multiresolution hash grid follows Instant-NGP (Müller et al. 2022, section 3): levels whose full
grid fits the table are dense, finer ones are hashed. Unlike in tiny-cuda-nn, corners are at whole
multiples of 1 / resolution, without its half-cell offset.
"""

from functools import cached_property
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional

from f3rm.networks.base import HiddenNetwork, NetworkConfig, frequency_encoding
from f3rm.networks.fast import PRIMES, Implementation, Levels, interpolate, is_fast

_INIT_SCALE = 1e-4
_BAGS_AT_ONCE = 1 << 16
_ROWS_AT_ONCE = 1 << 13
_POINTS_AT_ONCE = 1 << 16
"""Points whose corners, encodings and layers are held at once where no gradient is recorded."""


class _WeightedRows(torch.autograd.Function):
    """``embedding_bag`` with a faster backward into its table.

    torch's own sorts all indices first; adding the weighted gradients by ``index_add_``, some bags
    at a time, was 1.5 (12 levels of 8) to 6 times (6 levels of 4) as fast on one CPU core.
    """

    @staticmethod
    def forward(ctx: Any, rows: Tensor, table: Tensor, weights: Tensor) -> Tensor:
        ctx.save_for_backward(rows, table, weights)
        return functional.embedding_bag(rows, table, mode="sum", per_sample_weights=weights)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[None, Tensor | None, Tensor | None]:
        rows, table, weights = ctx.saved_tensors
        (gradient,) = gradients  # (bags, features)
        of_table = of_weights = None
        if ctx.needs_input_grad[1]:
            of_table = torch.zeros_like(table)
            parts = (tensor.split(_BAGS_AT_ONCE) for tensor in (rows, weights, gradient))
            for row, weight, part in zip(*parts, strict=True):
                added = (weight[..., None] * part[:, None]).flatten(0, 1)  # (bags * 8, features)
                of_table.index_add_(0, row.flatten(), added)
        if ctx.needs_input_grad[2]:
            of_weights = (table[rows] @ gradient[..., None]).squeeze(-1)
        return None, of_table, of_weights


class _Layers(torch.autograd.Function):
    """Bias-free layers, each with a ReLU; autograd's own gradient dispatches a dozen views more.

    The same products as of ``nn.Linear`` and ``nn.ReLU`` over both encodings side by side, whose
    concatenation would cost as much as the first layer.
    """

    @staticmethod
    def forward(ctx: Any, encoded: Tensor, pe: Tensor | None, *weights: Tensor) -> Tensor:
        of_grid, of_pe = weights[0].T.tensor_split((encoded.shape[1],))
        hidden = encoded @ of_grid
        if pe is not None:
            hidden.addmm_(pe, of_pe)
        outputs = [hidden.relu_()]
        for weight in weights[1:]:
            outputs.append((outputs[-1] @ weight.T).relu_())
        ctx.save_for_backward(encoded, pe, *weights, *outputs)
        return outputs[-1]

    @staticmethod
    @once_differentiable
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any, gradient: Tensor
    ) -> tuple[Tensor | None, ...]:
        encoded, pe, *saved = ctx.saved_tensors
        (first, *rest), outputs = saved[: len(saved) // 2], saved[len(saved) // 2 :]
        of_rest: list[Tensor] = []
        for weight, before, output in zip(rest[::-1], outputs[-2::-1], outputs[:0:-1], strict=True):
            gradient = torch.ops.aten.threshold_backward(gradient, output, 0)
            of_rest.insert(0, gradient.T @ before)
            gradient = gradient @ weight
        gradient = torch.ops.aten.threshold_backward(gradient, outputs[0], 0)
        across, of_pe = gradient.T, None
        of_first = across @ encoded
        if pe is not None:
            of_first = torch.cat((of_first, across @ pe), dim=1)
        if ctx.needs_input_grad[1]:
            of_pe = gradient @ first[:, encoded.shape[1] :]
        return gradient @ first[:, : encoded.shape[1]], of_pe, of_first, *of_rest


class HashGrid(nn.Module):
    """Multiresolution hash grid with trilinear interpolation.

    All levels share one table; a level owns the rows from its offset on. On a CPU with numba, or in
    Triton, compiled code interpolates; elsewhere :meth:`reference` does.
    """

    implementation: Implementation = "torch"
    """Whether Triton interpolates on a GPU."""

    resolutions: Int[Tensor, " levels"]
    sizes: Int[Tensor, " levels"]
    offsets: Int[Tensor, " levels"]
    strides: Int[Tensor, "3 levels"]

    def __init__(self, config: NetworkConfig) -> None:
        super().__init__()
        levels = torch.arange(config.num_levels)
        resolutions = torch.floor(config.start_res * config.growth**levels + 1e-6).long()
        table_size = 1 << config.log2_hashmap_size
        side = resolutions + 1
        dense = side**3 <= table_size
        self.num_dense = int(dense.sum())
        sizes = torch.where(dense, side**3, table_size)
        dense_strides = torch.stack((torch.ones_like(side), side, side**2))
        strides = torch.where(dense, dense_strides, torch.tensor(PRIMES)[:, None])
        # Hashing needs the low bits only, which 32-bit products keep at half the memory traffic.
        self.register_buffer("resolutions", resolutions, persistent=False)
        self.register_buffer("sizes", sizes.int(), persistent=False)
        self.register_buffer("offsets", (sizes.cumsum(0) - sizes).int(), persistent=False)
        self.register_buffer("strides", strides.int(), persistent=False)
        rows = torch.rand(int(sizes.sum()), config.features_per_level)
        self.table = nn.Parameter((rows * 2 - 1) * _INIT_SCALE)

    def corners(
        self, positions: Float[Tensor, "points 3"]
    ) -> tuple[Int[Tensor, "points levels 8"], Float[Tensor, "points levels 8"]]:
        """Finds the table rows of the eight corners around each point, and their weights.

        Args:
            positions: Points; clamped to the unit cube.

        Returns:
            Row indices and trilinear weights; the weights of a point and level sum to 1.
        """
        scaled = positions.clamp(0, 1).T[..., None] * self.resolutions  # (3, points, levels)
        lower = torch.minimum(scaled.detach().floor(), self.resolutions - 1)
        fraction = scaled - lower
        key = lower.int() * self.strides[:, None]
        # Two sides per axis; broadcast, the corners come first: (2, 2, 2, points, levels).
        keys = torch.stack((key, key + self.strides[:, None]))
        sides = torch.stack((1 - fraction, fraction))
        x, y, z = keys[:, 0, None, None], keys[None, :, 1, None], keys[None, None, :, 2]
        dense, hashed = slice(None, self.num_dense), slice(self.num_dense, None)
        summed = x[..., dense] + y[..., dense] + z[..., dense]
        mixed = x[..., hashed] ^ y[..., hashed] ^ z[..., hashed]
        xored = mixed & (self.sizes[hashed] - 1)  # tables are powers of two
        rows = torch.cat((summed, xored), dim=-1) + self.offsets
        weights = sides[:, 0, None, None] * sides[None, :, 1, None] * sides[None, None, :, 2]
        return rows.flatten(0, 2).movedim(0, -1), weights.flatten(0, 2).movedim(0, -1)

    @cached_property
    def levels(self) -> Levels:
        """The layout of the levels."""
        is_dense = np.arange(len(self.sizes)) < self.num_dense
        resolutions = self.resolutions.cpu().numpy()
        return Levels(
            scales=resolutions.astype(np.float32),
            tops=(resolutions - 1).astype(np.float32),
            strides=np.ascontiguousarray(self.strides.cpu().numpy().T, dtype=np.int64),
            masks=np.where(is_dense, -1, self.sizes.cpu().numpy().astype(np.int64) - 1),
            offsets=self.offsets.cpu().numpy().astype(np.int64),
        )

    def forward(self, positions: Float[Tensor, "points 3"]) -> Float[Tensor, "points encoding"]:
        """Interpolates the features of every level at positions, clamped to [0, 1]^3."""
        return self.inside(positions.clamp(0, 1))

    def inside(self, positions: Float[Tensor, "points 3"]) -> Float[Tensor, "points encoding"]:
        """Does so at positions that are in [0, 1]^3 already, without launching a clamp."""
        if is_fast(positions, self.table, self.implementation):
            return interpolate(positions, self.table, self.levels, self.implementation)
        return self.reference(positions)

    def reference(self, positions: Float[Tensor, "points 3"]) -> Float[Tensor, "points encoding"]:
        """Interpolates with torch alone, on any device, in any precision.

        The eight corners of every point and level are gathered, weighted and summed by one
        ``embedding_bag``, which never holds the eight corner vectors at once.
        """
        rows, weights = self.corners(positions)
        features = _WeightedRows.apply(
            rows.reshape(-1, 8).long(), self.table, weights.reshape(-1, 8).to(self.table.dtype)
        )  # (points * levels, features)
        return features.view(len(positions), len(self.sizes) * self.table.shape[1])


class TorchNetwork(HiddenNetwork):
    """Hash grid and positional encoding, then bias-free layers with a ReLU after each."""

    def __init__(self, config: NetworkConfig) -> None:
        super().__init__()
        self.config = config
        self.grid = HashGrid(config)
        widths = [config.encoding_dim] + [config.hidden_dim] * config.num_layers
        layers: list[nn.Module] = []
        for wide, narrow in pairwise(widths):
            layers += [nn.Linear(wide, narrow, bias=False), nn.ReLU(inplace=True)]
        self.layers = nn.Sequential(*layers)

    def forward(self, positions: Float[Tensor, "points 3"]) -> Float[Tensor, "points hidden"]:
        """Computes non-negative hidden vectors of positions in [0, 1]^3."""
        if torch.is_grad_enabled():
            return self._layers_of(positions, self.grid.inside(positions))
        # Part by part, so that only the hidden vectors grow with the number of points. On a CPU the
        # parts are small, so that a layer's output is still in cache for the next layer.
        hidden = self.grid.table.new_empty(len(positions), self.config.hidden_dim)
        at_once = _ROWS_AT_ONCE if positions.device.type == "cpu" else _POINTS_AT_ONCE
        parts = (tensor.split(_POINTS_AT_ONCE) for tensor in (positions, hidden))
        for points, outs in zip(*parts, strict=True):
            tensors = (t.split(at_once) for t in (points, self.grid.inside(points), outs))
            for part, row, out in zip(*tensors, strict=True):
                out.copy_(self._layers_of(part, row))
        return hidden

    def _layers_of(
        self, positions: Float[Tensor, "points 3"], encoded: Float[Tensor, "points encoding"]
    ) -> Float[Tensor, "points hidden"]:
        tensors: list[Tensor | None] = [encoded, None, *self.layers.parameters()]
        if self.config.use_pe:
            tensors[1] = frequency_encoding(positions, self.config.pe_num_frequencies)
        device, dtype = encoded.device.type, encoded.dtype
        if torch.is_autocast_enabled(device) and dtype == torch.float32:
            dtype = torch.get_autocast_dtype(device)
        with torch.autocast(device, enabled=False):  # or backward would see two precisions
            return _Layers.apply(*(None if t is None else t.to(dtype) for t in tensors))
