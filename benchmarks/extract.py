"""The extraction engine beside the bare model and a simulated GPU, and its memory.

``python benchmarks/extract.py --json`` prints one JSON object:

- ``vs_bare_model``: images per second of the whole engine (checking, decoding, resizing, network,
  encoding, writing, committing) over those of the network alone on the same batches held in
  memory, in turn, ratio of medians. The model is loaded before either.
- ``rss_growth``: peak resident memory of a process that extracts 4N images over that of one that
  extracts N.
- ``engine_ratio_25``, ``engine_ratio_100`` (without a GPU): images per second of the whole engine
  over those of a simulated device alone (:mod:`simulated`), at 25 images per second (1080 x 1920,
  seen at a short side of 1024) and at 100 (480 x 640, 336). ``--simulated-ms N`` measures this
  alone, for a device that takes N ms a batch.

Weights are random: ViT-L/14 on a GPU, a small DINO on the CPU. Images are random JPEGs.
"""

import argparse
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from command import make_parser, show
from PIL import Image
from simulated import Setting, settings, simulate
from transformers import Dinov2Config, Dinov2Model, ViTConfig, ViTModel

from f3rm.backbones.base import Backbone
from f3rm.backbones.registry import load_backbone
from f3rm.errors import BackboneRef
from f3rm.extract.encoder import autocast, default_batch_size
from f3rm.extract.extraction import extract_features
from f3rm.extract.prepare import prepare
from f3rm.store.device import best_precision
from f3rm.store.geometry import Prep
from f3rm.store.images import read_image
from f3rm.store.items import ImageItem, items_from_paths
from f3rm.store.spec import FeatureSpec

_SIZE = (360, 480)
_RESET = Path("/proc/self/clear_refs")


def write_images(folder: Path, num: int) -> list[ImageItem]:
    """Writes smooth random photographs."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"{number}.jpg" for number in range(num)]
    for seed, path in enumerate(paths):
        coarse = np.random.default_rng(seed).integers(0, 255, (12, 16, 3), dtype=np.uint8)
        Image.fromarray(coarse).resize((_SIZE[1], _SIZE[0]), Image.Resampling.BICUBIC).save(path)
    return items_from_paths(paths, folder)


def write_model(folder: Path, device: torch.device, side: int) -> FeatureSpec:
    """Writes a model with random weights and says how to extract with it."""
    sizes: dict[str, Any] = {"hidden_size": 256, "num_hidden_layers": 10, "patch_size": 16}
    if device.type == "cuda":
        sizes = {"hidden_size": 1024, "num_hidden_layers": 24, "patch_size": 14}
    sizes |= {"num_attention_heads": sizes["hidden_size"] // 64, "image_size": 224}
    torch.manual_seed(0)
    if device.type == "cuda":
        family, network = "dinov2", Dinov2Model(Dinov2Config(**sizes))
    else:
        config = ViTConfig(**sizes, intermediate_size=4 * sizes["hidden_size"])
        family, network = "dino", ViTModel(config, add_pooling_layer=False)
    network.save_pretrained(folder)
    ref = BackboneRef(family, "random", str(folder))
    precision = best_precision(device)
    return FeatureSpec(ref, ("final",), Prep(size=side), precision=precision, codec="fp16")


def bare_run(backbone: Backbone, spec: FeatureSpec, items: list[ImageItem]) -> Callable[[], None]:
    """Prepares every batch in memory; the call sends them through the network."""
    size = spec.prep.place(_SIZE, backbone.patch_size).canvas
    images = [
        prepare(read_image(item.path, spec.background), size, device=backbone.device)
        for item in items
    ]
    mean = torch.tensor(backbone.mean, device=backbone.device)[:, None, None]
    std = torch.tensor(backbone.std, device=backbone.device)[:, None, None]
    count = default_batch_size(size, backbone.device)
    batches = [
        (torch.stack(images[start : start + count]) - mean) / std
        for start in range(0, len(images), count)
    ]

    @torch.inference_mode()
    def run() -> None:
        for batch in batches:
            with autocast(backbone.device, spec.precision):
                backbone.encode_image(batch)
        if backbone.device.type == "cuda":
            torch.cuda.synchronize(backbone.device)

    return run


def engine_run(
    backbone: Backbone, spec: FeatureSpec, items: list[ImageItem], folder: Path
) -> Callable[[], None]:
    """The call extracts everything anew."""

    def run() -> None:
        extract_features(
            items,
            spec,
            folder=folder,
            device=str(backbone.device),
            force=True,
            progress=False,
            load=lambda *_, **__: backbone,
        )

    return run


def seconds_of(runs: dict[str, Callable[[], None]], repeats: int) -> dict[str, float]:
    """Times runs in turn, so that the machine's moods hit all alike; returns medians."""
    times: dict[str, list[float]] = {name: [] for name in runs}
    for repeat in range(repeats + 1):
        for name, run in runs.items():
            start = time.perf_counter()
            run()
            if repeat:  # the first round warms up
                times[name].append(time.perf_counter() - start)
    return {name: statistics.median(values) for name, values in times.items()}


