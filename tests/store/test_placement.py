import signal
import sys
import weakref

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st

from f3rm.errors import CacheMismatchError, DeviceError
from f3rm.store import placement
from f3rm.store.gather import take_reference
from f3rm.store.placement import Memory, ResidentRows, choose_placement
from f3rm.store.reader import FeatureStore, place_stores
from tests.extract.toy import ToyBackbone, extract, never, write_dataset
from tests.store.test_gather import chunks_of

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
    assert choose_placement(wanted, num_bytes, memory=memory, budget=budget) == expected


@pytest.mark.parametrize("wanted", ["gpu", "ram"])
def test_what_does_not_fit_is_told_with_both_numbers(wanted):
    with pytest.raises(DeviceError, match=rf"budget of 1\.00 GiB for '{wanted}', got 3\.00 GiB"):
        choose_placement(wanted, 3 << 30, memory=CUDA, budget=1 << 30)


@pytest.mark.parametrize(("wanted", "most"), [("gpu", 300), ("ram", 1000)])
def test_default_budgets_are_shares_of_what_is_free(wanted, most):
    choose_placement(wanted, most, memory=CUDA)
    with pytest.raises(DeviceError, match="must fit the budget"):
        choose_placement(wanted, most + 1, memory=CUDA)


def test_the_gpu_cannot_be_had_when_training_on_the_cpu():
    with pytest.raises(DeviceError, match=r"must be auto, ram or mmap .* cpu, got 'gpu'"):
        choose_placement("gpu", 1, memory=CPU)


def test_memory_is_asked_of_the_system(tmp_path, monkeypatch):
    now = Memory.now(torch.device("cpu"))
    assert now.free_gpu == 0
    assert now.free_ram > 1 << 20
    monkeypatch.setattr(placement, "Path", lambda _: tmp_path / "none")
    assert placement.available_ram() == 0
    (tmp_path / "none").write_text("MemTotal: 9 kB\n")
    assert placement.available_ram() == 0


class Circular(ToyBackbone):
    """A model that only the garbage collector frees."""

    def __init__(self, *arguments):
        super().__init__(*arguments)
        self.itself = self


def test_extraction_returns_its_memory_before_the_budget_is_read(tmp_path, monkeypatch):
    """On a second GPU, of which only the answers are there."""
    gpu, calls, models = torch.device("cuda:1"), [], weakref.WeakSet()

    def load(ref, *, device, towers):
        assert device == gpu
        models.add(model := Circular.load(ref, device="cpu", towers=towers))
        return model

    def asked(name, answer):
        def call(*device):
            calls.append((name, *device, len(models)))
            return answer

        return call

    answers = {"mem_get_info": (100, 1000), "memory_reserved": 50, "memory_allocated": 20}
    for name, answer in {"empty_cache": None, **answers}.items():
        monkeypatch.setattr(torch.cuda, name, asked(name, answer))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    store = extract(write_dataset(tmp_path / "scene"), device="cuda:1", load=load)
    with pytest.raises(DeviceError, match="must fit the budget"):
        place_stores({"toy": store}, "gpu", device=gpu)
    assert calls[0] == ("empty_cache", 0), "the model is gone when its memory is returned"
    assert {call[:2] for call in calls[1:]} == {(name, gpu) for name in answers}
    calls.clear()
    assert Memory.now(gpu).free_gpu == 100 + 50 - 20
    assert len(extract(tmp_path / "scene", device="cuda:1", load=never)) == 5
    assert "empty_cache" not in [name for name, *_ in calls], "nothing was extracted"


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.integers(1, 30), min_size=1, max_size=6),
    st.sampled_from([("float16",), ("int8",), ("float16", "float32")]),
    st.data(),
)
def test_resident_rows_equal_the_reference(lengths, dtypes, data):
    chunks = chunks_of(lengths, 5, dtypes)
    row_ids = data.draw(st.lists(st.integers(0, sum(lengths) - 1), min_size=1, max_size=40))
    rows = ResidentRows(chunks, torch.device("cpu"))
    assert torch.equal(rows.take(np.array(row_ids)), take_reference(chunks, row_ids))


def test_chunks_are_copied_in_small_parts(monkeypatch):
    monkeypatch.setattr(placement, "_COPY_BYTES", 64)
    chunks = chunks_of([50, 7], 5)
    rows = ResidentRows(chunks, torch.device("cpu")).take(np.arange(57))
    assert torch.equal(rows, torch.from_numpy(np.concatenate(chunks)))


CUT = """
import sys
from pathlib import Path
import torch
from f3rm.store.reader import FeatureStore
folder = Path(sys.argv[1])
mapped = FeatureStore.open(folder)
resident = mapped.resident(torch.device("cpu"))
for chunk in folder.glob("chunk_*.npy"):
    with chunk.open("r+b") as stream:
        stream.truncate(0)
print(len(resident.feature_map(0)), flush=True)
print(len(mapped.feature_map(0)), flush=True)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="about signals of Linux")
def test_what_ram_saves_from_chunks_that_are_cut_off(dataset, python):
    """As docs/extraction.md says: memory needs no files, and maps end with the system's signal."""
    process = python("-c", CUT, str(extract(dataset).folder))
    out, _ = process.communicate(timeout=120)
    assert (process.returncode, out.split()) == (-signal.SIGBUS, ["8"])
    with pytest.raises(CacheMismatchError, match="it has 0 bytes instead of"):
        FeatureStore.open(dataset / "features/toy")


@pytest.mark.gpu
def test_rows_on_the_gpu_are_the_same():
    chunks = chunks_of([50, 7], 5)
    rows = ResidentRows(chunks, torch.device("cuda"))
    row_ids = np.array([56, 0, 13])
    assert rows.take(row_ids).device.type == "cuda"
    assert torch.equal(rows.take(row_ids).cpu(), take_reference(chunks, row_ids.tolist()))
