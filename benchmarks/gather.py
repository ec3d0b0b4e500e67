"""Random rows of a feature store next to the row-by-row loop of earlier systems.

``python benchmarks/gather.py --json`` makes a store of 6 GB in a temporary folder, prints one JSON
object and removes the store. Rows are 768 fp16 channels, 4,096 of them per gather, given as image,
row and column. All are ratios of medians, measured in turn in one run; warm ones are ratios of the
thread's own time, cold ones of the wall's:

- ``speedup_warm``: earlier loop over ours with NumPy alone, everything in the page cache.
- ``speedup_warm_fast``: the same with numba; null if it is not installed.
- ``speedup_cold``: the same after the pages were evicted, NumPy alone.
- ``vs_resident``: ours over indexing one resident tensor of the same rows, into a kept buffer.
- ``growth_50_to_2000``: a whole batch, from pixels to fp32 features, over all 2,000 images, over
  the same over 50 of them, as the store reads by default: with numba where it is installed. Which
  50 changes, because memory is not equally quick everywhere; they are read a few times first.
  ``growth_numpy``: the same with NumPy alone; ``growth_resident``: rows of the resident tensor.
- ``rss_anon_gb``: anonymous memory of this process after all that; mapped files do not count.

Warm means in memory: mappings are locked there where the system allows it (``locked``), because
some machines take pages back that are read seldom, and a gather would measure their return.
"""

import ctypes
import gc
import importlib.util
import math
import os
import shutil
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from command import make_parser, show

from f3rm.errors import BackboneRef
from f3rm.store.chunks import write_chunk
from f3rm.store.gather import Engine
from f3rm.store.geometry import PixelAffine, ValidRect
from f3rm.store.manifest import ChunkRecord, ImageRecord, Manifest
from f3rm.store.reader import FeatureStore
from f3rm.store.row_index import RowIndex
from f3rm.store.spec import ALGORITHM_VERSION, FeatureSpec

GRID = (40, 50)
CHANNELS = 768
SHARD = 64
FEW = 50
ROWS = 4096

Cells = tuple[np.ndarray, np.ndarray, np.ndarray]
Gather = Callable[[Cells], torch.Tensor]


class EarlierLoop:
    """The earlier systems' reader: a memory map per shard, one row at a time, torch.stack."""

    def __init__(self, folder: Path) -> None:
        self.shards = [np.load(path, mmap_mode="r") for path in sorted(folder.glob("chunk_*.npy"))]
        self.ends = np.cumsum([0, *(len(shard) for shard in self.shards)])

    def __getitem__(self, where: tuple[int, int, int]) -> torch.Tensor:
        image, row, col = where
        shard = int(np.searchsorted(self.ends, image, side="right") - 1)
        return torch.from_numpy(self.shards[shard][image - self.ends[shard], row, col])

    def gather(self, cells: Cells) -> torch.Tensor:
        triples = zip(*(torch.from_numpy(part) for part in cells), strict=True)
        return torch.stack([self[int(image), int(row), int(col)] for image, row, col in triples])


def make_store(folder: Path, num_images: int) -> Manifest:
    """Writes one random block again and again, and says what is where."""
    block = np.random.default_rng(0).standard_normal((SHARD, *GRID, CHANNELS), dtype=np.float32)
    block = block.astype(np.float16)
    spec = FeatureSpec(
        BackboneRef("none", "none", "none"), ("final",), precision="float32", codec="fp16"
    )
    chunks: list[ChunkRecord] = []
    images: list[ImageRecord] = []
    affine, valid = PixelAffine.between(GRID, GRID), ValidRect.full(GRID)
    for start in range(0, num_images, SHARD):
        names = tuple(f"{n}.png" for n in range(start, min(start + SHARD, num_images)))
        shape, file = (len(names), *GRID, CHANNELS), f"chunk_{len(chunks):04d}.npy"
        written = write_chunk(folder / file, shape, "float16", [block[: len(names)]])
        for row, name in enumerate(names):
            images.append(ImageRecord(name, 1, 0, "", GRID, len(chunks), row, affine, valid))
        record = ChunkRecord(
            file, written.bytes, shape, "float16", written.checksum,
            codec_error=0.0, images=names, taps={"final": shape[1:]},
        )  # fmt: skip
        chunks.append(record)
    return Manifest(
        spec=spec,
        weights_identity="none",
        algorithm=ALGORITHM_VERSION,
        key=spec.key("none"),
        channels=CHANNELS,
        has_text=False,
        provenance={},
        versions={},
        chunks=tuple(chunks),
        images=tuple(images),
    )


