"""Compute devices: resolving their names, this process's rank, and running out of memory."""

import gc
import os
import re
from typing import Literal

import torch

from f3rm.errors import DeviceError

_WITH_BFLOAT16 = (8, 0)
"""Compute capability of the first GPUs with bfloat16."""

_FULL_MEMORY = (
    "can't allocate memory",
    "not enough memory",
    "out of memory",
    "CUBLAS_STATUS_ALLOC_FAILED",
    "CUDNN_STATUS_ALLOC_FAILED",
    "CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED",
    "CUSOLVER_STATUS_ALLOC_FAILED",
)
"""Phrases by which allocators and CUDA's libraries report full memory in a RuntimeError."""


def resolve_device(name: str) -> torch.device:
    """Turns ``auto``, ``cpu``, ``cuda`` or ``cuda:N`` into a device that exists here.

    Args:
        name: The wanted device; ``auto`` is a GPU where there is one, else the CPU: the first GPU,
            or this process's own under torchrun (``LOCAL_RANK``) or Slurm (``SLURM_LOCALID``).

    Raises:
        DeviceError: If the name is none of these, or names a GPU that this machine lacks.
    """
    if name == "auto":
        return _automatic()
    if not re.fullmatch(r"(cpu|cuda)(:\d{1,2})?", name):
        raise DeviceError(f"--device must be auto, cpu, cuda or cuda:N, got {name!r}.")
    device = torch.device(name)
    if device.type == "cuda":
        if not torch.cuda.is_available():
            raise DeviceError(
                f"--device {name}: PyTorch {torch.__version__} finds no CUDA GPU here. Use "
                "--device cpu, or install a GPU driver and a CUDA build of PyTorch."
            )
        count = torch.cuda.device_count()
        if (device.index or 0) >= count:
            raise DeviceError(
                f"--device {name}: this machine has {count} GPU(s), cuda:0 to cuda:{count - 1}. "
                "Choose one of these."
            )
    return device


def is_first_rank() -> bool:
    """Returns whether this process is the only one, or rank 0 of several: the one that reports."""
    return _number("RANK", "SLURM_PROCID", "LOCAL_RANK") == 0


def best_precision(device: torch.device) -> Literal["float32", "bfloat16", "float16"]:
    """Returns the precision to run a network in: half precision where the hardware has it.

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
    """Gives the GPU memory that PyTorch caches back to the driver.

    To be called when a large consumer has ended: while it runs, PyTorch's own reuse is faster, but
    cuBLAS, cuDNN and other processes cannot use cached memory, nor is it reported as free.
    """
    if device.type == "cuda":
        gc.collect()  # reference cycles still hold models and their weights
        torch.cuda.empty_cache()


def _automatic() -> torch.device:
    if not torch.cuda.is_available():
        return torch.device("cpu")
    rank = _number("LOCAL_RANK", "SLURM_LOCALID")
    return torch.device("cuda", rank % torch.cuda.device_count()) if rank else torch.device("cuda")


def _number(*variables: str) -> int:
    """Returns the first of the environment variables that is a number; 0 if none is."""
    values = (os.environ.get(variable, "") for variable in variables)
    return next((int(value) for value in values if value.isdecimal()), 0)
