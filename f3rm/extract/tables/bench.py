"""Benchmark of an extractor on this machine: images per second, latency, memory."""

import resource
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from f3rm.errors import F3rmError
from f3rm.extract.tables.live import FeatureExtractor
from f3rm.store.geometry import Size

_MEGABYTE = 1 << 20


class BenchError(F3rmError):
    """A number of a benchmark is not positive, or a size is malformed."""


@dataclass(frozen=True)
class BenchRow:
    """One measurement, of the time from pixels in memory to values on the host.

    Attributes:
        size: Height and width of the images in pixels.
        batch: Images per batch.
        mean_ms: Mean time of a batch.
        std_ms: Its standard deviation.
        p50_ms: Median.
        p95_ms: 95th percentile.
        images_per_second: Batch divided by the mean time.
        allocated_mb: GPU memory held by tensors; 0 on the CPU.
        reserved_mb: GPU memory held by PyTorch; 0 on the CPU.
        peak_mb: Highest GPU memory of tensors; on the CPU the process's highest so far.
    """

    size: Size
    batch: int
    mean_ms: float
    std_ms: float
    p50_ms: float
    p95_ms: float
    images_per_second: float
    allocated_mb: float
    reserved_mb: float
    peak_mb: float


def benchmark(
    extractor: FeatureExtractor,
    sizes: Sequence[Size] = ((360, 640),),
    *,
    batches: Sequence[int] = (1, 2, 4, 8),
    warmup: int = 3,
    iterations: int = 20,
) -> list[BenchRow]:
    """Times an extractor on random images.

    Args:
        extractor: The extractor.
        sizes: Image sizes (height, width) in pixels.
        batches: Images per batch.
        warmup: Batches before the clock starts.
        iterations: Timed batches.

    Returns:
        One row per size and batch.

    Raises:
        BenchError: If a number is not positive.
    """
    if iterations < 1 or warmup < 0 or min((1, *batches, *(min(size) for size in sizes))) < 1:
        msg = (
            "Sizes, batches and iterations must be positive, warmup not negative, got "
            f"{tuple(sizes)}, {tuple(batches)}, {iterations} and {warmup}."
        )
        raise BenchError(msg)
    return [
        _measure(extractor, size, batch, warmup=warmup, iterations=iterations)
        for size in sizes
        for batch in batches
    ]


def as_table(rows: Sequence[BenchRow]) -> str:
    """Returns measurements as a printable table."""
    lines = ["  size         batch  images/s   mean ± std ms      p50      p95   peak MB"]
    lines.extend(
        f"  {f'{row.size[0]} x {row.size[1]}':<12} {row.batch:>5}  {row.images_per_second:>8.1f}  "
        f"{row.mean_ms:>7.1f} ± {row.std_ms:<6.1f} {row.p50_ms:>7.1f}  {row.p95_ms:>7.1f}  "
        f"{row.peak_mb:>8.0f}"
        for row in rows
    )
    return "\n".join(lines)


def _measure(
    extractor: FeatureExtractor, size: Size, batch: int, *, warmup: int, iterations: int
) -> BenchRow:
    images = list(np.random.default_rng(0).integers(0, 256, (batch, *size, 3), dtype=np.uint8))
    device = extractor.backbone.device
    on_gpu = device.type == "cuda"
    for _ in range(warmup):
        extractor(images, batch_size=batch)
    if on_gpu:
        torch.cuda.reset_peak_memory_stats(device)
    times = np.array([_time(extractor, images, device) for _ in range(iterations)]) * 1e3
    return BenchRow(
        size=size,
        batch=batch,
        mean_ms=float(times.mean()),
        std_ms=float(times.std()),
        p50_ms=float(np.percentile(times, 50)),
        p95_ms=float(np.percentile(times, 95)),
        images_per_second=batch / float(times.mean()) * 1e3,
        allocated_mb=torch.cuda.memory_allocated(device) / _MEGABYTE if on_gpu else 0.0,
        reserved_mb=torch.cuda.memory_reserved(device) / _MEGABYTE if on_gpu else 0.0,
        peak_mb=(torch.cuda.max_memory_allocated(device) if on_gpu else _host_peak()) / _MEGABYTE,
    )


def _time(extractor: FeatureExtractor, images: Sequence[np.ndarray], device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    start = time.perf_counter()
    extractor(images, batch_size=len(images))  # ends on the host, so the GPU has finished
    return time.perf_counter() - start


def _host_peak() -> int:
    """Returns the process's highest memory so far in bytes."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024  # macOS counts bytes, Linux kB
