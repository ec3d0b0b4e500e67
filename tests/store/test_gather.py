import importlib.util
import threading

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st

from f3rm.errors import ImplementationError
from f3rm.store import gather, mapped_files
from f3rm.store.gather import MappedRows, take_reference

HAS_NUMBA = importlib.util.find_spec("numba") is not None
ENGINES = [
    "numpy",
    pytest.param("numba", marks=pytest.mark.skipif(not HAS_NUMBA, reason="needs numba")),
]


def chunks_of(lengths, channels, dtypes=("float16",), seed=0):
    random = np.random.default_rng(seed)
    return [
        random.integers(-100, 100, (length, channels)).astype(dtypes[number % len(dtypes)])
        for number, length in enumerate(lengths)
    ]


@pytest.mark.parametrize("engine", ENGINES)
@settings(max_examples=80, deadline=None)
@given(
    st.lists(st.integers(1, 30), min_size=1, max_size=12),
    st.integers(1, 17),
    st.sampled_from([("float16",), ("float32",), ("int8",), ("float16", "float32")]),
    st.data(),
)
def test_every_engine_equals_the_reference(engine, lengths, channels, dtypes, data):
    """Bit for bit, over sizes, types and orders, repeated rows among them."""
    chunks = chunks_of(lengths, channels, dtypes)
    row_ids = data.draw(st.lists(st.integers(0, sum(lengths) - 1), min_size=1, max_size=50))
    rows = MappedRows(chunks, engine=engine)
    assert len(rows) == sum(lengths)
    taken = rows.take(np.array(row_ids))
    expected = take_reference(chunks, row_ids)
    assert taken.dtype == expected.dtype
    assert torch.equal(taken, expected)


@pytest.mark.parametrize("engine", ENGINES)
def test_no_rows_are_an_empty_tensor(engine):
    rows = MappedRows(chunks_of([3, 2], 5), engine=engine)
    assert rows.take(np.zeros(0, dtype=np.int64)).shape == (0, 5)


def test_chunks_of_two_types_are_left_to_numpy():
    rows = MappedRows(chunks_of([3, 2], 5, ("float16", "float32")))
    assert (rows.engine, rows.dtype) == ("numpy", np.float32)


def test_large_requests_do_not_keep_their_memory(monkeypatch):
    monkeypatch.setattr(gather, "_KEPT_BYTES", 100)
    chunks = chunks_of([50], 5)
    rows = MappedRows(chunks, engine="numpy")
    small, large = rows.take(np.arange(4)), rows.take(np.arange(50))
    assert torch.equal(large, torch.from_numpy(chunks[0]))
    assert torch.equal(small, torch.from_numpy(chunks[0][:4]))
    assert rows.take(np.arange(4)).data_ptr() == small.data_ptr()


def test_threads_do_not_share_their_buffers():
    chunks = chunks_of([40, 40], 64)
    rows, wrong = MappedRows(chunks), []

    def work(seed):
        random = np.random.default_rng(seed)
        for _ in range(200):
            row_ids = random.integers(0, 80, 30)
            if not torch.equal(rows.take(row_ids), take_reference(chunks, row_ids.tolist())):
                wrong.append(seed)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=120)
    assert not any(thread.is_alive() for thread in threads)
    assert not wrong


def test_without_numba_auto_is_numpy_and_asking_for_it_says_what_to_install(monkeypatch):
    monkeypatch.setattr(gather, "_FAST_MODULE", "f3rm.extract.no_such_module")
    chunks = chunks_of([3], 5)
    assert MappedRows(chunks).engine == "numpy"
    with pytest.raises(
        ImplementationError, match=r"engine 'numba' is not installed: .* pip install 'numba>=0.60' "
    ):
        MappedRows(chunks, engine="numba")


@pytest.mark.skipif(not HAS_NUMBA, reason="needs numba")
def test_auto_takes_numba():
    assert MappedRows(chunks_of([3], 5)).engine == "numba"


def test_rows_are_announced_as_long_as_gathers_read_from_the_disk(monkeypatch):
    reads, announced = iter([0, 5, 5, 5, 5, 9, 9, 9]), []
    monkeypatch.setattr(mapped_files, "_disk_reads", lambda: next(reads))
    monkeypatch.setattr(
        mapped_files, "announce", lambda addresses, _: announced.append(len(addresses))
    )
    rows = MappedRows(chunks_of([8], 2))
    for number in (1, 2, 3, 4):
        rows.take(np.arange(number))
    # The first finds the disk busy; the second reads nothing more; the third must read unannounced.
    assert announced == [1, 2, 4]


def test_page_runs_cover_the_rows_and_join():
    page = mapped_files.mmap.PAGESIZE
    addresses = np.array([10 * page + 100, 3 * page - 10, 3 * page + 200, 10 * page])
    runs = mapped_files._page_runs(addresses, 50)
    assert runs.tolist() == [[2 * page, 3 * page + 250], [10 * page, 10 * page + 150]]


def test_announcing_mapped_rows_is_harmless(tmp_path):
    chunks = chunks_of([3000], 64)
    np.save(tmp_path / "rows.npy", chunks[0])
    mapped = np.load(tmp_path / "rows.npy", mmap_mode="r")
    row_ids = np.random.default_rng(0).integers(0, 3000, 500)
    mapped_files.announce(mapped.ctypes.data + row_ids * mapped.strides[0], mapped.strides[0])
    rows = MappedRows([np.asarray(mapped)])
    assert torch.equal(rows.take(row_ids), take_reference(chunks, row_ids.tolist()))
