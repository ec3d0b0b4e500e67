"""The trunk in tiny-cuda-nn: the only module that imports tinycudann, loaded when asked for."""

import tinycudann as tcnn  # pyright: ignore[reportMissingImports]
import torch
from jaxtyping import Float
from torch import Tensor

from f3rm.networks.base import HiddenNetwork, NetworkConfig
from f3rm.networks.encoding import frequency_encoding

_FUSED_WIDTHS = (16, 32, 64, 128)


class TcnnNetwork(HiddenNetwork):
    """tiny-cuda-nn's HashGrid, the positional encoding, and its bias-free MLP with ReLU outputs.

    The two encodings are concatenated in torch: tiny-cuda-nn's Composite splits the input's
    dimensions between its parts, whereas both of ours read all three.
    """

    def __init__(self, config: NetworkConfig) -> None:
        super().__init__()
        self.config = config
        self.grid = tcnn.Encoding(
            n_input_dims=3,
            encoding_config={
                "otype": "HashGrid",
                "n_levels": config.num_levels,
                "n_features_per_level": config.features_per_level,
                "log2_hashmap_size": config.log2_hashmap_size,
                "base_resolution": config.start_res,
                "per_level_scale": config.growth,
            },
        )
        self.mlp = tcnn.Network(
            n_input_dims=config.encoding_dim,
            n_output_dims=config.hidden_dim,
            network_config={
                "otype": "FullyFusedMLP" if config.hidden_dim in _FUSED_WIDTHS else "CutlassMLP",
                "activation": "ReLU",
                "output_activation": "ReLU",
                "n_neurons": config.hidden_dim,
                "n_hidden_layers": config.num_layers - 1,
            },
        )

    def forward(self, positions: Float[Tensor, "points 3"]) -> Float[Tensor, "points hidden"]:
        """Computes non-negative hidden vectors of positions in [0, 1]^3, in half precision."""
        encoded = self.grid(positions)
        if self.config.use_pe:
            pe = frequency_encoding(positions, self.config.pe_num_frequencies)
            encoded = torch.cat((encoded, pe.to(encoded.dtype)), -1)
        return self.mlp(encoded)
