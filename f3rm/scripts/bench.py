"""``f3rm bench``: time a model's features on this machine."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path

from f3rm.extract.tables.bench import BenchError, as_table, benchmark
from f3rm.extract.tables.live import FeatureExtractor
from f3rm.scripts.command import Command
from f3rm.scripts.taps import choose_spec
from f3rm.store.spec import resolve_feature_type


@dataclass
class Bench(Command):
    """Time the extraction of features on random images: images per second, latency, peak memory."""

    feature_type: str | None = None
    """A feature type with its own tap and image size, in place of --backbone and --tap."""
    backbone: str | None = None
    """The model: adapter:model@weights; f3rm models lists adapters."""
    tap: tuple[str, ...] = ()
    """Layers to read, e.g. final or -1:query@all; f3rm layers lists a model's."""
    spec: Path | None = None
    """YAML with backbone, taps and preparation."""
    sizes: tuple[str, ...] = ("360x640",)
    """Image sizes in pixels, height x width."""
    batches: tuple[int, ...] = (1, 2, 4, 8)
    """Images per batch."""
    warmup: int = 3
    """Batches before the clock starts."""
    iterations: int = 20
    """Timed batches."""
    device: str = "auto"
    """auto (the GPU if there is one), cpu, cuda, cuda:0, ..."""
    as_json: bool = False
    """Print JSON instead of a table."""

    def run(self) -> None:
        """Measures and prints.

        Raises:
            F3rmError: If the model cannot be loaded or a number is impossible.
        """
        if self.feature_type is None:
            spec = choose_spec(self.spec, self.backbone, self.tap).spec
        else:
            if self.backbone or self.tap or self.spec:
                msg = (
                    "--feature-type has a model and a tap: leave out --backbone, --tap and --spec."
                )
                raise BenchError(msg)
            spec, *others = resolve_feature_type(self.feature_type)
            if others:
                raise BenchError(f"--feature-type must be one model, got {self.feature_type!r}.")
        sizes = [_size(text) for text in self.sizes]
        extractor = FeatureExtractor(spec, device=self.device)
        rows = benchmark(
            extractor, sizes, batches=self.batches, warmup=self.warmup, iterations=self.iterations
        )
        if self.as_json:
            print(json.dumps([asdict(row) for row in rows], indent=1))
            return
        print(f"{spec.backbone.adapter} {spec.backbone.model} on {extractor.backbone.device}")
        print(as_table(rows))


def _size(text: str) -> tuple[int, int]:
    height, _, width = text.lower().partition("x")
    if not (height.isdecimal() and width.isdecimal()):
        msg = f"--sizes must look like 360x640, height first, got {text!r}."
        raise BenchError(msg)
    return int(height), int(width)
