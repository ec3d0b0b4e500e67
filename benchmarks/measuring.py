"""How all benchmarks measure: calls in turn, medians, peaks of memory, and where it was."""

import ctypes
import gc
import platform
import statistics
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import torch

Call = Callable[[], object]


def machine(device: torch.device) -> dict[str, object]:
    """Says what it was measured on."""
    is_cuda = device.type == "cuda"
    return {
        "device": torch.cuda.get_device_name(device) if is_cuda else _processor(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
    }


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def medians(calls: Mapping[str, Call], repeats: int, device: torch.device) -> dict[str, float]:
    """Times calls in turn, so that the machine's moods hit all alike; returns seconds.

    On the CPU these are the seconds that this process computes, whatever else runs; with several
    threads, those of all of them.
    """
    clock = time.process_time if device.type == "cpu" else time.perf_counter
    times: dict[str, list[float]] = {name: [] for name in calls}
    for repeat in range(repeats + 1):
        for name, call in calls.items():
            _synchronise(device)
            start = clock()
            call()
            _synchronise(device)
            if repeat:  # the first round warms up
                times[name].append(clock() - start)
    return {name: statistics.median(values) for name, values in times.items()}


def _synchronise(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def peak_mib(call: Call, device: torch.device) -> float:
    """Returns what a call adds to this process's memory at most; be in a fresh one.

    The least of three calls: what the allocator happens to keep or to return is left out.
    """
    is_cuda = device.type == "cuda"
    peaks = (_cuda_peak(call, device) if is_cuda else _process_peak(call) for _ in range(3))
    return round(min(peaks), 1)


def _cuda_peak(call: Call, device: torch.device) -> float:
    before = torch.cuda.memory_allocated(device)
    torch.cuda.reset_peak_memory_stats(device)
    call()
    return (torch.cuda.max_memory_allocated(device) - before) / 2**20


def _process_peak(call: Call) -> float:
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)  # or memory that was freed before would be used unseen
    Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")  # resets VmHWM, the peak
    before = _status("VmRSS")
    call()
    return (_status("VmHWM") - before) / 2**10


def _status(field: str) -> int:
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    (line,) = (line for line in lines if field in line)
    return int(line.split()[1])  # KiB
