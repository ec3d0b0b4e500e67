"""A device that computes features in a given time without using the processor.

With it ``extract.py`` measures the engine alone: checking and decoding images, batching, writing,
committing. Rows arrive in host memory after so many milliseconds, as copies from a GPU do; to
prepare, compute and encode them costs the host nothing.
"""

import io
import os
import shutil
import statistics
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache, partial
from itertools import cycle
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from f3rm.backbones.base import IMAGENET_MEAN, IMAGENET_STD, Backbone
from f3rm.errors import BackboneRef
from f3rm.extract import worker
from f3rm.extract.encoder import Encoder, StoredRows
from f3rm.extract.extraction import run_job
from f3rm.extract.job import Job
from f3rm.extract.plan import ChunkPlan
from f3rm.store.codecs import CodedDtype
from f3rm.store.geometry import Prep, Size
from f3rm.store.images import ImageInfo, read_inspected
from f3rm.store.items import ImageItem, items_from_paths
from f3rm.store.spec import FeatureSpec

_PHOTOGRAPHS = 8
_BUFFERS = 8
"""More than there are batches under way, so that no row is written from a warm cache."""
_CELLS = 32


@dataclass(frozen=True)
class Setting:
    """Images and a device.

    Attributes:
        size: Height and width of the images in pixels.
        side: Short side of what the model sees.
        batch: Images per network call.
        milliseconds: What such a call takes, preparation included; fewer images take less.
        images: Images of the dataset.
    """

    size: Size
    side: int
    batch: int
    milliseconds: float
    images: int

    @property
    def rate(self) -> float:
        """Images per second of the device."""
        return 1000 * self.batch / self.milliseconds


def settings(images: int) -> dict[str, Setting]:
    """What the suite measures, by images per second; the batches are those of a GPU of 80 GB.

    Args:
        images: A twelfth of the images at the slower rate; both devices work equally long.
    """
    return {
        "25": Setting((1080, 1920), 1024, 3, 120, 12 * images),
        "100": Setting((480, 640), 336, 48, 480, 48 * images),
    }


class _Arrival:
    """Stands for the CUDA event after the copies of a batch."""

    def __init__(self, at: float) -> None:
        self._at = at

    def synchronize(self) -> None:
        time.sleep(max(0.0, self._at - time.monotonic()))


class _Backbone(Backbone):
    """Sizes of CLIP ViT-L/14; the simulated encoder never runs it."""

    ref = BackboneRef("simulated", "none", "none")
    channels, patch_size, has_text = 768, 14, True
    mean, std = IMAGENET_MEAN, IMAGENET_STD

    @property
    def device(self) -> torch.device:
        return torch.device("cpu")

    def encode_image(self, images: Tensor) -> Tensor:
        raise NotImplementedError

    def provenance(self) -> dict[str, str]:
        return {}


class _Encoder(Encoder):
    """Hands out rows that arrive when the device would have computed and copied them."""

    def __init__(self, *arguments: Any, image_seconds: float) -> None:
        super().__init__(*arguments)
        self._image_seconds = image_seconds
        self._free_at = 0.0

    def read(self, plan: ChunkPlan, info: ImageInfo) -> Tensor:
        """Decodes; the second copy is the one into pinned memory."""
        del plan
        return torch.from_numpy(read_inspected(info, self.spec.background)).clone()

    def stored(
        self, inputs: Sequence[Tensor], plan: ChunkPlan, dtype: CodedDtype
    ) -> Iterator[StoredRows]:
        """Returns at once, as a GPU does; batches are computed one after the other."""
        del dtype
        count = len(inputs)
        self._free_at = max(self._free_at, time.monotonic()) + count * self._image_seconds
        rows, sample = next(_buffers((count, *plan.grid, self.channels)))
        finite, fits = torch.ones(count, dtype=torch.bool), torch.tensor(True)
        yield StoredRows(rows, finite, fits, torch.tensor(0.0), sample, _Arrival(self._free_at))


@cache
def _buffers(shape: tuple[int, ...]) -> Iterator[tuple[Tensor, Tensor]]:
    """Random rows of a batch, and their sample; made once, as the host does not compute them."""
    rows = torch.randn(shape, generator=torch.Generator().manual_seed(0)).half()
    sample = torch.full((2, shape[0] * _CELLS, shape[-1]), 0.5)
    return cycle([(rows + number, sample) for number in range(_BUFFERS)])


