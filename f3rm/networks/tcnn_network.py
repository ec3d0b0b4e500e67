"""The trunk in tiny-cuda-nn; the only module that imports tinycudann, loaded on demand."""

from typing import Any

import tinycudann as tcnn  # pyright: ignore[reportMissingImports]
import torch
from jaxtyping import Float
from torch import Tensor
from torch.func import functional_call
from torch.nn import functional

from f3rm.errors import ImplementationError
from f3rm.networks.base import HiddenNetwork, NetworkConfig
from f3rm.networks.gradient_scale import GradientScale

_FUSED_WIDTHS = (16, 32, 64, 128)
_ALIGNMENT = 16
"""Channels of a network's input and output are padded to a multiple of it."""


class TcnnNetwork(HiddenNetwork):
    """tiny-cuda-nn's HashGrid and Frequency encodings, and its bias-free MLP with ReLU outputs.

    One module computes all, in one kernel where tiny-cuda-nn can fuse it. Positions enter twice,
    once for each encoding: tiny-cuda-nn lets two encodings read the same dimensions, but the
    gradient of such a dimension is the last encoding's alone.

    Values and gradients are half inside and float32 outside; :class:`GradientScale` replaces
    tiny-cuda-nn's own factor, which is too small for the loss of a batch of features.
    """

    def __init__(self, config: NetworkConfig) -> None:
        super().__init__()
        self.config = config
        encoding: dict[str, Any] = {
            "otype": "HashGrid",
            "n_levels": config.num_levels,
            "n_features_per_level": config.features_per_level,
            "log2_hashmap_size": config.log2_hashmap_size,
            "base_resolution": config.start_res,
            "per_level_scale": config.growth,
        }
        if config.use_pe:
            pe = {"otype": "Frequency", "n_frequencies": config.pe_num_frequencies}
            parts = [
                {**part, "n_dims_to_encode": 3, "dims_to_encode_begin": 3 * number}
                for number, part in enumerate((encoding, pe))
            ]
            encoding = {"otype": "Composite", "nested": parts}
        self.module = tcnn.NetworkWithInputEncoding(
            n_input_dims=6 if config.use_pe else 3,
            n_output_dims=config.hidden_dim,
            encoding_config=encoding,
            network_config={
                "otype": "FullyFusedMLP" if config.hidden_dim in _FUSED_WIDTHS else "CutlassMLP",
                "activation": "ReLU",
                "output_activation": "ReLU",
                "n_neurons": config.hidden_dim,
                "n_hidden_layers": config.num_layers - 1,  # counted without the output layer
            },
        )
        self.module.loss_scale = 1.0
        if hasattr(tcnn, "supports_jit_fusion"):  # since version 2
            self.module.jit_fusion = tcnn.supports_jit_fusion()

    def forward(self, positions: Float[Tensor, "points 3"]) -> Float[Tensor, "points hidden"]:
        """Computes non-negative hidden vectors of positions in [0, 1]^3; there may be none."""
        if not len(positions):  # tiny-cuda-nn's matrix products refuse an empty batch
            return self.forward(functional.pad(positions, (0, 0, 0, 1)))[:0]
        scale = GradientScale()
        with torch.autocast(positions.device.type, enabled=False):
            inputs = scale.restored(positions)
            if self.config.use_pe:
                inputs = inputs.repeat(1, 2)
            if not torch.is_grad_enabled():
                return scale.enlarged(self.module(inputs))
            parameters = scale.restored(self.module.get_parameter("params"))
            return scale.enlarged(functional_call(self.module, {"params": parameters}, (inputs,)))

    def _load_from_state_dict(
        self, state_dict: dict[str, Any], prefix: str, *args: Any, **kwargs: Any
    ) -> None:
        """Also loads a checkpoint of f3rm's first version, with two modules for grid and layers.

        Raises:
            ImplementationError: If it cannot be converted, or if training would go on with it: its
                optimiser's state has the old layout.
        """
        grid = state_dict.pop(f"{prefix}grid.params", None)
        layers = state_dict.pop(f"{prefix}mlp.params", None)
        if grid is not None and layers is not None:
            if self.training:
                msg = (
                    "The checkpoint's tiny-cuda-nn trunk is of an earlier version of f3rm: it can "
                    "be opened, but training cannot go on. Resume with that version, or train "
                    "again."
                )
                raise ImplementationError(msg)
            state_dict[f"{prefix}module.params"] = torch.cat((self._reordered(layers), grid))
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)

    def _reordered(self, layers: Tensor) -> Tensor:
        """Reorders the first layer's columns from torch's positional encoding to Frequency's.

        torch's has the sines of all axes and octaves before the cosines; Frequency alternates.
        tiny-cuda-nn's parameters are the network's, row by row, and then the encoding's.

        *Source:* ``set_params_impl`` of tiny-cuda-nn's network_with_input_encoding.h, and
        frequency.h. Both layouts pad with ones, the hash grid alone with zeros.
        """
        config, hidden = self.config, self.config.hidden_dim
        width, end = _padded(config.encoding_dim), _padded(hidden)
        fits = len(layers) == hidden * (width + hidden * (config.num_layers - 2) + end)
        if not fits or (width != config.encoding_dim and not config.use_pe):
            msg = (
                "The checkpoint's tiny-cuda-nn trunk is of an earlier version of f3rm and cannot "
                "be converted: its sizes are padded in another way. Open it with that version, or "
                "train again."
            )
            raise ImplementationError(msg)
        weights = layers[: hidden * width].view(hidden, width)
        if config.use_pe:
            start = config.num_levels * config.features_per_level
            grid, pe, ones = weights.tensor_split((start, config.encoding_dim), dim=1)
            pe = pe.unflatten(1, (2, -1)).transpose(1, 2).flatten(1)
            weights = torch.cat((grid, pe, ones), dim=1)
        return torch.cat((weights.flatten(), layers[hidden * width :]))


def _padded(width: int) -> int:
    return -(-width // _ALIGNMENT) * _ALIGNMENT