def taking(store: FeatureStore) -> Gather:
    """Returns cells to rows, in the stored type like the earlier loop."""
    row_index = RowIndex(store.manifest)
    return lambda cells: store.rows.take(row_index.cells(*cells))


def looking_up(store: FeatureStore) -> Gather:
    """Returns what a training batch costs: from pixels to features in fp32."""

    def look_up(cells: Cells) -> torch.Tensor:
        image, row, col = (torch.from_numpy(part) for part in cells)
        return store.gather(image, torch.stack([col, row], dim=-1).float())

    return look_up


class Bench:
    """A store on disk, and what is measured on it.

    Attributes:
        locked: Whether its pages were kept in memory while warm ones were measured.
    """

    def __init__(self, folder: Path, num_images: int, repeats: int) -> None:
        self.folder, self.num_images, self.repeats = folder, num_images, repeats
        self.manifest = make_store(folder, num_images)
        self.locked = False
        self._random = np.random.default_rng(1)

    def open(self, engine: Engine) -> FeatureStore:
        return FeatureStore(self.folder, self.manifest, engine=engine)

    def draw(self, images: range | None = None) -> Cells:
        images = images or range(self.num_images)
        high = (len(images), *GRID)
        image, row, col = (self._random.integers(0, size, ROWS) for size in high)
        return image + images.start, row, col

    def seconds(
        self,
        gather: Gather,
        images: range | None = None,
        clock: Callable[[], float] = time.perf_counter,
    ) -> float:
        cells = self.draw(images)
        start = clock()
        gather(cells)
        return clock() - start

    def medians(self, ways: dict[str, tuple[Gather, int | None]]) -> dict[str, float]:
        """Times the ways in turn, three gathers each, so that the machine's moods hit all alike."""
        # Nothing waits or has a second thread: the thread's own time is all that a gather costs.
        times: dict[str, list[float]] = {name: [] for name in ways}
        for _ in range(self.repeats):
            few = FEW if self.num_images > FEW else self.num_images
            start = int(self._random.integers(self.num_images - few + 1))
            for name, (gather, num_images) in ways.items():
                images = range(start, start + few) if num_images == FEW else None
                for _ in range(3 if images else 0):
                    gather(self.draw(images))
                times[name] += [self.seconds(gather, images, time.thread_time) for _ in range(3)]
        return {name: statistics.median(values) for name, values in times.items()}

    def warm_up(self, gathers: list[Gather]) -> None:
        """Reads all files, and touches every page of every mapping."""
        for chunk in self.manifest.chunks:
            with (self.folder / chunk.file).open("rb", buffering=0) as stream:
                while stream.read(1 << 24):
                    pass
        steps = np.arange(0, math.prod(GRID), 2)  # every page holds the start of such a cell
        row, col = np.divmod(steps, GRID[1])
        for image in range(self.num_images):
            for gather in gathers:
                gather((np.full_like(row, image), row, col))

    def lock(self) -> bool:
        """Keeps the pages of all mappings of the store in memory; False where that is forbidden."""
        lock = ctypes.CDLL(None).mlock
        lock.argtypes = (ctypes.c_size_t, ctypes.c_size_t)
        mappings = Path("/proc/self/maps").read_text().splitlines()
        ranges = [line.split()[0].split("-") for line in mappings if str(self.folder) in line]
        spans = [(int(start, 16), int(stop, 16)) for start, stop in ranges]
        return all(lock(start, stop - start) == 0 for start, stop in spans)

    def evict(self) -> None:
        """Drops the store's pages from the page cache; they must not be mapped."""
        gc.collect()
        for chunk in self.manifest.chunks:
            descriptor = os.open(self.folder / chunk.file, os.O_RDONLY)
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
            os.close(descriptor)

    def warm(self) -> dict[str, float]:
        """Measures the loop, both engines and whole batches, in seconds."""
        earlier = EarlierLoop(self.folder).gather
        store, default = self.open("numpy"), self.open("auto")
        taken = {"earlier": earlier, "ours": taking(store)}
        if importlib.util.find_spec("numba"):
            taken["fast"] = taking(default)
        self.warm_up(list(taken.values()))
        self.locked = self.lock()
        cells = self.draw()
        if not all(torch.equal(gather(cells), earlier(cells)) for gather in taken.values()):
            raise RuntimeError("gather: all ways must return the same rows.")
        ways: dict[str, tuple[Gather, int | None]] = {
            name: (gather, None) for name, gather in taken.items()
        }
        for name, batch in (("batch", looking_up(default)), ("batch_numpy", looking_up(store))):
            ways |= {name: (batch, None), f"{name}_few": (batch, FEW)}
        return self.medians(ways)

    def cold(self) -> dict[str, float]:
        """Measures with evicted pages, opening anew each time, in seconds."""
        times: dict[str, list[float]] = {"earlier": [], "ours": []}
        for _ in range(3):
            self.evict()
            times["earlier"].append(self.seconds(EarlierLoop(self.folder).gather))
            self.evict()
            times["ours"].append(self.seconds(taking(self.open("numpy"))))
        return {name: statistics.median(values) for name, values in times.items()}

    def resident(self) -> dict[str, float]:
        """Measures beside one tensor that holds all rows, in seconds."""
        row_index = RowIndex(self.manifest)
        ours = taking(self.open("numpy"))
        rows = torch.empty(self.num_images * math.prod(GRID), CHANNELS, dtype=torch.float16)
        start = 0
        for chunk in self.manifest.chunks:
            part = np.load(self.folder / chunk.file).reshape(-1, CHANNELS)
            rows[start : start + len(part)] = torch.from_numpy(part)
            start += len(part)
        kept = torch.empty(ROWS, CHANNELS, dtype=torch.float16)

        def index(cells: Cells) -> torch.Tensor:
            row_ids = torch.from_numpy(row_index.cells(*cells))
            return torch.index_select(rows, 0, row_ids, out=kept)

        self.warm_up([ours])
        self.lock()
        few = {"resident_few": (index, FEW), "ours_few": (ours, FEW)}
        return self.medians({"resident": (index, None), "ours": (ours, None), **few})


