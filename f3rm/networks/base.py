"""The contract of a trunk, the choice of its implementation, and its positional encoding.

The trunk is encoding -> hidden -> hidden with a ReLU after every layer and no bias, so that its
output composites along a ray before a linear head projects it.
"""

import importlib
import importlib.util
import logging
from abc import abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from f3rm.errors import ImplementationError
from f3rm.networks.fast import Implementation, triton_is_interpreted

logger = logging.getLogger(__name__)

ImplementationChoice = Literal["auto", "tcnn", "triton", "torch"]

# Errors of importing a broken tinycudann or triton: ImportError of an extension built for another
# torch, OSError without one for this GPU (NameError in older versions), RuntimeError of CUDA,
# AttributeError of a half-built extension.
_IMPORT_ERRORS = (ImportError, OSError, NameError, RuntimeError, AttributeError)

_NETWORKS = {
    "torch": "f3rm.networks.torch_network:TorchNetwork",
    "triton": "f3rm.networks.triton_grid:TritonNetwork",
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
    """Whether sines and cosines of the position join the hash grid's features."""
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


def frequency_encoding(
    positions: Float[Tensor, "points 3"], num_frequencies: int
) -> Float[Tensor, "points encoding"]:
    """Computes ``sin`` and ``cos`` of ``2^k pi x`` for k = 0 ... num_frequencies - 1.

    Both implementations of the trunk share it.

    *Source:* tiny-cuda-nn's Frequency encoding; only the order of the channels differs.
    """
    octaves = _octaves(num_frequencies, positions.device, positions.dtype)
    angles = positions.reshape(-1, 1, 3, 1) * octaves  # (points, 2, 3, octaves)
    sines, cosines = angles.unbind(1)
    if angles.requires_grad:
        angles = torch.stack((sines.sin(), cosines.cos()), dim=1)
    else:
        sines.sin_()  # in place, without the copies of stack
        cosines.cos_()
    return angles.view(-1, 2 * 3 * num_frequencies)


@lru_cache
def _octaves(num: int, device: torch.device, dtype: torch.dtype) -> Float[Tensor, "2 1 octaves"]:
    """Returns ``2^k pi`` for sines and for cosines; computed once, or each call launches them."""
    with torch.inference_mode(False):  # training may go on with what an inference asked for
        octaves = torch.pi * 2.0 ** torch.arange(num, device=device, dtype=dtype)
        return octaves.repeat(2, 1, 1)


class HiddenNetwork(nn.Module):
    """A trunk: positions in the unit cube to hidden vectors."""

    @abstractmethod
    def forward(self, positions: Float[Tensor, "points 3"]) -> Float[Tensor, "points hidden"]:
        """Computes non-negative hidden vectors of positions in [0, 1]^3; there may be none."""


def parameters_of(implementation: Implementation) -> Literal["tcnn", "torch"]:
    """Names the implementation whose parameters another one has: Triton's are torch's."""
    return "tcnn" if implementation == "tcnn" else "torch"


@dataclass(frozen=True)
class Choice:
    """The implementation that runs, and why.

    Attributes:
        implementation: Its name.
        reason: Why, as a clause.
        is_fallback: Whether a faster one would run if the problem in ``reason`` were fixed.
    """

    implementation: Implementation
    reason: str
    is_fallback: bool = False


def tcnn_installed() -> bool:
    """Returns whether tiny-cuda-nn's Python package is installed; does not import it."""
    return importlib.util.find_spec("tinycudann") is not None


def tcnn_runs_on(device: torch.device | str) -> bool:
    """Returns whether tiny-cuda-nn computes on a device; tests replace it."""
    return torch.device(device).type == "cuda"


def triton_runs_on(device: torch.device | str) -> bool:
    """Returns whether Triton computes on a device; tests replace it."""
    return torch.device(device).type == "cuda"


def choose_implementation(
    choice: ImplementationChoice,
    device: torch.device | str,
    network: NetworkConfig | None = None,
    *,
    with_tcnn: bool = True,
) -> Choice:
    """Decides which implementation runs.

    Args:
        choice: ``auto`` takes tiny-cuda-nn on a CUDA device where its package can be imported and
            supports the sizes, else Triton where it has shown that it equals torch on this machine,
            else torch. ``triton`` takes torch, which has the same parameters, where Triton cannot
            run.
        device: Where the model will run.
        network: Sizes of the trunk; None for f3rm's own.
        with_tcnn: False if ``auto`` needs torch's parameters.

    Raises:
        ImplementationError: If ``tcnn`` is asked for and cannot run here, with the error of its
            import as the cause; or if no implementation supports the sizes.
    """
    network = network or NetworkConfig()
    _check_sizes(network)
    if choice == "torch":
        return Choice("torch", "it was asked for")
    problems: list[_Problem] = []
    if choice == "tcnn" or (choice == "auto" and with_tcnn):
        problem = _tcnn_problem(device, network)
        if problem is None:
            return Choice("tcnn", "tiny-cuda-nn is installed and the device is CUDA")
        if choice == "tcnn":
            msg = (
                "--pipeline.model.implementation tcnn cannot run here: "
                f"{problem.reason}. {problem.advice}"
            )
            raise ImplementationError(msg) from problem.cause
        problems.append(problem)
    problem = _triton_problem(device, is_asked_for=choice == "triton")
    if problem is None and choice == "triton":
        return Choice("triton", "it was asked for")
    if problem is not None:
        problems.append(problem)
    reasons = list(dict.fromkeys(each.reason for each in problems))
    is_fallback = any(each.is_surprising for each in problems)
    if problem is None:
        reasons.append("Triton's hash grids equal torch's here")
    return Choice("torch" if problem else "triton", "; ".join(reasons), is_fallback)


def resolve_implementation(
    choice: ImplementationChoice,
    device: torch.device | str,
    network: NetworkConfig | None = None,
    *,
    with_tcnn: bool = True,
) -> Implementation:
    """Decides which implementation runs, and logs it; warns once of what is broken.

    Args:
        choice: See :func:`choose_implementation`, as of the others.
        device: See there.
        network: See there.
        with_tcnn: See there.

    Raises:
        ImplementationError: See :func:`choose_implementation`.
    """
    chosen = choose_implementation(choice, device, network, with_tcnn=with_tcnn)
    if chosen.is_fallback:
        _warn_once(chosen.reason, chosen.implementation)
    reason = chosen.reason
    logger.info("implementation=%s: %s on %s, %s.", choice, chosen.implementation, device, reason)
    return chosen.implementation


@lru_cache
def _warn_once(reason: str, implementation: Implementation) -> None:
    logger.warning(
        "%s: the model runs in %s, Nerfacto's parts too%s.",
        reason[0].upper() + reason[1:],
        implementation,
        ", which takes longer on a GPU" if implementation == "torch" else "",
    )


@dataclass(frozen=True)
class _Problem:
    """Why an implementation cannot run."""

    reason: str
    advice: str = (
        "Use --pipeline.model.implementation torch, or see docs/install.md to install tiny-cuda-nn."
    )
    cause: Exception | None = None
    is_surprising: bool = False


def _tcnn_problem(device: torch.device | str, network: NetworkConfig) -> _Problem | None:
    if not tcnn_runs_on(device):
        return _Problem("the device is not CUDA")
    if not tcnn_installed():
        return _Problem("tiny-cuda-nn is not installed")
    return _unsupported_size(network) or _import_tcnn()


def _import_tcnn() -> _Problem | None:
    """Imports tiny-cuda-nn; only that shows whether its compiled half fits torch and the GPU."""
    try:
        importlib.import_module("tinycudann")
    except _IMPORT_ERRORS as error:
        reason = f"tiny-cuda-nn cannot be imported ({type(error).__name__}: {error})"
        return _Problem(reason, cause=error, is_surprising=True)
    return None


def _triton_problem(device: torch.device | str, *, is_asked_for: bool) -> _Problem | None:
    """Returns why Triton does not run; what nobody asked for must equal torch here."""
    if is_asked_for and triton_is_interpreted():
        return None
    if not triton_runs_on(device):
        return _Problem("the device is not CUDA", is_surprising=is_asked_for)
    try:
        grid = importlib.import_module("f3rm.networks.triton_grid")
    except _IMPORT_ERRORS as error:
        reason = (
            f"Triton, which comes with torch on Linux, cannot be imported ({error}); "
            "--pipeline.model.implementation torch needs none"
        )
        return _Problem(reason, is_surprising=is_asked_for)
    problem = "" if is_asked_for else grid.problem(torch.device(device))
    return _Problem(f"Triton is left out, {problem}", is_surprising=True) if problem else None


_TCNN_SIZES: Mapping[str, tuple[str, Callable[[int], bool]]] = {
    "num_layers": ("at least 2 layers", lambda value: value >= 2),
    "features_per_level": ("1, 2, 4 or 8 features per level", lambda value: value in (1, 2, 4, 8)),
    "hidden_dim": ("widths that are multiples of 8", lambda value: value % 8 == 0),
}
"""Sizes that tiny-cuda-nn limits: the limit in words, and its check."""


def _unsupported_size(network: NetworkConfig) -> _Problem | None:
    """Finds the first size that tiny-cuda-nn does not support; it would abort the process."""
    for size, (limit, fits) in _TCNN_SIZES.items():
        value = getattr(network, size)
        if not fits(value):
            reason = f"tiny-cuda-nn has {limit}, but {_option(size)} is {value}"
            advice = f"Change {_option(size)}, or use --pipeline.model.implementation torch."
            return _Problem(reason, advice, is_surprising=True)
    return None


def _check_sizes(network: NetworkConfig) -> None:
    """Refuses sizes that no implementation supports."""
    for size in ("num_layers", "num_levels", "features_per_level", "hidden_dim"):
        value = getattr(network, size)
        if value < 1:
            msg = f"{_option(size)} must be at least 1, got {value}. Give a larger number."
            raise ImplementationError(msg)


def _option(size: str) -> str:
    return f"--pipeline.model.feat-{size.replace('_', '-')}"


def build_network(config: NetworkConfig, implementation: Implementation) -> HiddenNetwork:
    """Builds a trunk of the given implementation."""
    module, _, name = _NETWORKS[implementation].partition(":")
    return getattr(importlib.import_module(module), name)(config)
