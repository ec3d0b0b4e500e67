"""One worker's work: load the model, take chunks as long as there are any, help to finish."""

import logging
import platform
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import PIL
import torch

import f3rm
from f3rm.backbones.base import Backbone
from f3rm.backbones.weights import weights_identity
from f3rm.extract.codec_fit import settle_codec
from f3rm.extract.dense import dense_backbone
from f3rm.extract.encoder import Encoder
from f3rm.extract.job import Job
from f3rm.extract.locks.folders import feature_lock
from f3rm.extract.membership import POLL_SECONDS, Part, Task, take_part
from f3rm.extract.pipeline import make_chunks
from f3rm.extract.plan import ChunkPlan, Names, plan_chunks
from f3rm.extract.preflight import Countdown, estimate
from f3rm.store.codecs import CodecRecord, combine_errors
from f3rm.store.device import best_precision, is_first_rank
from f3rm.store.geometry import Fit, placed
from f3rm.store.images import ImageInfo, inspect_images
from f3rm.store.items import ImageItem
from f3rm.store.manifest import Manifest, codec_hash
from f3rm.store.progress import progress_bar
from f3rm.store.records import ChunkRecord, FailedRecord, ImageRecord
from f3rm.store.spec import ALGORITHM_VERSION, FeatureSpec

log = logging.getLogger(__name__)

_AHEAD_BYTES = 1 << 30


