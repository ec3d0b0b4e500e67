"""The worker that extracts taps of any shape from images and videos, chunk by chunk.

Chunks, resuming, sharing and codecs are those of :class:`f3rm.extract.worker.ModelWorker`. Here are
the differences: videos among the items, several taps per row, a preparation instead of one size.
"""

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import cast

import torch
from torch import Tensor

from f3rm.backbones.base import Backbone
from f3rm.extract.encoder import Encoder, autocast
from f3rm.extract.job import Job
from f3rm.extract.plan import ChunkPlan, Names, cut_group
from f3rm.extract.taps.layout import Layout, common_channels
from f3rm.extract.taps.runner import InputKind, TapRunner
from f3rm.extract.taps.spec import ExtractionSpec
from f3rm.extract.taps.video import inspect_video, is_video, read_frames
from f3rm.extract.worker import ModelWorker, image_records
from f3rm.store.geometry import Size
from f3rm.store.images import (
    ImageFailedError,
    ImageInfo,
    content_hash,
    inspect_images,
    prefetched,
    read_inspected,
)
from f3rm.store.items import ImageItem
from f3rm.store.progress import track
from f3rm.store.records import ImageRecord

SHAPES = "shapes"
"""Key of the chunks' shapes in the manifest's provenance."""

_ITEM_BYTES = {"float16": 2, "float32": 4}


@dataclass(frozen=True)
class ClipInfo(ImageInfo):
    """Result of checking a video: that of an image, and the number of frames."""

    num_frames: int


@dataclass(frozen=True)
class TapJob(Job):
    """A job whose chunk files may be limited in bytes.

    Attributes:
        shard_bytes: Largest number of bytes of a chunk's data; None for ``shard_size`` alone.
    """

    shard_bytes: int | None = None


@dataclass(frozen=True)
class TapPlan(ChunkPlan):
    """A planned chunk, and the kind of its inputs."""

    kind: InputKind = field(kw_only=True)