def anonymous_gb() -> float:
    """Returns the process's anonymous resident memory."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("RssAnon:"):
            return int(line.split()[1]) / (1 << 20)
    return math.nan


def measure(folder: Path, num_images: int, repeats: int) -> dict[str, object]:
    """Measures every figure; see the module's docstring."""
    bench = Bench(folder, num_images, repeats)
    warm = bench.warm()
    cold = bench.cold()
    memory = anonymous_gb()  # before the resident tensor, which is the other way's memory
    resident = bench.resident()
    fast = warm["earlier"] / warm["fast"] if "fast" in warm else None
    return {
        "speedup_warm": round(warm["earlier"] / warm["ours"], 1),
        "speedup_warm_fast": None if fast is None else round(fast, 1),
        "speedup_cold": round(cold["earlier"] / cold["ours"], 1),
        "vs_resident": round(resident["ours"] / resident["resident"], 2),
        "growth_50_to_2000": round(warm["batch"] / warm["batch_few"], 2),
        "growth_numpy": round(warm["batch_numpy"] / warm["batch_numpy_few"], 2),
        "growth_resident": round(resident["resident"] / resident["resident_few"], 2),
        "rss_anon_gb": round(memory, 3),
        "warm_ms": {name: round(value * 1e3, 3) for name, value in warm.items()},
        "cold_ms": {name: round(value * 1e3, 1) for name, value in cold.items()},
        "resident_ms": {name: round(value * 1e3, 3) for name, value in resident.items()},
        "store_gb": round(sum(chunk.bytes for chunk in bench.manifest.chunks) / 1e9, 2),
        "images": num_images,
        "locked": bench.locked,
        "repeats": repeats,
    }


def keep_freed_memory() -> None:
    """Has the C library reuse freed memory: fresh pages, now and then, cost more than a gather."""
    for option in (-1, -3):  # M_TRIM_THRESHOLD, M_MMAP_THRESHOLD
        ctypes.CDLL(None).mallopt(option, 1 << 26)


def check_room(folder: Path, num_images: int) -> None:
    """Ends the program if the store does not fit."""
    needed = num_images * math.prod(GRID) * CHANNELS * 2
    free = shutil.disk_usage(folder).free
    if free < needed * 1.1:
        raise SystemExit(
            f"gather: {folder} must have {needed * 1.1 / 1e9:.1f} GB free, got {free / 1e9:.1f}. "
            "Pass --folder."
        )


def main() -> None:
    """Parses the command line, measures and prints."""
    parser = make_parser(__doc__)
    parser.add_argument("--folder", default=tempfile.gettempdir(), help="where the store is made")
    parser.add_argument("--images", type=int, default=2000, help="2000 make 6.1 GB")
    parser.add_argument("--repeats", type=int, default=31, help="timed gathers of each kind")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    keep_freed_memory()
    warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
    check_room(Path(arguments.folder), arguments.images)
    with tempfile.TemporaryDirectory(prefix="f3rm-gather-", dir=arguments.folder) as folder:
        result = measure(Path(folder), arguments.images, arguments.repeats)
    show(result, as_json=arguments.json)


if __name__ == "__main__":
    main()
