"""Chunk files as they are written."""

import errno
import os

import numpy as np
import pytest

from f3rm.errors import CacheError
from f3rm.store import chunks
from f3rm.store.chunks import HEADER_BYTES, write_chunk


def test_a_chunk_is_synced_while_it_grows_and_is_the_same_file(tmp_path, monkeypatch):
    shape = (12, 2, 3, 4)
    rows = np.random.default_rng(0).normal(size=shape).astype(np.float16)
    whole = write_chunk(tmp_path / "whole.npy", shape, "float16", [rows])
    lengths, synced = [], os.fsync

    def fsync(descriptor: int) -> None:
        lengths.append(os.fstat(descriptor).st_size)
        synced(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(chunks, "_SYNCED_BYTES", 2 * rows[0].nbytes)
    parts = write_chunk(tmp_path / "parts.npy", shape, "float16", np.split(rows, 12))
    growing = [HEADER_BYTES + count * rows[0].nbytes for count in (2, 4, 6, 8, 10, 12, 12)]
    assert len(lengths) == len(growing) + 1, "the last one is the folder"
    for length, least, most in zip(lengths, growing, [*growing[1:], growing[-1]], strict=False):
        assert least <= length <= most, "a sync may see what is written before the next one"
    assert parts == whole
    assert (tmp_path / "parts.npy").read_bytes() == (tmp_path / "whole.npy").read_bytes()
    assert np.array_equal(np.load(tmp_path / "parts.npy"), rows)


def test_a_disk_that_fails_while_a_chunk_grows_is_said_and_leaves_no_file(tmp_path, monkeypatch):
    def fsync(_descriptor: int) -> None:
        monkeypatch.undo()  # the system reports it once
        raise OSError(errno.EIO, "Input/output error")

    rows = np.zeros((4, 2, 3, 4), dtype=np.float16)
    monkeypatch.setattr(chunks, "_SYNCED_BYTES", rows[0].nbytes)
    monkeypatch.setattr(os, "fsync", fsync)
    with pytest.raises(
        CacheError, match=r"chunk\.npy' must be writable, got: .*Input/output error"
    ):
        write_chunk(tmp_path / "chunk.npy", (4, 2, 3, 4), "float16", np.split(rows, 4))
    assert not list(tmp_path.iterdir())