class TapEncoder(Encoder):
    """Computes rows that hold every tap of an item.

    Attributes:
        runner: Computes the taps.
    """

    def __init__(self, runner: TapRunner, job: Job, images: Sequence[ImageInfo]) -> None:
        """Looks at all inputs first, since every chunk must have the same channels per cell."""
        self.runner = runner
        kinds = {kind_of(runner, info) for info in images}
        self._frames = max((kind.frames for kind in kinds), default=1)
        self._shapes = {kind: runner.shapes(kind) for kind in kinds}
        channels = common_channels(list(self._shapes.values()))
        super().__init__(runner.backbone, job.spec, job.batch_size, channels=channels)

    def layout(self, kind: InputKind) -> Layout:
        """Returns the layout of the rows of inputs of a kind."""
        return Layout(self._shapes[kind], self.channels)

    def batch_size(self, network_size: Size) -> int:
        """Returns the items per network call; clips count by their frames."""
        return max(1, super().batch_size(network_size) // self._frames)

    def read(self, plan: ChunkPlan, info: ImageInfo) -> Tensor:
        """Decodes an item; see :meth:`f3rm.extract.encoder.Encoder.read`.

        Raises:
            ImageError: If the file has changed since the start.
        """
        frames = _decode(info, self.runner.spec)
        if self.device.type == "cuda":  # prepared there, see _run
            return frames.pin_memory()
        return self.runner.prepare(frames, _kind(plan))

    def _run(self, inputs: Sequence[Tensor], plan: ChunkPlan) -> Tensor:
        kind = _kind(plan)
        ready = [
            self.runner.prepare(item.to(self.device, non_blocking=True), kind)
            if item.dtype == torch.uint8
            else item
            for item in inputs
        ]
        with autocast(self.device, self.spec.precision):
            values = self.runner.run(torch.stack(ready), kind)
        return self.layout(kind).pack(values)


class TapWorker(ModelWorker):
    """A worker whose specification is an :class:`~f3rm.extract.taps.spec.ExtractionSpec`."""

    encoder: TapEncoder

    @classmethod
    def inspect(
        cls, items: Sequence[ImageItem], *, progress: bool, failed: dict[str, str] | None
    ) -> list[ImageInfo]:
        """Checks every image and video before anything is written.

        Raises:
            ImageError: If one is missing or damaged and ``failed`` is not given.
        """
        videos = [item for item in items if is_video(item.path)]
        images = [item for item in items if not is_video(item.path)]
        found = inspect_images(images, progress=progress, failed=failed) if images else []
        clips = track(
            prefetched(_inspect_clip, videos),
            total=len(videos),
            label="checking videos",
            show=progress and bool(videos),
            unit="videos",
        )
        for clip in clips:
            if isinstance(clip, ImageInfo):
                found.append(clip)
            elif failed is None:
                raise clip
            else:
                failed[clip.name] = clip.reason
        order = {item.name: index for index, item in enumerate(items)}
        return sorted(found, key=lambda info: order[info.item.name])

    @classmethod
    def make_encoder(cls, job: Job, images: Sequence[ImageInfo], backbone: Backbone) -> Encoder:
        """Returns the encoder of the job's taps.

        Raises:
            TapError: If the model does not have a tap.
        """
        runner = TapRunner(backbone, ExtractionSpec.of_recorded(job.spec))
        return TapEncoder(runner, job, images)

    def plan(self, older: Names) -> list[ChunkPlan]:
        """Cuts the items into chunks of one kind, given how an older cache was cut."""
        groups: dict[InputKind, list[ImageInfo]] = {}
        for info in self.images:
            groups.setdefault(kind_of(self.encoder.runner, info), []).append(info)
        plans: list[ChunkPlan] = []
        for kind, members in groups.items():
            grid = self.encoder.layout(kind).grid
            for part in cut_group(members, older, self._shard_size(grid)):
                name = f"chunk_{len(plans):04d}.npy"
                plans.append(TapPlan(name, kind.canvas, grid, part, kind=kind))
        return plans

    def _shard_size(self, grid: Size) -> int:
        job = self.job
        if not isinstance(job, TapJob) or job.shard_bytes is None:
            return job.shard_size
        item_bytes = math.prod(grid) * self.encoder.channels * _ITEM_BYTES[job.spec.dtype]
        return max(1, min(job.shard_size, job.shard_bytes // item_bytes))

    def input_bytes(self, info: ImageInfo) -> int:
        """Returns the memory that an item takes while it waits for the network."""
        kind = kind_of(self.encoder.runner, info)
        # Prepared on the CPU: 3 channels of 4 bytes. On a GPU decoded frames wait, of 8 bits.
        prepared = 12 * kind.frames * kind.canvas[0] * kind.canvas[1]
        return max(prepared, kind.frames * super().input_bytes(info))

    def image_records(self, plans: Sequence[ChunkPlan]) -> tuple[ImageRecord, ...]:
        """Returns the items' chunks and rows; a map's geometry is that of the preparation."""
        plan_of = {info.item.name: plan for plan in plans for info in plan.images}
        records = image_records(self.images, plans)
        return tuple(self._placed(record, plan_of[record.name]) for record in records)

    def provenance(self, plans: Sequence[ChunkPlan]) -> dict[str, str]:
        """Returns the model's provenance, and the shapes of the stored values as JSON."""
        kinds = list(dict.fromkeys(_kind(plan) for plan in plans))
        shapes = [{**asdict(kind), SHAPES: self.encoder.layout(kind).shapes} for kind in kinds]
        numbers = [kinds.index(_kind(plan)) for plan in plans]
        text = json.dumps({"kinds": shapes, "chunks": numbers}, separators=(",", ":"))
        return {**super().provenance(plans), SHAPES: text}

    def _placed(self, record: ImageRecord, plan: ChunkPlan) -> ImageRecord:
        """Adds the preparation's geometry if a map that covers the whole input is stored."""
        runner, patch = self.encoder.runner, self.backbone.patch_size
        grid = (plan.network_size[0] // patch, plan.network_size[1] // patch)
        if self.encoder.layout(_kind(plan)).map_shape is None or grid != plan.grid:
            return record
        place = runner.place(record.size)
        affine, valid = place.affine(record.size, patch), place.valid(patch)
        return replace(record, affine=affine, valid=valid) if all(valid.cells()) else record


def kind_of(runner: TapRunner, info: ImageInfo) -> InputKind:
    """Returns the kind of a checked file's network input."""
    if isinstance(info, ClipInfo):
        return runner.kind(info.size, info.num_frames, is_image=False)
    return runner.kind(info.size)


def _kind(plan: ChunkPlan) -> InputKind:
    return cast(TapPlan, plan).kind


def _decode(info: ImageInfo, spec: ExtractionSpec) -> Tensor:
    """Returns the frames (frames, height, width, 3) of an item, as 8-bit RGB."""
    if not isinstance(info, ClipInfo):
        return torch.from_numpy(read_inspected(info, spec.background))[None]
    return read_frames(info.item.path, spec.frames, num_frames=info.num_frames, name=info.item.name)


def _inspect_clip(item: ImageItem) -> ClipInfo | ImageFailedError:
    try:
        found = inspect_video(item.path, item.name)
        status = item.path.stat()
        content = content_hash(item.path)
    except ImageFailedError as error:
        return error
    return ClipInfo(item, status.st_size, status.st_mtime_ns, content, found.size, found.num_frames)
