"""``f3rm extract``: features of images and videos, computed once and kept on disk."""

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

from f3rm.errors import CacheError, F3rmError
from f3rm.extract.engines import Engine, run_with
from f3rm.extract.extraction import preview_job
from f3rm.extract.job import Job, OnError
from f3rm.extract.standalone import jobs_for_dataset
from f3rm.extract.tables.exports import export_array, export_per_item, slug_of
from f3rm.extract.tables.items import ItemList, list_items, split_folder, write_split
from f3rm.extract.tables.run import Shard, make_job
from f3rm.extract.tables.tables import TapStore
from f3rm.recipes.vissl import export_vissl
from f3rm.scripts.command import Command, say
from f3rm.scripts.taps import choose_spec
from f3rm.store.device import is_first_rank
from f3rm.store.reader import FeatureStore
from f3rm.store.spec import Background, Precision

Export = Literal["none", "array", "per-item", "vissl"]


@dataclass
class Extract(Command):
    """Compute dense features of a dataset's images and keep them on disk, ready for ns-train f3rm.

    With --tap or --spec: read any layers of any model, from images and videos in a folder, a list
    or a pattern; results go to --out.

    Features that are extracted already and still valid are kept; an interrupted run continues where
    it stopped; processes of the same command share the work.
    """

    when_interrupted: ClassVar[str] = (
        "Stopped. The finished chunks are kept: run the same command again to go on from there."
    )

    data: Path
    """Dataset folder with transforms.json (made by ns-process-data, for example).
    With --tap or --spec also any folder, text file of paths, quoted pattern, image or video."""
    feature_type: str = "CLIP"
    """CLIP (for text queries), DINO, DINOV2, ... (see f3rm models), or several: DINO+CLIP."""
    shard_size: int = 64
    """Images per chunk file."""
    device: str = "auto"
    """auto (the GPU if there is one), cpu, cuda, cuda:0, ..."""
    force: bool = False
    """Compute everything again; valid old features stay until the new ones are complete."""
    dry_run: bool = False
    """Only print the costs: images, chunks, bytes, free space, expected time."""
    cache_dir: Path | None = None
    """Folder for the features, instead of DATA/features."""
    weights: tuple[str, ...] = ()
    """Weights other than the default, by type: CLIP=PATH DINO=PATH."""
    background: Background = "black"
    """Behind images with alpha; match --pipeline.model.background-color (its default is black)."""
    batch_size: int | None = None
    """Images per network call; by default chosen by image size, and halved if memory runs out."""
    codec: str | None = None
    """Storage of the features: fp16, fp32, int8, or pca and a number of components: pca128.
    By default fp16, and with --tap fp32 (with --spec what it says)."""
    precision: Precision = "auto"
    """Number format of the network; half precision changes values slightly.
    auto: as extracted already, else bfloat16 or (older) float16 on a GPU, float32 on the CPU."""
    on_error: OnError = "raise"
    """An image that cannot be extracted ends the run (raise), or is left out (record)."""
    engine: Engine = "local"
    """Workers are processes of this machine, or tasks of Ray (the extra ray; docs/install.md)."""
    workers: int | None = None
    """Number of workers; by default one, or with Ray one per GPU of the cluster."""
    tap: tuple[str, ...] = ()
    """Layers to read: final@cls, -1:query@all, "res4|avg(8,3,0)"; f3rm layers lists a model's."""
    backbone: str | None = None
    """The model that taps read: adapter:model@weights; f3rm models lists adapters."""
    spec: Path | None = None
    """YAML with backbone, taps and preparation, or a configuration of VISSL."""
    out: Path | None = None
    """With taps: folder for the results."""
    split: str = "all"
    """With taps: name of this list of items, e.g. train."""
    labelled: bool = False
    """With taps: the folders in DATA are classes, whose numbers are kept as labels."""
    shard: str | None = None
    """With taps: items per file: a number, batch, all, or auto (files of about 256 MB)."""
    export: Export = "none"
    """With taps: also write one array per tap, a file per item, or VISSL's files."""
    save_spec: Path | None = None
    """With taps: write the specification as YAML, for --spec."""

    def run(self) -> None:
        """Extracts and prints where the features are; with --dry-run prints the costs.

        Raises:
            F3rmError: If it cannot be done; the message says what to do.
        """
        if not is_first_rank():
            logging.getLogger("f3rm").setLevel(logging.WARNING)
        wanted = self._by_taps() if self.tap or self.spec or self.backbone else self._by_type()
        for job in wanted.jobs:
            if self.dry_run:
                say(str(preview_job(job)))
                continue
            store = run_with(job, engine=self.engine, workers=self.workers)
            if is_first_rank():  # every rank extracts, one reports and exports
                self._report(job, store, wanted)

    def _by_type(self) -> "_Wanted":
        jobs = jobs_for_dataset(
            self.data,
            self.feature_type,
            cache_dir=self.cache_dir,
            weights=self.weights,
            background=self.background,
            codec=self.codec or "fp16",
            precision=self.precision,
            shard_size=self.shard_size,
            **self._options(),
        )
        return _Wanted(jobs)

    def _by_taps(self) -> "_Wanted":
        chosen = choose_spec(self.spec, self.backbone, self.tap, self.precision, self.codec)
        if self.out is None:
            raise CacheError("--out must be given with --tap, --spec or --backbone. Name a folder.")
        if self.save_spec is not None:
            chosen.spec.save(self.save_spec)
        items = list_items(self.data, labelled=self.labelled)
        shard = chosen.shard or "auto" if self.shard is None else _shard(self.shard)
        folder = split_folder(self.out, self.split)
        job = make_job(items, chosen.spec, folder, shard=shard, **self._options())
        return _Wanted([job], self.out, items, chosen.layers)

    def _options(self) -> dict[str, Any]:
        """Returns the options that every job takes as they are."""
        return {
            "device": self.device,
            "force": self.force,
            "batch_size": self.batch_size,
            "on_error": self.on_error,
        }

    def _report(self, job: Job, store: FeatureStore, wanted: "_Wanted") -> None:
        if wanted.out is None or wanted.items is None:
            say(_summary(job.spec.name, store))
            return
        write_split(wanted.out, self.split, wanted.items)
        table = TapStore(store, wanted.items)
        for tap in table.taps:
            say(_tap_summary(table, tap))
        for name, reason in table.failed.items():
            say(f"{name} has no features: {reason}")
        self._export(table, wanted.out, wanted.layers)

    def _export(self, store: TapStore, out: Path, layers: Mapping[str, str] | None) -> None:
        if self.export == "vissl":
            files = export_vissl(store, out / "vissl", layers=layers)
            say(f"{len(files)} files of features for VISSL in {out / 'vissl'}")
            return
        for tap in store.taps if self.export != "none" else ():
            path = out / f"{store.split}.{slug_of(tap)}"
            if self.export == "array":
                path = path.with_name(f"{path.name}.npy")
                say(f"{tap}: {export_array(store, path, tap)} in {path}")
            else:
                say(f"{tap}: {export_per_item(store, path, tap)} files in {path}")