def simulate(setting: Setting, repeats: int, output: Path | None = None) -> dict[str, Any]:
    """Times whole extractions, from the check of the images to the manifest.

    Args:
        setting: Images and device.
        repeats: Timed extractions.
        output: An existing folder for the caches; None for the system's temporary one.

    Returns:
        ``ratio`` of the engine's images per second to the device's, and where time may go: the
        processor's per image, the rate of writing that the device asks for, and the disk's own.
    """
    times: list[float] = []
    work: list[float] = []
    disk: list[float] = []
    chunk_bytes: list[int] = []
    with tempfile.TemporaryDirectory() as folder, tempfile.TemporaryDirectory(dir=output) as caches:
        items = write_photographs(Path(folder), setting.images, setting.size)
        for _ in range(repeats + 1):
            start, before = time.perf_counter(), time.process_time()
            chunk_bytes = _extract(items, setting, Path(caches) / "cache")
            times.append(time.perf_counter() - start)
            work.append(time.process_time() - before)
            shutil.rmtree(Path(caches) / "cache")
            disk.append(_disk_rate(Path(caches), chunk_bytes[0]))
    rate = setting.images / statistics.median(times[1:])  # the first round warms up
    return {
        "ratio": round(rate / setting.rate, 3),
        "device_images_per_second": round(setting.rate, 2),
        "engine_images_per_second": round(rate, 2),
        "processor_ms_per_image": round(1000 * statistics.median(work[1:]) / setting.images, 1),
        "wanted_mb_per_second": round(sum(chunk_bytes) / setting.images * setting.rate / 1e6),
        "disk_mb_per_second": round(statistics.median(disk[1:])),
        "images": setting.images,
    }


def _extract(items: Sequence[ImageItem], setting: Setting, folder: Path) -> list[int]:
    """Extracts, and returns the lengths of the chunks in bytes."""
    spec = FeatureSpec(_Backbone.ref, ("final",), Prep(size=setting.side), codec="fp16")
    job = Job(items, spec, folder, "cpu", batch_size=setting.batch, progress=False)
    encoder = partial(_Encoder, image_seconds=1 / setting.rate)
    with patch.object(worker, "Encoder", encoder):
        store = run_job(job, lambda *_, **__: _Backbone())
    return [chunk.bytes for chunk in store.manifest.chunks]


def _disk_rate(folder: Path, num_bytes: int) -> float:
    """Returns megabytes per second of writing one file of a chunk's length and syncing it."""
    block = np.random.default_rng(0).bytes(1 << 24)
    path = folder / "raw"
    start = time.perf_counter()
    with path.open("wb") as stream:
        for _ in range(max(1, num_bytes // len(block))):
            stream.write(block)
        stream.flush()
        os.fsync(stream.fileno())
        written = stream.tell()
    seconds = time.perf_counter() - start
    path.unlink()
    return written / 1e6 / seconds


def write_photographs(folder: Path, num: int, size: Size) -> list[ImageItem]:
    """Writes JPEGs with shapes, texture and noise; a few contents take turns."""
    folder.mkdir(parents=True, exist_ok=True)
    contents = [_photograph(seed, size) for seed in range(min(num, _PHOTOGRAPHS))]
    paths = [folder / f"{number:04d}.jpg" for number in range(num)]
    for number, path in enumerate(paths):
        path.write_bytes(contents[number % len(contents)])
    return items_from_paths(paths, folder)


def _photograph(seed: int, size: Size) -> bytes:
    random = np.random.default_rng(seed)
    height, width = size
    total = random.normal(0, 4, (height, width, 3))
    for pixels, weight in ((160, 0.8), (8, 0.2)):
        cells = (height // pixels + 2, width // pixels + 2, 3)
        coarse = Image.fromarray(random.integers(0, 255, cells, dtype=np.uint8))
        total += weight * np.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC))
    stream = io.BytesIO()
    Image.fromarray(total.clip(0, 255).astype(np.uint8)).save(stream, "jpeg", quality=92)
    return stream.getvalue()
