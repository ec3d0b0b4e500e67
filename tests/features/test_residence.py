import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st

from f3rm._types import DeviceError
from f3rm.features import residence
from f3rm.features.gather import take_reference
from f3rm.features.residence import Memory, ResidentRows, choose_residence
from tests.features.test_gather import chunks_of

CUDA = Memory(torch.device("cuda"), free_gpu=1000, free_ram=2000)
CPU = Memory(torch.device("cpu"), free_gpu=0, free_ram=2000)


@pytest.mark.parametrize(
    ("wanted", "num_bytes", "memory", "budget", "expected"),
    [
        ("auto", 300, CUDA, None, "gpu"),
        ("auto", 301, CUDA, None, "mmap"),
        ("auto", 900, CUDA, 900, "gpu"),
        ("auto", 901, CUDA, 900, "mmap"),
        ("auto", 1, CPU, None, "mmap"),
        ("auto", 1, CPU, 10**9, "mmap"),
        ("gpu", 300, CUDA, None, "gpu"),
        ("ram", 1000, CPU, None, "ram"),
        ("ram", 1000, CUDA, None, "ram"),
        ("mmap", 10**12, CUDA, 1, "mmap"),
    ],
)
def test_choice(wanted, num_bytes, memory, budget, expected):
    assert choose_residence(wanted, num_bytes, memory=memory, budget=budget) == expected


@pytest.mark.parametrize("wanted", ["gpu", "ram"])
def test_what_does_not_fit_is_told_with_both_numbers(wanted):
    with pytest.raises(DeviceError, match=rf"budget of 1\.00 GiB for '{wanted}', got 3\.00 GiB"):
        choose_residence(wanted, 3 << 30, memory=CUDA, budget=1 << 30)


@pytest.mark.parametrize(("wanted", "most"), [("gpu", 300), ("ram", 1000)])
def test_default_budgets_are_shares_of_what_is_free(wanted, most):
    choose_residence(wanted, most, memory=CUDA)
    with pytest.raises(DeviceError, match="must fit the budget"):
        choose_residence(wanted, most + 1, memory=CUDA)


def test_the_gpu_cannot_be_had_when_training_on_the_cpu():
    with pytest.raises(DeviceError, match=r"must be auto, ram or mmap .* cpu, got 'gpu'"):
        choose_residence("gpu", 1, memory=CPU)


def test_memory_is_asked_of_the_system(tmp_path, monkeypatch):
    now = Memory.now(torch.device("cpu"))
    assert now.free_gpu == 0
    assert now.free_ram > 1 << 20
    monkeypatch.setattr(residence, "Path", lambda _: tmp_path / "none")
    assert residence.available_ram() == 0
    (tmp_path / "none").write_text("MemTotal: 9 kB\n")
    assert residence.available_ram() == 0


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.integers(1, 30), min_size=1, max_size=6),
    st.sampled_from([("float16",), ("int8",), ("float16", "float32")]),
    st.data(),
)
def test_resident_rows_equal_the_reference(lengths, dtypes, data):
    chunks = chunks_of(lengths, 5, dtypes)
    places = data.draw(st.lists(st.integers(0, sum(lengths) - 1), min_size=1, max_size=40))
    rows = ResidentRows(chunks, torch.device("cpu"))
    assert torch.equal(rows.take(np.array(places)), take_reference(chunks, places))


def test_chunks_are_copied_in_small_parts(monkeypatch):
    monkeypatch.setattr(residence, "_COPY_BYTES", 64)
    chunks = chunks_of([50, 7], 5)
    rows = ResidentRows(chunks, torch.device("cpu")).take(np.arange(57))
    assert torch.equal(rows, torch.from_numpy(np.concatenate(chunks)))


@pytest.mark.gpu
def test_rows_on_the_gpu_are_the_same():
    chunks = chunks_of([50, 7], 5)
    rows = ResidentRows(chunks, torch.device("cuda"))
    places = np.array([56, 0, 13])
    assert rows.take(places).device.type == "cuda"
    assert torch.equal(rows.take(places).cpu(), take_reference(chunks, places.tolist()))
