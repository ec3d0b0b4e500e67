"""``f3rm extract``: features of images and videos, computed once and kept on disk."""

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from f3rm.errors import CacheError
from f3rm.extract.engines import Engine, run_with
from f3rm.extract.extraction import preview_job
from f3rm.extract.job import Job, OnError
from f3rm.extract.standalone import jobs_for_dataset
from f3rm.scripts.command import Command, say
from f3rm.scripts.taps import Export, choose_spec, extract_taps
from f3rm.store.device import is_first_rank
from f3rm.store.reader import FeatureStore
from f3rm.store.spec import Background, Precision


@dataclass
class Extract(Command):
    """Compute dense features of a dataset's images and keep them on disk, ready for ns-train f3rm.

    With --tap or --spec: any layers of any model, for images and videos in a folder, a list or a
    pattern; results go to --out.

    What is there already and still fits is used as it is; an interrupted run goes on where it
    stopped; started several times, the processes share the work.
    """

    when_interrupted: ClassVar[str] = (
        "Stopped. The finished chunks are kept: run the same command again to go on from there."
    )

    data: Path
    """Dataset folder with transforms.json in it (made by ns-process-data, for example); with --tap
    or --spec also any folder, a text file of paths, a pattern in quotes, an image or a video."""
    feature_type: str = "CLIP"
    """CLIP (for texts), DINO, DINOV2, ROBOPOINTproj, ... (f3rm models), or several: DINO+CLIP."""
    shard_size: int = 64
    """Images per chunk file."""
    device: str = "auto"
    """auto takes the GPU if there is one; else cpu, cuda, cuda:0, ..."""
    force: bool = False
    """Compute everything anew; valid old features stay until the new ones are complete."""
    dry_run: bool = False
    """Only say what would be done: images, chunks, bytes, free space, expected time."""
    cache_dir: Path | None = None
    """Folder for the features, instead of DATA/features."""
    weights: tuple[str, ...] = ()
    """Weights other than the default, by type: CLIP=PATH DINO=PATH."""
    background: Background = "black"
    """Behind images with alpha; match --pipeline.model.background-color (its default is black)."""
    batch_size: int | None = None
    """Images per network call; chosen by image size if not given, halved where memory is short."""
    codec: str = "fp16"
    """How features are stored: fp16, fp32, int8, or pca and a number of components: pca128."""
    precision: Precision = "auto"
    """What the network computes in; auto takes what is there already, else bfloat16 on a GPU that
    has it, float16 on an older one, float32 on the CPU. Half precision changes values slightly."""
    on_error: OnError = "raise"
    """Whether an image that cannot be extracted ends the run, or is recorded and left out."""
    engine: Engine = "local"
    """Who starts several workers: this process, or Ray (the extra ray; docs/install.md)."""
    workers: int | None = None
    """How many; one if not given, or with Ray one per GPU of the cluster."""
    tap: tuple[str, ...] = ()
    """Layers to read: final@cls, -1:query@all, "res4|avg(8,3,0)"; f3rm layers lists a model's."""
    backbone: str | None = None
    """The model that taps are read from: adapter:model@weights; f3rm models lists adapters."""
    spec: Path | None = None
    """YAML with backbone, taps and preparation, or a configuration of VISSL."""
    out: Path | None = None
    """With taps: folder for the results."""
    split: str = "all"
    """With taps: name of this list of items, e.g. train."""
    labelled: bool = False
    """With taps: the folders in DATA are classes, whose numbers are kept as labels."""
    shard: str | None = None
    """With taps: items per file: a number, batch, all, or auto (files of some 256 MB)."""
    export: Export = "none"
    """With taps: also write one array per tap, a file per item, or VISSL's files."""
    save_spec: Path | None = None
    """With taps: write what was asked for as YAML, for --spec."""

    def run(self) -> None:
        """Extracts, then prints where the features are; with --dry-run prints the costs.

        Raises:
            F3rmError: If it cannot be done; the message says what to do.
        """
        if not is_first_rank():
            logging.getLogger("f3rm").setLevel(logging.WARNING)
        if self.tap or self.spec or self.backbone:
            for line in self._extract_taps():
                say(line)
            return
        for job in self._jobs():
            if self.dry_run:
                print(preview_job(job))
                continue
            store = run_with(job, engine=self.engine, workers=self.workers)
            if is_first_rank():
                say(_summary(job.spec.name, store))

    def _extract_taps(self) -> list[str]:
        chosen = choose_spec(self.spec, self.backbone, self.tap, self.precision)
        if self.out is None:
            msg = "f3rm extract: --out must be given with taps, got none. Name a folder."
            raise CacheError(msg)
        if self.save_spec is not None:
            chosen.spec.save(self.save_spec)
        return extract_taps(
            self.data,
            chosen,
            self.out,
            split=self.split,
            labelled=self.labelled,
            shard=self.shard,
            export=self.export,
            dry_run=self.dry_run,
            options={
                "batch_size": self.batch_size,
                "device": self.device,
                "overwrite": self.force,
                "on_error": self.on_error,
                "engine": self.engine,
                "workers": self.workers,
            },
        )

    def _jobs(self) -> list[Job]:
        return jobs_for_dataset(
            self.data,
            self.feature_type,
            cache_dir=self.cache_dir,
            weights=self.weights,
            background=self.background,
            codec=self.codec,
            precision=self.precision,
            on_error=self.on_error,
            shard_size=self.shard_size,
            device=self.device,
            force=self.force,
            batch_size=self.batch_size,
        )


def _summary(name: str, store: FeatureStore) -> str:
    maps = sorted({store.grid_size(index) for index in range(len(store))})
    shapes = ", ".join(f"{rows} x {cols}" for rows, cols in maps)
    return (
        f"{name}: {len(store)} images, maps of {shapes} cells with {store.channels} channels, "
        f"{store.num_bytes} bytes ({store.num_bytes / 1e6:.1f} MB) in {store.folder}"
    )
