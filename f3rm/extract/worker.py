"""One worker of an extraction: takes chunks while there are any, and commits the cache."""

import logging
import math
import platform
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import PIL
import torch

import f3rm
from f3rm.backbones.base import Backbone
from f3rm.backbones.weights import weights_identity
from f3rm.extract.codec_fit import load_or_fit_codec
from f3rm.extract.encoder import Encoder
from f3rm.extract.estimate import Countdown, estimate
from f3rm.extract.job import Job
from f3rm.extract.locks.folders import feature_lock
from f3rm.extract.membership import CacheRequest, RunMembership, join_run
from f3rm.extract.pipeline import Report, make_chunks
from f3rm.extract.plan import ChunkPlan, Group, InputKind, Names, plan_chunks
from f3rm.extract.writer import CacheWriter
from f3rm.store.codecs import CodedDtype, combine_errors
from f3rm.store.device import best_precision, is_first_rank
from f3rm.store.geometry import PixelAffine, ValidRect
from f3rm.store.images import ImageInfo
from f3rm.store.manifest import ChunkRecord, CodecRecord, FailedRecord, ImageRecord, Manifest
from f3rm.store.progress import progress_bar
from f3rm.store.spec import ALGORITHM_VERSION, FeatureSpec

log = logging.getLogger(__name__)

_AHEAD_BYTES = 1 << 30
"""Memory for decoded images that wait for the network."""