@dataclass(frozen=True)
class ModelWorker:
    """A loaded model and what it is to do.

    Attributes:
        job: What was asked for.
        images: The images that can be extracted.
        failed: The others.
        backbone: The model.
        encoder: Runs it.
        identity: What its weights are.
    """

    job: Job
    images: Sequence[ImageInfo]
    failed: Sequence[FailedRecord]
    backbone: Backbone
    encoder: Encoder
    identity: str

    @classmethod
    def inspect(
        cls, items: Sequence[ImageItem], *, progress: bool, failed: dict[str, str] | None
    ) -> list[ImageInfo]:
        """Looks at every item before anything is written; see :func:`inspect_images`."""
        return inspect_images(items, progress=progress, failed=failed)

    @classmethod
    def of(
        cls, job: Job, images: Sequence[ImageInfo], failed: Mapping[str, str], backbone: Backbone
    ) -> "ModelWorker":
        """Puts a worker together."""
        records = tuple(
            FailedRecord.of(item, failed[item.name]) for item in job.items if item.name in failed
        )
        identity = weights_identity(job.spec.backbone)
        encoder = cls.make_encoder(job, images, backbone)
        return cls(job, images, records, encoder.backbone, encoder, identity)

    @classmethod
    def make_encoder(cls, job: Job, images: Sequence[ImageInfo], backbone: Backbone) -> Encoder:
        """Returns what computes rows of images.

        Raises:
            TapError: If the model does not have the tap.
        """
        del images
        return Encoder(dense_backbone(backbone, job.spec), job.spec, job.batch_size)

    @property
    def specs(self) -> dict[str, FeatureSpec]:
        """The specifications that will do by key, the one that suits the device first."""
        preferred = best_precision(self.backbone.device)
        return {spec.key(self.identity): spec for spec in self.job.spec.settled(preferred)}

    def settled(self, key: str) -> "ModelWorker":
        """Returns the worker that makes the specification with this key."""
        self.encoder.spec = spec = self.specs[key]
        if spec != self.job.spec:
            log.info("%s features are computed in %s.", spec.name, spec.precision)
        return replace(self, job=replace(self.job, spec=spec))

    def plan(self, older: Names) -> list[ChunkPlan]:
        """Cuts the images into chunks, given how an older cache was cut."""
        return plan_chunks(
            self.images,
            short_side=self.job.spec.short_side,
            patch=self.backbone.patch_size,
            shard_size=self.job.shard_size,
            fit=self.job.spec.fit,
            older=older,
        )

    def task(self, is_done: Callable[[], bool]) -> Task:
        """Describes the cache to be made."""
        job = self.job
        channels = self.encoder.stored_channels
        return Task(job.folder, tuple(self.specs), job.force, channels, self.plan, is_done)

    def run(self, is_done: Callable[[], bool]) -> None:
        """Works until the cache is there.

        Args:
            is_done: Tells whether it is, perhaps made by others.

        Raises:
            ImageError: If an image cannot be read, or the backbone gives NaN or infinity for it.
            DeviceError: If not even one image fits into memory.
            CacheError: If the file system refuses.
        """
        while True:
            with take_part(self.task(is_done)) as part:
                if part is None:
                    return
                self.settled(part.writer.run.key).make(part)

    def make(self, part: Part) -> None:
        """Makes chunks and helps to finish; leaves early if others have finished meanwhile.

        Args:
            part: This worker's part in the run of its specification.

        Raises:
            F3rmError: As :meth:`run` raises it.
        """
        codec = settle_codec(part.writer, part.plans, self.encoder)
        if codec is None:
            return
        hashed = codec_hash(codec)
        part = replace(part, plans=[replace(plan, codec=hashed) for plan in part.plans])
        records = self._chunks(part)
        if records is not None:
            self._commit(part, codec, records)

    def _commit(self, part: Part, codec: CodecRecord, records: Mapping[str, ChunkRecord]) -> None:
        with feature_lock(self.job.folder):
            if part.writer.is_over():
                return
            chunks = [records[plan.file] for plan in part.plans]
            errors = [chunk.cosine_error for chunk in chunks if chunk.cosine_error is not None]
            codec = replace(codec, cosine_error=combine_errors(errors) if errors else None)
            part.writer.commit(self._manifest(part.plans, chunks, codec))

    def _chunks(self, part: Part) -> dict[str, ChunkRecord] | None:
        """Makes or awaits every chunk; None if others have finished the run."""
        share = Share(part, self.encoder, ahead=self._ahead())
        costs = estimate(part.plans, share.missing(), self.encoder, self.job.folder)
        costs.check_room()
        log.info("%s", costs)
        countdown = Countdown(costs.new_images)
        with progress_bar(show=self.job.progress and is_first_rank()) as bar:
            task = bar.add_task(self.job.spec.name, total=len(self.images))

            def report(num_images: int) -> None:
                bar.advance(task, num_images)
                countdown.advance(num_images)

            while len(share.records) < len(part.plans):
                before = len(share.records)
                share.make(report)
                bar.update(task, completed=share.num_images)
                if len(share.records) == before:
                    if part.writer.is_over():
                        return None
                    time.sleep(POLL_SECONDS)
        return share.records

    def input_bytes(self, info: ImageInfo) -> int:
        """Returns how much memory an item takes while it waits for the network."""
        return 3 * info.size[0] * info.size[1]

    def image_records(self, plans: Sequence[ChunkPlan]) -> tuple[ImageRecord, ...]:
        """Returns where images are, in the order of the dataset."""
        return image_records(self.images, plans, self.job.spec.fit)

    def provenance(self, plans: Sequence[ChunkPlan]) -> dict[str, str]:
        """Returns what the manifest says about the model and how it was read."""
        del plans
        return dict(self.backbone.provenance())

    def _ahead(self) -> int:
        """Returns how many decoded images may wait: two batches, but no more than 1 GB."""
        largest = max(self.input_bytes(info) for info in self.images)
        wanted = 2 * max(self.encoder.batch_size(plan.network_size) for plan in self.plan(()))
        return max(2, min(max(8, wanted), _AHEAD_BYTES // largest))

    def _manifest(
        self, plans: Sequence[ChunkPlan], chunks: Sequence[ChunkRecord], codec: CodecRecord
    ) -> Manifest:
        return Manifest(
            spec=self.job.spec,
            weights_identity=self.identity,
            algorithm=ALGORITHM_VERSION,
            key=self.job.spec.key(self.identity),
            channels=self.encoder.channels,
            has_text=self.backbone.has_text,
            provenance=self.provenance(plans),
            versions=versions(),
            chunks=tuple(chunks),
            images=self.image_records(plans),
            failed=tuple(self.failed),
            codec=codec,
        )


class Share:
    """The chunks of a run as one worker meets them: done, claimed by others, or its own.

    Attributes:
        records: The finished ones by file.
        num_images: How many images these have.
    """

    def __init__(self, part: Part, encoder: Encoder, *, ahead: int) -> None:
        """Starts with nothing; ``ahead`` decoded images may wait."""
        self.records: dict[str, ChunkRecord] = {}
        self.num_images = 0
        self._writer = part.writer
        self._plans = part.plans
        self._encoder = encoder
        self._ahead = ahead
        self._said = False

    def missing(self) -> list[ChunkPlan]:
        """Returns the chunks that neither this run nor an earlier one has made."""
        return [plan for plan in self._plans if not self._writer.is_at_hand(plan)]

    def make(self, report: Callable[[int], object]) -> None:
        """Goes through all chunks once: notes what is done, makes what nobody else does.

        Args:
            report: Called after every batch.

        Raises:
            ImageError: If an image cannot be read, or the backbone gives NaN or infinity for it.
            DeviceError: If not even one image fits into memory.
            CacheError: If the file system refuses.
        """
        encoder, writer = self._encoder, self._writer
        wide: list[ChunkPlan] = []
        options = {"ahead": self._ahead, "report": report}
        narrow = make_chunks(self._mine(), encoder, writer, dtype=encoder.stored_dtype, **options)
        for made in narrow:
            if made.record is None:
                wide.append(made.plan)
            else:
                self._add(made.plan, made.record)
        if wide and not self._said:
            self._said = True
            log.warning("Some %s features exceed float16; stored as float32.", encoder.spec.name)
        options = {"ahead": self._ahead, "report": lambda _: None}
        for made in make_chunks(wide, encoder, writer, dtype="float32", **options):
            if made.record is not None:
                self._add(made.plan, made.record)

    def _mine(self) -> Iterator[ChunkPlan]:
        for plan in self._plans:
            if plan.file in self.records:
                continue
            record = self._writer.find(plan)
            if record is None and self._writer.claim(plan):
                record = self._writer.find(plan) or self._writer.adopt(plan)
                if record is None:
                    yield plan
            if record is not None:
                self._add(plan, record)

    def _add(self, plan: ChunkPlan, record: ChunkRecord) -> None:
        self.records[plan.file] = record
        self.num_images += len(plan.images)


def image_records(
    images: Sequence[ImageInfo], plans: Sequence[ChunkPlan], fit: Fit = "stretch"
) -> tuple[ImageRecord, ...]:
    """Returns the manifest's records in the order of the dataset."""
    places = {
        info.item.name: (chunk, row, plan)
        for chunk, plan in enumerate(plans)
        for row, info in enumerate(plan.images)
    }
    records: list[ImageRecord] = []
    for info in images:
        chunk, row, plan = places[info.item.name]
        affine, valid = placed(info.size, plan.grid, fit)
        records.append(
            ImageRecord(
                info.item.name,
                info.bytes,
                info.mtime_ns,
                info.content,
                info.size,
                chunk,
                row,
                affine,
                valid,
            )
        )
    return tuple(records)


def versions() -> dict[str, str]:
    """Returns the versions of the software that decides feature values."""
    return {
        "f3rm": f3rm.__version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "pillow": PIL.__version__,
    }
