"""Rows on their way from a GPU to the host, without one: fake tensors, and recorders for CUDA."""

from collections.abc import Iterator
from contextlib import contextmanager
from unittest.mock import MagicMock

import pytest
import torch
from torch._subclasses import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from f3rm.extract.encoder import store_rows
from f3rm.store.codecs import Codec, CodecSpec

HALF = CodecSpec("none", "float16")
EVENT = torch.cuda.Event


class Gpu(TorchDispatchMode):
    """Imitates two GPUs of which the first is current; records the calls in order."""

    def __init__(self) -> None:
        super().__init__()
        self.current = torch.device("cuda", 0)
        self.calls: list[tuple[object, ...]] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func is torch.ops.aten.copy_.default and args[0].device.type == "cpu":
            self.calls.append(("copy", args[1].device, args[2:]))
        return func(*args, **(kwargs or {}))

    @contextmanager
    def device(self, device: torch.device) -> Iterator[None]:
        before, self.current = self.current, torch.device(device)
        yield
        self.current = before

    def current_stream(self, device: torch.device | None = None) -> object:
        return "stream", device or self.current

    def event(self) -> torch.cuda.Event:
        event, made_on = MagicMock(spec=EVENT), self.current

        def record(stream: object = None) -> None:
            self.calls.append(("record", made_on, stream or self.current_stream()))

        event.record.side_effect = record
        event.synchronize.side_effect = lambda: self.calls.append(("wait", made_on))
        return event


@pytest.fixture
def gpu(monkeypatch):
    recorder = Gpu()
    monkeypatch.setattr(torch.cuda, "device", recorder.device)
    monkeypatch.setattr(torch.cuda, "current_stream", recorder.current_stream)
    monkeypatch.setattr(torch.cuda, "Event", recorder.event)
    return recorder


@pytest.mark.parametrize("index", [0, 1])
def test_the_event_is_of_the_device_that_the_copies_come_from(gpu, index):
    device = torch.device("cuda", index)
    with FakeTensorMode(), gpu:
        stored = store_rows(torch.ones(2, 3, 4, 5, device=device), Codec(HALF, 5), "float16")
    assert stored.rows.device.type == "cpu"
    assert stored.rows.shape == (2, 3, 4, 5)
    assert stored.wait() is stored
    copies = [("copy", device, (True,))] * 5  # without waiting: rows, finite, fits, error, sample
    assert gpu.calls == [*copies, ("record", device, ("stream", device)), ("wait", device)]
    assert gpu.current == torch.device("cuda", 0), "the current device is as it was"


def test_rows_on_the_cpu_have_arrived(gpu):
    stored = store_rows(torch.ones(2, 3, 4, 5), Codec(HALF, 5), "float16")
    assert stored.copied is None
    assert stored.wait() is stored
    assert not gpu.calls
