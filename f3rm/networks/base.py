"""The contract of a trunk network, and the choice between its implementations.

The trunk is encoding -> hidden -> hidden with a ReLU after every layer and no bias, so that its
output composites along a ray before a linear head projects it.
"""

import importlib
import importlib.util
import logging
from abc import abstractmethod
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from f3rm._types import ImplementationError

logger = logging.getLogger(__name__)

Implementation = Literal["tcnn", "torch"]
ImplementationChoice = Literal["auto", "tcnn", "torch"]

_NETWORKS = {
    "torch": "f3rm.networks.torch_network:TorchNetwork",
    "tcnn": "f3rm.networks.tcnn_network:TcnnNetwork",
}


@dataclass(frozen=True)
class NetworkConfig:
    """Sizes of the trunk; the defaults are f3rm's."""

    num_levels: int = 12
    """Levels of the hash grid."""
    features_per_level: int = 8
    """Features per level."""
    log2_hashmap_size: int = 19
    """Entries of a level's table are at most 2 to this power."""
    start_res: int = 16
    """Cells per axis of the coarsest level."""
    max_res: int = 128
    """Cells per axis of the finest level."""
    use_pe: bool = True
    """Whether sines and cosines of the position stand beside the hash grid."""
    pe_num_frequencies: int = 6
    """Octaves of the positional encoding: ``sin`` and ``cos`` of ``2^k pi x``."""
    hidden_dim: int = 64
    """Width of the hidden layers and of the output."""
    num_layers: int = 2
    """Hidden layers, each followed by a ReLU."""

    @property
    def encoding_dim(self) -> int:
        """Channels after the encoding."""
        pe = 3 * 2 * self.pe_num_frequencies if self.use_pe else 0
        return self.num_levels * self.features_per_level + pe

    @property
    def growth(self) -> float:
        """Ratio of one level's resolution to the next coarser one's."""
        if self.num_levels < 2:
            return 1.0
        return (self.max_res / self.start_res) ** (1 / (self.num_levels - 1))


class HiddenNetwork(nn.Module):
    """A trunk: positions in the unit cube to hidden vectors."""

    @abstractmethod
    def forward(self, positions: Float[Tensor, "points 3"]) -> Float[Tensor, "points hidden"]:
        """Computes non-negative hidden vectors of positions in [0, 1]^3."""


def tcnn_installed() -> bool:
    """Whether tiny-cuda-nn's Python package is there; does not import it."""
    return importlib.util.find_spec("tinycudann") is not None


def resolve_implementation(
    choice: ImplementationChoice, device: torch.device | str
) -> Implementation:
    """Decides which implementation runs.

    Args:
        choice: ``auto`` takes tiny-cuda-nn on a CUDA device where it is installed, else torch, and
            logs what it took.
        device: Where the model will run.

    Raises:
        ImplementationError: If ``tcnn`` is asked for and cannot run here.
    """
    on_cuda = torch.device(device).type == "cuda"
    if choice == "auto":
        chosen: Implementation = "tcnn" if on_cuda and tcnn_installed() else "torch"
        logger.info("implementation=auto chose %s on %s.", chosen, device)
        return chosen
    if choice == "tcnn" and not (on_cuda and tcnn_installed()):
        missing = "the device is not CUDA" if not on_cuda else "tiny-cuda-nn is not installed"
        msg = (
            f"resolve_implementation: implementation 'tcnn' was asked for, but {missing}. Use "
            "--pipeline.model.implementation torch, or see docs/install.md to install tiny-cuda-nn."
        )
        raise ImplementationError(msg)
    return choice


def build_network(config: NetworkConfig, implementation: Implementation) -> HiddenNetwork:
    """Builds a trunk of the given implementation."""
    module, _, name = _NETWORKS[implementation].partition(":")
    return getattr(importlib.import_module(module), name)(config)
