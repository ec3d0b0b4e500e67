"""The trunk in tiny-cuda-nn; the only module that imports tinycudann, loaded on demand."""

import tinycudann as tcnn  # pyright: ignore[reportMissingImports]
import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional

from f3rm.networks.base import HiddenNetwork, NetworkConfig, frequency_encoding
from f3rm.networks.gradient_scale import GradientScale

_FUSED_WIDTHS = (16, 32, 64, 128)


class TcnnNetwork(HiddenNetwork):
    """tiny-cuda-nn's HashGrid, the positional encoding, and its bias-free MLP with ReLU outputs.

    torch concatenates the two encodings: tiny-cuda-nn's Composite splits the input's dimensions
    between its parts, but both of ours read all three.

    Values and gradients are half inside and float32 outside; :class:`GradientScale` replaces
    tiny-cuda-nn's own factor, which is too small for the loss of a batch of features.
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
                "n_hidden_layers": config.num_layers - 1,  # counted without the output layer
            },
        )
        self.grid.loss_scale = self.mlp.loss_scale = 1.0

    def forward(self, positions: Float[Tensor, "points 3"]) -> Float[Tensor, "points hidden"]:
        """Computes non-negative hidden vectors of positions in [0, 1]^3; there may be none."""
        if not len(positions):  # tiny-cuda-nn's matrix products refuse an empty batch
            return self.forward(functional.pad(positions, (0, 0, 0, 1)))[:0]
        scale = GradientScale()
        # Under autocast to bfloat16, torch.cat would refuse the grid's half-precision features.
        with torch.autocast(positions.device.type, enabled=False):
            positions = scale.restored(positions)
            encoded = _call(self.grid, positions, scale)
            if self.config.use_pe:
                pe = frequency_encoding(positions, self.config.pe_num_frequencies)
                encoded = torch.cat((encoded, pe.to(encoded.dtype)), -1)
            return scale.enlarged(_call(self.mlp, encoded, scale))


def _call(module: nn.Module, inputs: Tensor, scale: GradientScale) -> Tensor:
    """Calls a module of tiny-cuda-nn; the gradient of its parameters comes back unscaled."""
    if not torch.is_grad_enabled():
        return module(inputs)
    parameters = scale.restored(module.get_parameter("params"))
    return functional_call(module, {"params": parameters}, (inputs,))
