"""The engine's worker for taps of any shape: images and videos in, several values per item out."""

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import cast

import torch
from torch import Tensor

from f3rm.backbones.base import Backbone
from f3rm.extract.encoder import Encoder, autocast
from f3rm.extract.job import Job
from f3rm.extract.plan import ChunkPlan, Names, cut_group
from f3rm.extract.taps.layout import Layout, Shapes, common_channels
from f3rm.extract.taps.runner import InputKind, TapRunner
from f3rm.extract.taps.spec import ExtractionSpec
from f3rm.extract.taps.video import inspect_video, is_video, read_frames
from f3rm.extract.worker import ModelWorker, image_records
from f3rm.store.geometry import PixelAffine, Size, ValidRect
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
"""Where the manifest's provenance says what shapes the chunks have."""

_ANY_KIND = InputKind((1, 1), (1, 1))

_ITEM_BYTES = {"float16": 2, "float32": 4}


@dataclass(frozen=True)
class ClipInfo(ImageInfo):
    """What the check of a video found: also how many frames it has."""

    num_frames: int


@dataclass(frozen=True)
class TapJob(Job):
    """A job whose chunk files may be cut by their size.

    Attributes:
        shard_bytes: Largest length of a chunk's data; None cuts by ``shard_size``.
    """

    shard_bytes: int | None = None


@dataclass(frozen=True)
class TapPlan(ChunkPlan):
    """One chunk to be made, and what its inputs have in common."""

    kind: InputKind = _ANY_KIND


class TapEncoder(Encoder):
    """Computes rows that hold every tap of an item.

    Attributes:
        runner: Computes the taps.
    """

    def __init__(self, runner: TapRunner, job: Job, images: Sequence[ImageInfo]) -> None:
        """Looks at all inputs, so that every chunk has cells of the same channels."""
        self.runner = runner
        kinds = {kind_of(runner, info) for info in images}
        self._frames = max((kind.frames for kind in kinds), default=1)
        self._layouts = {kind: self._shapes(kind) for kind in kinds}
        channels = common_channels(list(self._layouts.values()))
        super().__init__(runner.backbone, job.spec, job.batch_size, channels=channels)

    def layout(self, kind: InputKind) -> Layout:
        """Returns where values of inputs of a kind lie in their rows."""
        return Layout(self._layouts[kind], self.channels)

    def batch_size(self, network_size: Size) -> int:
        """Returns how many items go through the network at once; clips count by their frames."""
        return max(1, super().batch_size(network_size) // self._frames)

    def read(self, plan: ChunkPlan, info: ImageInfo) -> Tensor:
        """Decodes an item; see :meth:`f3rm.extract.encoder.Encoder.read`.

        Raises:
            ImageError: If the file is not what it was at the start any more.
        """
        frames = _decode(info, self.runner.spec)
        if self.device.type == "cuda":
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

    def _shapes(self, kind: InputKind) -> Shapes:
        return self.runner.shapes(kind.canvas, kind.frames, is_clip=kind.is_clip)


class TapWorker(ModelWorker):
    """A worker whose specification is an :class:`~f3rm.extract.taps.spec.ExtractionSpec`."""

    encoder: TapEncoder

    @classmethod
    def inspect(
        cls, items: Sequence[ImageItem], *, progress: bool, failed: dict[str, str] | None
    ) -> list[ImageInfo]:
        """Looks at every image and video before anything is written.

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
        """Returns what computes rows of items.

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
        """Returns how much memory an item takes while it waits for the network."""
        kind = kind_of(self.encoder.runner, info)
        prepared = 12 * kind.frames * kind.canvas[0] * kind.canvas[1]
        return max(prepared, kind.frames * super().input_bytes(info))

    def image_records(self, plans: Sequence[ChunkPlan]) -> tuple[ImageRecord, ...]:
        """Returns where items are; a map's geometry is that of the preparation."""
        places = {info.item.name: plan for plan in plans for info in plan.images}
        records = image_records(self.images, plans)
        return tuple(self._placed(record, places[record.name]) for record in records)

    def provenance(self, plans: Sequence[ChunkPlan]) -> dict[str, str]:
        """Returns what the manifest says about the model, and the shapes of what is stored."""
        kinds = list(dict.fromkeys(_kind(plan) for plan in plans))
        shapes = [{**asdict(kind), SHAPES: self.encoder.layout(kind).shapes} for kind in kinds]
        numbers = [kinds.index(_kind(plan)) for plan in plans]
        text = json.dumps({"kinds": shapes, "chunks": numbers}, separators=(",", ":"))
        return {**super().provenance(plans), SHAPES: text}

    def _placed(self, record: ImageRecord, plan: ChunkPlan) -> ImageRecord:
        """Puts the geometry of the preparation in, where a map as large as the input is stored."""
        runner, patch = self.encoder.runner, self.backbone.patch_size
        grid = (plan.network_size[0] // patch, plan.network_size[1] // patch)
        if self.encoder.layout(_kind(plan)).map_shape is None or grid != plan.grid:
            return record
        place = runner.place(record.size)
        affine: PixelAffine = place.affine(record.size, patch)
        valid: ValidRect = place.valid(patch)
        return replace(record, affine=affine, valid=valid) if all(valid.cells()) else record


def kind_of(runner: TapRunner, info: ImageInfo) -> InputKind:
    """Returns what an inspected file becomes."""
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
