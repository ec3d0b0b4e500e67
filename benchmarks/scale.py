"""How costs grow: with images, with their size, with channels and with rays.

``python benchmarks/scale.py --json`` prints one JSON object. Each curve is measured in turn, as
medians, and has its slope: how many times the cost grows when the size doubles (1: not at all, 2:
in proportion), fitted over the whole curve.

- ``open``: opening a store of so many images; ``gather``: a batch of 4,096 rows from it.
- ``extract``: a photograph of so many rows through TINYCLIP, the model that ships with f3rm.
- ``channels``, ``rays``: a training step of f3rm-lite.
"""

import copy
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import cast
from unittest import mock

import gather as store_benchmark
import numpy as np
import torch
from command import make_parser, show
from measuring import Call, machine, medians
from nerfstudio.models.nerfacto import NerfactoModelConfig
from step import build_model, whole_step

from f3rm.backbones.registry import load_backbone
from f3rm.f3rm_config import f3rm_lite_method
from f3rm.store.manifest import MANIFEST
from f3rm.store.reader import FeatureStore
from f3rm.store.spec import PRESETS

_CHANNELS = 128
_RAYS = 1024
_ROWS = 4096
_GRID = (8, 10)


def curve(
    name: str, sizes: Sequence[int], build: Callable[[int], Call], repeats: int
) -> dict[str, object]:
    """Times the calls of all sizes in turn, and fits how the cost grows."""
    seconds = medians({str(size): build(size) for size in sizes}, repeats, torch.device("cpu"))
    times = list(seconds.values())
    slope = np.polyfit(np.log2(sizes), np.log2(times), 1)[0]
    return {
        f"{name}_ms": {size: round(1e3 * value, 3) for size, value in seconds.items()},
        f"{name}_per_doubling": round(float(2**slope), 3),
    }


def stores(folder: Path, sizes: Sequence[int]) -> dict[int, Path]:
    """Writes stores of so many images with a small grid of cells."""
    made: dict[int, Path] = {}
    with mock.patch.multiple(store_benchmark, GRID=_GRID, CHANNELS=_CHANNELS):
        for size in sizes:
            made[size] = folder / str(size)
            made[size].mkdir()
            manifest = store_benchmark.make_store(made[size], size)
            (made[size] / MANIFEST).write_text(manifest.to_json(), encoding="utf-8")
    return made


def opening(folder: Path) -> Call:
    """Returns what opens a store."""
    return lambda: FeatureStore.open(folder)


def gathering(folder: Path) -> Call:
    """Returns what reads a batch of random rows."""
    store = FeatureStore.open(folder)
    for image in range(len(store)):
        store.feature_map(image)  # touches every page: what is on disk is another matter
    rng = np.random.default_rng(0)

    def read() -> None:
        image = torch.from_numpy(rng.integers(0, len(store), _ROWS))
        store.gather(image, torch.from_numpy(rng.random((_ROWS, 2))).float() * 8)

    return read


def extracting() -> Callable[[int], Call]:
    """Returns what computes a photograph's features, by its number of rows."""
    backbone = load_backbone(PRESETS["TINYCLIP"].backbone, towers=("image",))

    def build(rows: int) -> Call:
        pixels = torch.rand(1, 3, rows, rows * 4 // 3)
        return lambda: backbone.encode_image(pixels)

    return build


def stepping(channels: int, rays: int) -> Call:
    """Returns a training step of f3rm-lite."""
    method = f3rm_lite_method.config
    config = cast("NerfactoModelConfig", copy.deepcopy(method.pipeline.model))
    model = build_model(config, [channels], torch.device("cpu"))
    return whole_step(model, method.optimizers, [channels], rays)


def measure(folder: Path, repeats: int, *, few: bool) -> dict[str, object]:
    """Measures every curve; see the module's docstring."""
    images = (50, 500) if few else (50, 500, 5000)
    rows = (96, 192) if few else (240, 360, 480, 720)
    channels = (128, 768) if few else (128, 384, 768, 1536, 3072, 5120)
    rays = (128, 256) if few else (256, 512, 1024, 2048, 4096)
    made = stores(folder, images)
    result: dict[str, object] = {"repeats": repeats, **machine(torch.device("cpu"))}
    for name, sizes, build in (
        ("open", images, lambda size: opening(made[size])),
        ("gather", images, lambda size: gathering(made[size])),
        ("extract", rows, extracting()),
        ("channels", channels, lambda size: stepping(size, 256 if few else _RAYS)),
        ("rays", rays, lambda size: stepping(_CHANNELS, size)),
    ):
        result |= curve(name, sizes, build, repeats)
    return result


def main() -> None:
    """Parses the command line, measures and prints."""
    parser = make_parser(__doc__)
    parser.add_argument("--repeats", type=int, default=5, help="timed calls of each kind")
    parser.add_argument("--few", action="store_true", help="short curves of small sizes")
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    with tempfile.TemporaryDirectory(prefix="f3rm-scale-") as folder, torch.enable_grad():
        result = measure(Path(folder), given.repeats, few=given.few)
    show(result, as_json=given.json)


if __name__ == "__main__":
    main()
