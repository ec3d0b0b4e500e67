"""Devices of this machine: what a name means, which worker this process is, and full memory."""

import gc
import os
import re
from typing import Literal

import torch

from f3rm.errors import DeviceError

_WITH_BFLOAT16 = (8, 0)
"""Compute capability of the first GPUs that have it."""

_FULL_MEMORY = (
    "can't allocate memory",
    "not enough memory",
    "out of memory",
    "CUBLAS_STATUS_ALLOC_FAILED",
    "CUDNN_STATUS_ALLOC_FAILED",
    "CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED",
    "CUSOLVER_STATUS_ALLOC_FAILED",
)
"""What allocators and CUDA's libraries say in a plain RuntimeError when memory is full."""


def resolve_device(name: str) -> torch.device:
    """Turns ``auto``, ``cpu``, ``cuda`` or ``cuda:N`` into a device that exists here.

    Args:
        name: The wanted device; ``auto`` takes a GPU where there is one, else the CPU: the first
            one, or the one that torchrun (``LOCAL_RANK``) or Slurm (``SLURM_LOCALID``) mean.

    Raises:
        DeviceError: If the name is none of these, or names a GPU that this machine lacks.
    """
    if name == "auto":
        return _automatic()
    if not re.fullmatch(r"(cpu|cuda)(:\d{1,2})?", name):
        raise DeviceError(
            f"resolve_device: device must be auto, cpu, cuda or cuda:N, got {name!r}. Choose one "
            "of these."
        )
    device = torch.device(name)
    if device.type == "cuda":
        _check_gpu(name, device.index or 0)
    return device


def is_first_rank() -> bool:
    """Returns whether this is the worker that reports: the only one, or rank 0 of several."""
    return _number("RANK", "SLURM_PROCID", "LOCAL_RANK") == 0


def best_precision(device: torch.device) -> Literal["float32", "bfloat16", "float16"]:
    """Returns what a network is best computed in: half precision where the device is made for it.

    It is bfloat16 on a GPU of compute capability 8.0 or more, float16 on an older one, and float32
    on the CPU, where half precision is emulated.
    """
    if device.type != "cuda":
        return "float32"
    return "bfloat16" if torch.cuda.get_device_capability(device) >= _WITH_BFLOAT16 else "float16"


def is_full_memory(error: Exception) -> bool:
    """Returns whether an error says that a device's memory is full."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return any(phrase in str(error) for phrase in _FULL_MEMORY)


def release_memory(device: torch.device) -> None:
    """Returns memory of a GPU that PyTorch keeps for later, so that others can have it.

    To be called where a large consumer ends: PyTorch's own reuse is faster while it runs, but
    cuBLAS, cuDNN, other processes and what asks for free memory see only what was returned.
    """
    if device.type == "cuda":
        gc.collect()  # models with references in a circle still hold their weights
        torch.cuda.empty_cache()


def _automatic() -> torch.device:
    if not torch.cuda.is_available():
        return torch.device("cpu")
    rank = _number("LOCAL_RANK", "SLURM_LOCALID")
    return torch.device("cuda", rank % torch.cuda.device_count()) if rank else torch.device("cuda")


def _number(*variables: str) -> int:
    """Returns the first of some environment variables that is a number; 0 if none is."""
    values = (os.environ.get(variable, "") for variable in variables)
    return next((int(value) for value in values if value.isdecimal()), 0)


def _check_gpu(name: str, index: int) -> None:
    if not torch.cuda.is_available():
        raise DeviceError(
            f"resolve_device: device must exist, got {name!r}, but PyTorch {torch.__version__} "
            "sees no CUDA GPU here. Use --device cpu, or install a GPU driver and a CUDA build of "
            "PyTorch."
        )
    count = torch.cuda.device_count()
    if index >= count:
        raise DeviceError(
            f"resolve_device: device must exist, got {name!r}, but this machine has {count} "
            f"GPU(s), cuda:0 to cuda:{count - 1}. Choose one of these."
        )