def peak_bytes(num: int, device: torch.device, side: int) -> int:
    """Extracts in a process of its own and returns its peak resident memory."""
    options = {"--peak-of": num, "--device": device, "--side": side}
    command = [sys.executable, __file__, *(str(word) for pair in options.items() for word in pair)]
    return int(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def print_peak(num: int, device: torch.device, side: int) -> None:
    """Extracts ``num`` images and prints the peak resident memory of this process."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        spec = write_model(folder / "model", device, side)
        items = write_images(folder / "images", num)
        backbone = load_backbone(spec.backbone, device=device)
        if _RESET.exists():
            _RESET.write_text("5")  # forget the peak of importing and loading
        engine_run(backbone, spec, items, folder / "features")()
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)


def measure(
    num: int, repeats: int, device: torch.device, side: int, *, memory: bool
) -> dict[str, object]:
    """Measures every figure, the peaks only with ``memory``; see the module's docstring."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        spec = write_model(folder / "model", device, side)
        items = write_images(folder / "images", num)
        backbone = load_backbone(spec.backbone, device=device)
        runs = {
            "bare": bare_run(backbone, spec, items),
            "engine": engine_run(backbone, spec, items, folder / "features"),
        }
        seconds = seconds_of(runs, repeats)
    peaks = [peak_bytes(count, device, side) for count in (num, 4 * num)] if memory else None
    simulated = settings(num) if device.type == "cpu" else {}
    engines = {name: simulate(setting, repeats) for name, setting in simulated.items()}
    return {
        "vs_bare_model": round(seconds["bare"] / seconds["engine"], 3),
        **{f"engine_ratio_{name}": engine["ratio"] for name, engine in engines.items()},
        **({"engines": engines} if engines else {}),
        "images_per_second": {key: round(num / value, 2) for key, value in seconds.items()},
        "rss_growth": round(peaks[1] / peaks[0], 3) if peaks else None,
        "peak_mb": [round(peak / 1e6) for peak in peaks or ()],
        "images": num,
        "is_gpu": device.type == "cuda",
        "side": side,
        "repeats": repeats,
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "device": torch.cuda.get_device_name(device)
        if device.type == "cuda"
        else platform.processor() or platform.machine(),
    }


def main() -> None:
    """Parses the command line, measures and prints."""
    parser = make_parser(__doc__)
    parser.add_argument("--images", type=int, default=16, help="images of the dataset")
    parser.add_argument("--repeats", type=int, default=5, help="timed runs of each kind")
    parser.add_argument(
        "--device",
        default="cuda" if torch.cuda.is_available() else "cpu",
        help="cpu or cuda; a GPU if there is one",
    )
    parser.add_argument("--side", type=int, default=448, help="short side of what the model sees")
    parser.add_argument("--no-memory", action="store_true", help="leave the peaks out")
    parser.add_argument("--peak-of", type=int, help=argparse.SUPPRESS)
    parser.add_argument(
        "--simulated-ms", type=float, help="measure the engine beside a device of this time a batch"
    )
    parser.add_argument("--batch", type=int, default=3, help="images per call of that device")
    parser.add_argument("--size", type=int, nargs=2, default=(1080, 1920), help="height and width")
    parser.add_argument("--output", type=Path, help="where that engine's caches are written")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    device = torch.device(arguments.device)
    if arguments.simulated_ms is not None:
        setting = Setting(
            size=(arguments.size[0], arguments.size[1]),
            side=arguments.side,
            batch=arguments.batch,
            milliseconds=arguments.simulated_ms,
            images=arguments.images,
        )
        result = simulate(setting, arguments.repeats, arguments.output)
        show(result, as_json=arguments.json)
        return
    if arguments.peak_of is not None:
        print_peak(arguments.peak_of, device, arguments.side)
        return
    result = measure(
        arguments.images,
        arguments.repeats,
        device,
        arguments.side,
        memory=not arguments.no_memory,
    )
    show(result, as_json=arguments.json)


if __name__ == "__main__":
    main()