@dataclass(frozen=True)
class ModelWorker:
    """A loaded model and its job.

    Attributes:
        job: The request.
        images: The images that can be extracted.
        failed: The others.
        backbone: The model, read at the specification's tap.
        encoder: Runs it.
        identity: Identity of its weights, which is part of the cache's key.
    """

    job: Job
    images: Sequence[ImageInfo]
    failed: Sequence[FailedRecord]
    backbone: Backbone
    encoder: Encoder
    identity: str

    @classmethod
    def of(
        cls, job: Job, images: Sequence[ImageInfo], failed: Mapping[str, str], backbone: Backbone
    ) -> "ModelWorker":
        """Builds a worker.

        Args:
            job: The request.
            images: The images that can be extracted.
            failed: Reasons of the others, by name.
            backbone: The loaded model, which has the taps.

        Raises:
            F3rmError: As :class:`~f3rm.extract.runner.TapRunner` raises it.
        """
        records = tuple(
            FailedRecord.of(item, failed[item.name]) for item in job.items if item.name in failed
        )
        identity = weights_identity(job.spec.backbone)
        encoder = Encoder(backbone, job.spec, images, job.batch_size)
        return cls(job, images, records, backbone, encoder, identity)

    @property
    def specs(self) -> dict[str, FeatureSpec]:
        """The specifications that satisfy the job by key, the device's preferred one first."""
        # Several for the precision auto: a worker on another device may have begun the run.
        preferred = best_precision(self.backbone.device)
        return {spec.key(self.identity): spec for spec in self.job.spec.settled(preferred)}

    def with_key(self, key: str) -> "ModelWorker":
        """Returns the worker for the specification with this key; changes the encoder too."""
        self.encoder.spec = spec = self.specs[key]
        if spec != self.job.spec:
            log.info("%s features are computed in %s.", spec.name, spec.precision)
        return replace(self, job=replace(self.job, spec=spec))

    def plan(self, older: Names) -> list[ChunkPlan]:
        """Cuts the images into chunks of one kind, given how an older cache was cut."""
        members: dict[InputKind, list[ImageInfo]] = {}
        for info in self.images:
            members.setdefault(self.encoder.kind(info), []).append(info)
        return plan_chunks((self._group(*group) for group in members.items()), older)

    def _group(self, kind: InputKind, images: Sequence[ImageInfo]) -> Group:
        grid, size = self.encoder.layout(kind).grid, self.job.shard_size
        if self.job.shard_bytes is not None:
            item = np.dtype(self.encoder.stored_dtype).itemsize
            image_bytes = math.prod(grid) * self.encoder.stored_channels * item
            size = max(1, min(size, self.job.shard_bytes // image_bytes))
        return Group(kind, grid, size, images)

    def request(self, is_done: Callable[[], bool]) -> CacheRequest:
        """Describes the wanted cache; ``is_done`` tells whether it exists."""
        job = self.job
        channels = self.encoder.stored_channels
        return CacheRequest(job.folder, tuple(self.specs), job.force, channels, self.plan, is_done)

    def run(self, is_done: Callable[[], bool]) -> None:
        """Works until the cache exists.

        Args:
            is_done: Tells whether it exists, perhaps made by others.

        Raises:
            ImageError: If an image cannot be read, or the backbone gives NaN or infinity for it.
            DeviceError: If not even one image fits into memory.
            CacheError: If the file system refuses.
        """
        while True:
            with join_run(self.request(is_done)) as membership:
                if membership is None:
                    return
                self.with_key(membership.writer.run.key).make(membership)

    def make(self, membership: RunMembership) -> None:
        """Makes chunks and commits the cache, unless another worker has.

        Args:
            membership: Of a run of this worker's specification.

        Raises:
            F3rmError: As :meth:`run` raises it.
        """
        writer = membership.writer
        codec = load_or_fit_codec(writer, membership.plans, self.encoder)
        plans = [replace(plan, codec=codec.hash) for plan in membership.plans]
        records = self._make_chunks(writer, plans)
        # Every worker gets here; the lock lets one commit.
        with feature_lock(self.job.folder):
            if writer.locks.is_member():  # unless another worker has committed
                chunks = [records[plan.file] for plan in plans]
                writer.commit(self._manifest(plans, chunks, codec))

    def _make_chunks(
        self, writer: CacheWriter, plans: Sequence[ChunkPlan]
    ) -> dict[str, ChunkRecord]:
        """Makes every chunk or waits for it; returns their records by file."""
        queue = ChunkQueue(writer, plans, self.encoder, ahead=self._ahead())
        costs = estimate(plans, queue.missing(), self.encoder, self.job.folder)
        costs.check_room()  # before the first chunk, not when the disk is full
        log.info("%s", costs)
        countdown = Countdown(costs.new_images)
        with progress_bar(show=self.job.progress and is_first_rank()) as bar:
            task = bar.add_task(self.job.spec.name, total=len(self.images))

            def report(num_images: int) -> None:
                bar.advance(task, num_images)
                countdown.advance(num_images)

            while len(queue.records) < len(plans):
                before = len(queue.records)
                queue.make(report)
                bar.update(task, completed=queue.num_images)
                if len(queue.records) == before:  # other workers are making the remaining chunks
                    writer.locks.wait()
        return queue.records

    def _ahead(self) -> int:
        """Returns how many decoded images may wait: two batches, but no more than 1 GB."""
        largest = max(self.encoder.input_bytes(info) for info in self.images)
        kinds = {self.encoder.kind(info) for info in self.images}
        wanted = 2 * max(self.encoder.batch_size(kind) for kind in kinds)
        return max(2, min(max(8, wanted), _AHEAD_BYTES // largest))

    def _manifest(
        self, plans: Sequence[ChunkPlan], chunks: Sequence[ChunkRecord], codec: CodecRecord
    ) -> Manifest:
        errors = [chunk.cosine_error for chunk in chunks if chunk.cosine_error is not None]
        return Manifest(
            spec=self.job.spec,
            weights_identity=self.identity,
            algorithm=ALGORITHM_VERSION,
            key=self.job.spec.key(self.identity),
            channels=self.encoder.channels,
            has_text=self.encoder.runner.has_text,
            # As plain texts: adapters may give torch's version, which is of a class of its own.
            provenance={name: str(text) for name, text in self.backbone.provenance().items()},
            versions=versions(),
            chunks=tuple(chunks),
            images=self._image_records(plans),
            failed=tuple(self.failed),
            codec=replace(codec, cosine_error=combine_errors(errors) if errors else None),
        )

    def _image_records(self, plans: Sequence[ChunkPlan]) -> tuple[ImageRecord, ...]:
        """Returns the manifest's records in the order of the dataset."""
        places = {
            info.item.name: (chunk, row)
            for chunk, plan in enumerate(plans)
            for row, info in enumerate(plan.images)
        }
        records: list[ImageRecord] = []
        for info in self.images:
            chunk, row = places[info.item.name]
            affine, valid = self._geometry(info, plans[chunk])
            file = info.bytes, info.mtime_ns, info.content, info.size
            records.append(ImageRecord(info.item.name, *file, chunk, row, affine, valid))
        return tuple(records)

    def _geometry(self, info: ImageInfo, plan: ChunkPlan) -> tuple[PixelAffine, ValidRect]:
        """Returns the preparation's geometry for a map, else that of a stretched image."""
        runner = self.encoder.runner
        if runner.gives_maps and self.encoder.layout(plan.kind).map_shape is not None:
            place = runner.place(info.size)
            valid = place.valid(info.size, runner.cell)
            if all(valid.cells()):
                return place.affine(runner.cell), valid
        return PixelAffine.between(info.size, plan.grid), ValidRect.full(plan.grid)


class ChunkQueue:
    """The chunks of a run from one worker's view: finished, locked by others, or to be made.

    Attributes:
        records: Records of the finished ones, by file.
        num_images: Number of images in these.
    """

    def __init__(
        self, writer: CacheWriter, plans: Sequence[ChunkPlan], encoder: Encoder, *, ahead: int
    ) -> None:
        """Starts with no finished chunk known; ``ahead`` decoded images may wait."""
        self.records: dict[str, ChunkRecord] = {}
        self.num_images = 0
        self._writer = writer
        self._plans = plans
        self._encoder = encoder
        self._ahead = ahead
        self._warned = False

    def missing(self) -> list[ChunkPlan]:
        """Returns the chunks that neither this run nor an earlier one has made."""
        return [plan for plan in self._plans if not self._writer.is_available(plan)]

    def make(self, report: Report) -> None:
        """Goes through all chunks once: records finished ones, computes those that are free.

        Args:
            report: Called after every batch with its number of images.

        Raises:
            ImageError: If an image cannot be read, or the backbone gives NaN or infinity for it.
            DeviceError: If not even one image fits into memory.
            CacheError: If the file system refuses.
        """
        overflowed = self._make(self._unlocked(), self._encoder.stored_dtype, report)
        if overflowed and not self._warned:
            self._warned = True
            name = self._encoder.spec.name
            log.warning("Some %s features exceed float16; stored as float32.", name)
        self._make(overflowed, "float32", lambda _: None)  # their images have been reported

    def _make(
        self, plans: Iterable[ChunkPlan], dtype: CodedDtype, report: Report
    ) -> list[ChunkPlan]:
        """Computes chunks; returns those whose features the type on disk cannot hold."""
        overflowed: list[ChunkPlan] = []
        made = make_chunks(
            plans, self._encoder, self._writer, dtype=dtype, ahead=self._ahead, report=report
        )
        for plan, record in made:
            if record is None:
                overflowed.append(plan)
            else:
                self._add(plan, record)
        return overflowed

    def _unlocked(self) -> Iterator[ChunkPlan]:
        """Yields the chunks that this worker must compute, each locked when it is asked for."""
        for plan in self._plans:
            if plan.file in self.records:
                continue
            record = self._writer.find(plan)
            if record is None and self._writer.locks.take(plan.file):
                # Again: the worker that had locked it may have finished it a moment ago.
                record = self._writer.find(plan) or self._writer.reuse(plan)
                if record is None:
                    yield plan
            if record is not None:
                self._add(plan, record)

    def _add(self, plan: ChunkPlan, record: ChunkRecord) -> None:
        self.records[plan.file] = record
        self.num_images += len(plan.images)
        self._writer.locks.release(plan.file)


def versions() -> dict[str, str]:
    """Returns the versions of the software on which feature values depend."""
    return {
        "f3rm": f3rm.__version__,
        "python": platform.python_version(),
        "torch": str(torch.__version__),
        "pillow": PIL.__version__,
    }
