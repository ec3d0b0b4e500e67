"""Gathers random rows of memory-mapped chunks in one vectorised operation.

Rows are numbered consecutively over all chunks. :class:`MappedRows` visits each chunk once per
gather; with numba (the extra ``fast``) it copies all rows in one loop of machine code instead.
:func:`take_reference` is the readable reference of both. Images and codecs are not known here.
"""

import importlib
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Literal, cast

import numpy as np
import torch
from jaxtyping import Int, Shaped
from torch import Tensor

from f3rm.distribution import how_to_install
from f3rm.errors import ImplementationError
from f3rm.store.mapped_files import ReadAhead

Engine = Literal["auto", "numpy", "numba"]
Chunk = Shaped[np.ndarray, "_ channels"]
RowIds = Int[np.ndarray, " rows"]
_Copy = Callable[[RowIds, int, int], None]

_FAST_MODULE = "f3rm.store.gather_fast"
_KEPT_BYTES = 1 << 27


class RowSource(ABC):
    """The rows of a store, wherever they are kept.

    Attributes:
        device: Device of the rows that :meth:`take` returns.
    """

    device: torch.device

    @abstractmethod
    def take(self, row_ids: RowIds) -> Shaped[Tensor, "rows channels"]:
        """Returns rows by number, in the stored type.

        This thread's next call may overwrite them: copy or convert rows to keep them.

        Args:
            row_ids: Row numbers, all within range.
        """


class MappedRows(RowSource):
    """The rows of memory-mapped chunks; memory use does not grow with their number.

    Attributes:
        device: Always the CPU.
        dtype: Type of the rows; the wider one where chunks differ.
        engine: ``numpy`` or ``numba``.
    """

    device = torch.device("cpu")

    def __init__(self, chunks: Sequence[Chunk], *, engine: Engine = "auto") -> None:
        """Keeps the chunks, at least one.

        Args:
            chunks: Arrays of rows, each contiguous, all with the same number of channels.
            engine: ``auto`` is numba if it is installed, else numpy.

        Raises:
            ImplementationError: If ``engine`` is ``numba`` and it is not installed.
        """
        self._chunks = tuple(chunks)
        self._channels = chunks[0].shape[1]
        self.dtype = np.result_type(*(chunk.dtype for chunk in chunks))
        self._first = np.cumsum([0, *(len(chunk) for chunk in chunks)])
        sizes = np.diff(self._first)
        self._uniform = bool((sizes[:-1] == sizes[0]).all() and sizes[-1] <= sizes[0])
        self._address = np.array([chunk.ctypes.data for chunk in chunks], dtype=np.int64)
        self._row_bytes = np.array([chunk.strides[0] for chunk in chunks], dtype=np.int64)
        self._read_ahead = ReadAhead()
        self._scratch = _Scratch()
        same_type = all(chunk.dtype == self.dtype for chunk in chunks)
        self._copy = _fast_copy(engine) if same_type else None
        self.engine: Engine = "numpy" if self._copy is None else "numba"

    def __len__(self) -> int:
        """Returns the number of rows."""
        return int(self._first[-1])

    def take(self, row_ids: RowIds) -> Shaped[Tensor, "rows channels"]:
        """Returns rows by number; see :meth:`RowSource.take`."""
        chunk_of = self._chunk_of(row_ids)
        local = row_ids - self._first[chunk_of]
        row_bytes = self._row_bytes[chunk_of]
        addresses = self._address[chunk_of] + local * row_bytes
        rows = self._scratch.buffer("rows", len(row_ids), self._channels, self.dtype)
        with self._read_ahead.around(addresses, int(self._row_bytes.max())):
            if self._copy is not None:
                self._copy(addresses, rows.ctypes.data, rows.strides[0])
            else:
                self._take_by_chunk(chunk_of, local, rows)
        return torch.from_numpy(rows)

    def _chunk_of(self, row_ids: RowIds) -> RowIds:
        """Returns each row's chunk: by division if all chunks but the last are of one size."""
        if self._uniform:
            return np.minimum(row_ids // self._first[1], len(self._chunks) - 1)
        return np.searchsorted(self._first[1:], row_ids, side="right")

    def _take_by_chunk(
        self, chunk_of: RowIds, local: RowIds, rows: Shaped[np.ndarray, "rows channels"]
    ) -> None:
        """Fills ``rows`` chunk by chunk, through a buffer in the order of the chunks."""
        # NumPy sorts 16-bit numbers by radix, which is faster.
        kind = np.uint16 if len(self._chunks) <= 1 << 16 else np.uint32
        order = np.argsort(chunk_of.astype(kind), kind="stable")
        counts = np.bincount(chunk_of, minlength=len(self._chunks))
        used = np.flatnonzero(counts)
        ends = np.cumsum(counts[used])
        grouped = self._scratch.buffer("grouped", len(local), self._channels, self.dtype)
        local = local[order]
        for chunk, start, end in np.stack([used, ends - counts[used], ends], axis=-1).tolist():
            source, rows_of, part = self._chunks[chunk], local[start:end], grouped[start:end]
            # Touch one number of each row first: these loads overlap, while copying waits for the
            # page tables row by row. "clip" saves NumPy a check and a buffer; all is in range.
            source.reshape(-1).take(rows_of * self._channels, mode="clip")
            if source.dtype == self.dtype:
                source.take(rows_of, axis=0, out=part, mode="clip")
            else:
                part[...] = source.take(rows_of, axis=0, mode="clip")
        back = np.empty_like(order)
        back[order] = np.arange(len(order))
        grouped.take(back, axis=0, out=rows, mode="clip")


class _Scratch(threading.local):
    """Buffers of each thread, reused because a gather into fresh pages waits for the kernel."""

    def __init__(self) -> None:
        self._bytes: dict[str, np.ndarray] = {}

    def buffer(
        self, name: str, num: int, channels: int, dtype: np.dtype
    ) -> Shaped[np.ndarray, "rows channels"]:
        """Returns uninitialised memory, valid until the next call with this name."""
        length = num * channels * dtype.itemsize
        kept = self._bytes.get(name)
        if kept is None or len(kept) < length:
            kept = np.empty(length, dtype=np.uint8)
            if length <= _KEPT_BYTES:
                self._bytes[name] = kept
        return kept[:length].view(dtype).reshape(num, channels)


def take_reference(
    chunks: Sequence[Chunk], row_ids: Sequence[int]
) -> Shaped[Tensor, "rows channels"]:
    """Gathers like :meth:`MappedRows.take`, row by row: slow and readable, for tests.

    Args:
        chunks: Arrays of rows.
        row_ids: Row numbers, at least one.
    """
    found: list[Tensor] = []
    for row_id in row_ids:
        local = row_id
        for chunk in chunks:
            if local < len(chunk):
                found.append(torch.from_numpy(np.array(chunk[local])))
                break
            local -= len(chunk)
    widest = np.result_type(*(chunk.dtype for chunk in chunks))
    return torch.stack([row.to(getattr(torch, widest.name)) for row in found])


def _fast_copy(engine: Engine) -> _Copy | None:
    """Returns numba's copy loop, or None where NumPy gathers.

    Raises:
        ImplementationError: If ``engine`` is ``numba`` and it is not installed.
    """
    if engine == "numpy":
        return None
    try:
        return cast(_Copy, importlib.import_module(_FAST_MODULE).copy_rows)
    except ImportError as error:
        if engine == "auto":
            return None
        raise ImplementationError(
            f"The engine 'numba' is not installed: {error}. Choose 'numpy', or run "
            f"{how_to_install('fast')}."
        ) from error
