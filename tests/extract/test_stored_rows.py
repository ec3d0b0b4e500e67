"""Rows on their way from a GPU to the host, without one: fake tensors, and recorders for CUDA."""

from collections.abc import Iterator
from contextlib import contextmanager
from unittest.mock import MagicMock

import pytest
import torch
from torch._subclasses import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from f3rm.extract import encoder
from f3rm.extract.encoder import store_rows
from f3rm.store.codecs import Codec, CodecSpec

HALF = CodecSpec("none", "float16")
STREAM, EVENT = torch.cuda.Stream, torch.cuda.Event


class Gpu(TorchDispatchMode):
    """Imitates two GPUs of which the first is current; records the calls in order."""

    def __init__(self) -> None:
        super().__init__()
        self.stream = self.stream_of(torch.device("cuda", 0), "network")
        self.calls: list[tuple[object, ...]] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func is torch.ops.aten.copy_.default and args[0].device.type == "cpu":
            self.calls.append(("copy", args[1].device, str(self.stream), args[2:]))
        return func(*args, **(kwargs or {}))

    def stream_of(self, device: torch.device, name: str = "copies") -> MagicMock:
        stream = MagicMock(spec=STREAM, device=device)
        stream.__str__.return_value = f"{name} of {device}"  # pyright: ignore[reportAttributeAccessIssue]
        stream.wait_stream.side_effect = lambda other: self.calls.append(
            ("wait for", str(stream), str(other))
        )
        return stream

    @contextmanager
    def within(self, stream: MagicMock) -> Iterator[None]:
        before, self.stream = self.stream, stream
        yield
        self.stream = before

    def current_stream(self, device: torch.device) -> MagicMock:
        return self.stream if self.stream.device == device else self.stream_of(device, "network")

    def event(self, *, blocking: bool) -> MagicMock:
        event = MagicMock(spec=EVENT)
        event.record.side_effect = lambda stream: self.calls.append(
            ("record", str(self.stream), str(stream))
        )
        event.synchronize.side_effect = lambda: self.calls.append(("wait", blocking))
        return event


@pytest.fixture
def gpu(monkeypatch):
    recorder = Gpu()

    def keep(tensor: torch.Tensor, stream: MagicMock) -> None:
        recorder.calls.append(("keep", tensor.device, str(stream)))

    monkeypatch.setattr(torch.cuda, "Stream", recorder.stream_of)
    monkeypatch.setattr(torch.cuda, "stream", recorder.within)
    monkeypatch.setattr(torch.cuda, "current_stream", recorder.current_stream)
    monkeypatch.setattr(torch.cuda, "Event", recorder.event)
    monkeypatch.setattr(torch.Tensor, "record_stream", keep)
    encoder._copy_stream.cache_clear()
    yield recorder
    encoder._copy_stream.cache_clear()


@pytest.mark.parametrize("index", [0, 1])
def test_copies_run_beside_the_network_on_the_device_that_computes(gpu, index):
    device, copies = torch.device("cuda", index), f"copies of cuda:{index}"
    with FakeTensorMode(), gpu:
        stored = store_rows(torch.ones(2, 3, 4, 5, device=device), Codec(HALF, 5), "float16")
    assert stored.rows.device.type == "cpu"
    assert stored.rows.shape == (2, 3, 4, 5)
    assert stored.wait() is stored
    # Without waiting: rows, finite, fits, error, sample; each kept until it has been copied.
    each = [("keep", device, copies), ("copy", device, copies, (True,))]
    assert gpu.calls == [
        ("wait for", copies, f"network of cuda:{index}"),
        *(each * 5),
        ("record", copies, copies),
        ("wait", True),
    ]
    assert str(gpu.stream) == "network of cuda:0", "the current stream is as it was"


@pytest.mark.gpu
def test_rows_from_a_gpu_are_those_of_the_cpu_while_its_memory_is_used_again():
    random = torch.Generator().manual_seed(0)
    features = [torch.randn(4, 64, 64, 256, generator=random) for _ in range(6)]
    expected = [store_rows(each, Codec(HALF, 256), "float16") for each in features]
    stored = []
    for each in features:
        stored.append(store_rows(each.cuda(), Codec(HALF, 256), "float16"))
        for _ in range(4):  # takes the memory that the rows had, and writes into it
            torch.full((4, 64, 64, 256), torch.nan, dtype=torch.half, device="cuda")
    for found, wanted in zip(stored, expected, strict=True):
        found.wait()
        assert found.rows.is_pinned()
        assert torch.equal(found.rows, wanted.rows)
        assert torch.equal(found.finite, wanted.finite)
        assert torch.equal(found.fits, wanted.fits)
        assert torch.equal(found.sample, wanted.sample)
        torch.testing.assert_close(found.error, wanted.error)


def test_rows_on_the_cpu_have_arrived(gpu):
    stored = store_rows(torch.ones(2, 3, 4, 5), Codec(HALF, 5), "float16")
    assert stored.copied is None
    assert stored.wait() is stored
    assert not gpu.calls