@dataclass(frozen=True)
class _Wanted:
    """Jobs; of taps also the folder of the results, the items, and VISSL's names of the taps."""

    jobs: list[Job]
    out: Path | None = None
    items: ItemList | None = None
    layers: Mapping[str, str] | None = None


def _summary(name: str, store: FeatureStore) -> str:
    maps = sorted({store.grid_size(index) for index in range(len(store))})
    shapes = ", ".join(f"{rows} x {cols}" for rows, cols in maps)
    return (
        f"{name}: {len(store)} images, maps of {shapes} cells with {store.channels} channels, "
        f"{store.num_bytes} bytes ({store.num_bytes / 1e6:.1f} MB) in {store.folder}"
    )


def _tap_summary(store: TapStore, tap: str) -> str:
    shapes = sorted({store.shape(int(index), tap) for index in store.indices})
    words = ", ".join(str(shape) for shape in shapes[:3]) + (" ..." if len(shapes) > 3 else "")
    return f"{tap}: {len(store)} items of shape {words}, {store.dtype}, in {store.folder}"


def _shard(text: str) -> Shard:
    if text.isdecimal():
        return int(text)
    if text in ("auto", "batch", "all"):
        return text
    raise F3rmError(f"--shard must be auto, batch, all or a number, got {text!r}.")
