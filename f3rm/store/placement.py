"""Placement of a store's rows while training: mapped files, RAM, or the GPU.

Mapped files need no memory of their own: the kernel keeps used pages in its page cache. On the GPU
a batch needs no transfer. RAM is for file systems that do not cache, such as network mounts.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from jaxtyping import Int, Shaped
from torch import Tensor

from f3rm.errors import DeviceError
from f3rm.store.gather import Chunk, RowSource

Placement = Literal["auto", "gpu", "ram", "mmap"]
ChosenPlacement = Literal["gpu", "ram", "mmap"]

WORDS: Mapping[ChosenPlacement, str] = {"gpu": "GPU memory", "ram": "RAM", "mmap": "mapped files"}
"""Placements in the words of messages."""

_GPU_SHARE = 0.3
_RAM_SHARE = 0.5
_COPY_BYTES = 1 << 26
_GIB = 1 << 30


@dataclass(frozen=True)
class Memory:
    """Free memory, on which the placement depends.

    Attributes:
        device: Device of the batches.
        free_gpu: Bytes that this process can allocate on that device: the free ones, and those that
            PyTorch caches unused; 0 if it is not a GPU.
        free_ram: Bytes of RAM that can be allocated without swapping.
    """

    device: torch.device
    free_gpu: int
    free_ram: int

    @classmethod
    def now(cls, device: torch.device) -> "Memory":
        """Reads the free memory of the device and the system."""
        if device.type != "cuda":
            return cls(device, 0, available_ram())
        unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return cls(device, int(torch.cuda.mem_get_info(device)[0]) + unused, available_ram())


def choose_placement(
    wanted: Placement, num_bytes: int, *, memory: Memory, budget: int | None = None
) -> ChosenPlacement:
    """Chooses the placement of rows.

    Args:
        wanted: ``auto`` is the GPU if batches go there and the rows fit the budget, else mapped
            files.
        num_bytes: Size of all rows in the stored type.
        memory: Device of the batches, and free memory.
        budget: Bytes that rows may take; by default 30 % of the free GPU memory, or 50 % of the
            available RAM.

    Raises:
        DeviceError: If the GPU is wanted and batches go elsewhere, or the rows do not fit.
    """
    if wanted == "mmap":
        return "mmap"
    if wanted == "ram":
        _check_fits("ram", num_bytes, _limit(budget, memory.free_ram, _RAM_SHARE))
        return "ram"
    limit = _limit(budget, memory.free_gpu, _GPU_SHARE)
    if wanted == "auto":
        fits = memory.device.type == "cuda" and num_bytes <= limit
        return "gpu" if fits else "mmap"
    if memory.device.type != "cuda":
        raise DeviceError(
            f"feature-residence must be auto, ram or mmap when batches go to {memory.device}, got "
            "'gpu'. Train on a GPU, or choose auto."
        )
    _check_fits("gpu", num_bytes, limit)
    return "gpu"


class ResidentRows(RowSource):
    """All rows of a store in one tensor, in RAM or on the GPU."""

    def __init__(self, chunks: Sequence[Chunk], device: torch.device) -> None:
        """Copies the chunks to ``device``, 64 MiB at a time to keep the peak memory low.

        Args:
            chunks: Arrays of rows, at least one, all with the same number of channels.
            device: The GPU, or the CPU for RAM.
        """
        self.device = device
        dtype = np.result_type(*(chunk.dtype for chunk in chunks))
        shape = sum(len(chunk) for chunk in chunks), chunks[0].shape[1]
        self._rows = torch.empty(shape, dtype=getattr(torch, dtype.name), device=device)
        step = max(1, _COPY_BYTES // (shape[1] * dtype.itemsize))
        start = 0
        for chunk in chunks:
            for offset in range(0, len(chunk), step):
                part = torch.from_numpy(np.array(chunk[offset : offset + step]))
                self._rows[start : start + len(part)] = part
                start += len(part)

    def take(self, row_ids: Int[np.ndarray, " rows"]) -> Shaped[Tensor, "rows channels"]:
        """Returns rows by number; see :meth:`f3rm.store.gather.RowSource.take`."""
        return self._rows.index_select(0, torch.from_numpy(row_ids).to(self.device))


def available_ram() -> int:
    """Returns the bytes that can be allocated without swapping; 0 where that is unknown."""
    meminfo = Path("/proc/meminfo")
    if not meminfo.exists():
        return 0
    for line in meminfo.read_text(encoding="ascii").splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    return 0


def _limit(budget: int | None, free: int, share: float) -> int:
    return int(free * share) if budget is None else budget


def _check_fits(placement: ChosenPlacement, num_bytes: int, limit: int) -> None:
    if num_bytes > limit:
        raise DeviceError(
            f"The features must fit the budget of {limit / _GIB:.2f} GiB for {placement!r}, got "
            f"{num_bytes / _GIB:.2f} GiB. Raise feature-budget-gb, or choose a smaller "
            "codec or mmap."
        )
