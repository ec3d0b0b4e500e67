"""The trunk in plain torch: runs on any device, in any precision.

The multiresolution hash grid follows Instant-NGP (Müller et al. 2022, section 3): levels whose full
grid fits the table are dense, finer ones are hashed. What differs from tiny-cuda-nn: corners lie at
whole multiples of 1 / resolution, without its half-cell offset.
"""

from itertools import pairwise

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional

from f3rm.networks.base import HiddenNetwork, NetworkConfig
from f3rm.networks.encoding import frequency_encoding

_PRIMES = (1, 2654435761, 805459861)
_INIT_SCALE = 1e-4


class HashGrid(nn.Module):
    """Multiresolution hash grid with trilinear interpolation.

    All levels share one table of rows; a level owns the rows from its offset on. The eight corners
    of every point and level are gathered, weighted and summed by one ``embedding_bag``, which never
    holds the eight corner vectors at once.
    """

    resolutions: Int[Tensor, " levels"]
    sizes: Int[Tensor, " levels"]
    offsets: Int[Tensor, " levels"]
    strides: Int[Tensor, "levels 3"]

    def __init__(self, config: NetworkConfig) -> None:
        super().__init__()
        levels = torch.arange(config.num_levels)
        resolutions = torch.floor(config.start_res * config.growth**levels + 1e-6).long()
        table_size = 1 << config.log2_hashmap_size
        cells = (resolutions + 1) ** 3
        dense = cells <= table_size
        self.num_dense = int(dense.sum())
        sizes = torch.where(dense, cells, table_size)
        side = resolutions + 1
        dense_strides = torch.stack((torch.ones_like(side), side, side**2), -1)
        strides = torch.where(dense[:, None], dense_strides, torch.tensor(_PRIMES))
        self.register_buffer("resolutions", resolutions, persistent=False)
        self.register_buffer("sizes", sizes, persistent=False)
        self.register_buffer("offsets", sizes.cumsum(0) - sizes, persistent=False)
        self.register_buffer("strides", strides, persistent=False)
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
        scaled = positions.clamp(0, 1)[:, None] * self.resolutions[:, None]  # (points, levels, 3)
        lower = torch.minimum(scaled.detach().floor().long(), self.resolutions[:, None] - 1)
        fraction = scaled - lower
        keys = torch.stack((lower, lower + 1), -1) * self.strides[..., None]
        sides = torch.stack((1 - fraction, fraction), -1)  # (points, levels, 3, 2)
        x, y, z = (
            keys[:, :, 0, :, None, None],
            keys[:, :, 1, None, :, None],
            keys[:, :, 2, None, None],
        )
        dense = slice(None, self.num_dense)
        hashed = slice(self.num_dense, None)
        summed = x[:, dense] + y[:, dense] + z[:, dense]
        xored = (x[:, hashed] ^ y[:, hashed] ^ z[:, hashed]) % self.sizes[hashed, None, None, None]
        rows = torch.cat((summed, xored), 1).flatten(2) + self.offsets[:, None]
        weights = (
            sides[:, :, 0, :, None, None]
            * sides[:, :, 1, None, :, None]
            * sides[:, :, 2, None, None]
        )
        return rows, weights.flatten(2)

    def forward(self, positions: Float[Tensor, "points 3"]) -> Float[Tensor, "points encoding"]:
        """Interpolates the features of every level at positions in [0, 1]^3."""
        rows, weights = self.corners(positions)
        features = functional.embedding_bag(
            rows.flatten(0, 1),
            self.table,
            mode="sum",
            per_sample_weights=weights.flatten(0, 1).to(self.table.dtype),
        )  # (points * levels, features)
        return features.view(len(positions), -1)


class TorchNetwork(HiddenNetwork):
    """Hash grid and positional encoding, then bias-free layers with a ReLU after each."""

    def __init__(self, config: NetworkConfig) -> None:
        super().__init__()
        self.config = config
        self.grid = HashGrid(config)
        widths = [config.encoding_dim] + [config.hidden_dim] * config.num_layers
        layers: list[nn.Module] = []
        for wide, narrow in pairwise(widths):
            layers += [nn.Linear(wide, narrow, bias=False), nn.ReLU()]
        self.layers = nn.Sequential(*layers)

    def forward(self, positions: Float[Tensor, "points 3"]) -> Float[Tensor, "points hidden"]:
        """Computes non-negative hidden vectors of positions in [0, 1]^3."""
        encoded = self.grid(positions)
        if self.config.use_pe:
            pe = frequency_encoding(positions, self.config.pe_num_frequencies)
            encoded = torch.cat((encoded, pe.to(encoded.dtype)), -1)
        return self.layers(encoded)
