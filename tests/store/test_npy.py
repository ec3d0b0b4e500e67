"""Headers of .npy files: what NumPy wrote is read back; what lies is refused before it costs."""

import os
import pickle

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis.extra import numpy as arrays

from f3rm.store.npy import load_npy, map_npy

KINDS = arrays.scalar_dtypes().filter(lambda dtype: dtype.kind in "biufcSU" and dtype.itemsize)


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    return tmp_path_factory.mktemp("npy") / "array.npy"


@settings(max_examples=100, deadline=None)
@given(array=arrays.arrays(KINDS, arrays.array_shapes(min_dims=0, min_side=0)))
def test_what_numpy_writes_is_read_back(file, array):
    np.save(file, array)
    for read in (load_npy, map_npy):
        found = read(file)
        assert (found.dtype, found.shape) == (array.dtype, array.shape)
        assert found.tobytes() == array.tobytes()


def test_every_version_and_order_of_the_format_is_read(file):
    array = np.asfortranarray(np.arange(12, dtype=">i4").reshape(3, 4))
    for version in ((1, 0), (2, 0), (3, 0)):
        with file.open("wb") as stream:
            np.lib.format.write_array(stream, array, version=version)
        assert np.array_equal(load_npy(file), array)


def with_header(text: str, data: bytes = b"") -> bytes:
    header = text.encode("latin1")
    return b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header + data


PLAIN = "{'descr': '<f4', 'fortran_order': False, 'shape': %s, }"


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (with_header(PLAIN % "(1000000000000,)"), r"\d+ bytes do not fit the shape"),
        (with_header(PLAIN % "(4,)", bytes(15)), "do not fit the shape"),
        (with_header(PLAIN % "(4,)", bytes(17)), "do not fit the shape"),
        (with_header(PLAIN % f"({2**63}, {2**63})"), "shape is out of bounds"),
        (with_header(PLAIN % f"({'1, ' * 40})", bytes(4)), "shape is out of bounds"),
        (with_header(PLAIN % "(-1,)"), "header is not that of a plain array"),
        (with_header(PLAIN % "(1 2,)", bytes(8)), "shape is malformed"),
        (with_header(PLAIN % "(" + "(" * 5000), "header is not that of a plain array"),
        (
            with_header(PLAIN % "(exit(),)"),
            "header is not that of a plain array",
        ),
        (with_header("{'descr': '<f3', 'fortran_order': False, 'shape': (), }"), "type is unknown"),
        (b"\x93NUMPY\x01\x00\xff\xff{}", "header cannot have 65535 bytes"),
        (b"\x93NUMPY\x09\x00" + bytes(20), "format version 9 is unknown"),
        (b"\x93NUM", "it is not a .npy file"),
        (pickle.dumps([1]), "it is not a .npy file"),
    ],
)
def test_a_header_that_lies_is_refused(file, content, reason):
    file.write_bytes(content)
    for read in (load_npy, map_npy):
        with pytest.raises(ValueError, match=reason):
            read(file)


def test_pickled_objects_are_never_loaded(file):
    np.save(file, np.array([{"a": 1}]), allow_pickle=True)
    for read in (load_npy, map_npy):
        with pytest.raises(ValueError, match="would have to be unpickled"):
            read(file)


def test_what_is_no_file_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe.npy")
    for path in (tmp_path / "pipe.npy", tmp_path, tmp_path / "missing.npy"):
        with pytest.raises(OSError, match="is not a file"):
            load_npy(path)


def test_a_file_above_the_limit_is_not_read(file):
    np.save(file, np.zeros(1000))
    with pytest.raises(ValueError, match="bytes are more than 100"):
        load_npy(file, largest=100)
