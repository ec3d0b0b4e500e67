"""Wiring of the tiny-cuda-nn trunk, with a stand-in that only knows sizes; no CUDA needed.

The numbers that tiny-cuda-nn computes are checked by the test marked ``gpu``.
"""

import sys
import types
from typing import Any

import pytest
import torch

from f3rm.networks.base import NetworkConfig, build_network, tcnn_installed

SMALL = NetworkConfig(num_levels=3, features_per_level=2, log2_hashmap_size=10, hidden_dim=32)


class _Module(torch.nn.Module):
    """Takes tiny-cuda-nn's arguments and returns half-precision zeros of the right width."""

    def __init__(self, n_input_dims, n_output_dims=None, encoding_config=None, network_config=None):
        super().__init__()
        self.n_input_dims = n_input_dims
        self.config = encoding_config or network_config
        encoding = encoding_config or {}
        self.width = n_output_dims or encoding["n_levels"] * encoding["n_features_per_level"]

    def forward(self, inputs):
        assert inputs.shape[-1] == self.n_input_dims
        return torch.zeros(*inputs.shape[:-1], self.width, dtype=torch.half)


@pytest.fixture
def stand_in(monkeypatch):
    module = types.ModuleType("tinycudann")
    vars(module).update(Encoding=_Module, Network=_Module)
    monkeypatch.setitem(sys.modules, "tinycudann", module)
    monkeypatch.delitem(sys.modules, "f3rm.networks.tcnn_network", raising=False)
    yield
    sys.modules.pop("f3rm.networks.tcnn_network", None)


@pytest.mark.parametrize("use_pe", [True, False])
def test_both_layers_have_relu_and_the_sizes_of_the_torch_trunk(stand_in, use_pe):
    config = NetworkConfig(**{**vars(SMALL), "use_pe": use_pe})
    network: Any = build_network(config, "tcnn")
    assert network(torch.rand(5, 3)).shape == (5, 32)
    layers = network.mlp.config
    assert (layers["activation"], layers["output_activation"]) == ("ReLU", "ReLU")
    assert (layers["otype"], layers["n_neurons"], layers["n_hidden_layers"]) == (
        "FullyFusedMLP",
        32,
        1,  # tiny-cuda-nn counts without the output layer
    )
    grid = network.grid.config
    assert grid["base_resolution"] * grid["per_level_scale"] ** 2 == pytest.approx(128)


def test_widths_that_are_not_fused_take_the_other_network(stand_in):
    network: Any = build_network(NetworkConfig(**{**vars(SMALL), "hidden_dim": 48}), "tcnn")
    assert network.mlp.config["otype"] == "CutlassMLP"


@pytest.mark.gpu
@pytest.mark.skipif(not tcnn_installed(), reason="tiny-cuda-nn is not installed")
def test_tiny_cuda_nn_gives_non_negative_hidden_vectors_with_gradients():
    network: Any = build_network(SMALL, "tcnn").cuda()
    hidden = network(torch.rand(256, 3, device="cuda"))
    assert hidden.shape == (256, 32)
    assert hidden.min() >= 0
    hidden.float().sum().backward()
    assert all(parameter.grad is not None for parameter in network.parameters())
