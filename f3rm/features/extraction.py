"""The whole run from images to a finished cache: preflight, lock, chunks, commit.

Nothing is written before every image, the device and the folder have been checked; nothing that a
user has is replaced before what replaces it is complete.
"""

import logging
import platform
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import PIL
import torch

import f3rm
from f3rm._types import CacheError, DatasetError
from f3rm.backbones.base import Backbone
from f3rm.backbones.registry import load_backbone, weights_identity
from f3rm.features.cache import feature_folder, find_cache
from f3rm.features.device import resolve_device
from f3rm.features.encode import ChunkEncoder, HalfOverflowError
from f3rm.features.folders import (
    building_folder,
    check_writable,
    feature_lock,
    finish_swap,
    swap_in,
)
from f3rm.features.geometry import PixelAffine, ValidRect
from f3rm.features.images import ImageInfo, inspect_images
from f3rm.features.items import ImageItem
from f3rm.features.manifest import MANIFEST, Manifest
from f3rm.features.plan import ChunkPlan, plan_chunks
from f3rm.features.progress import progress_bar
from f3rm.features.records import ChunkRecord, ImageRecord
from f3rm.features.spec import ALGORITHM_VERSION, FeatureSpec
from f3rm.features.store import FeatureStore
from f3rm.features.writer import CacheWriter

__all__ = ["LoadBackbone", "extract_features", "feature_folder", "find_cache", "resolve_device"]

log = logging.getLogger(__name__)

LoadBackbone = Callable[..., Backbone]
"""Called as ``load(ref, device=device, towers=("image",))``."""


def extract_features(  # noqa: PLR0913 - one call with every choice, by keyword
    items: Sequence[ImageItem],
    spec: FeatureSpec,
    *,
    folder: Path,
    device: str = "auto",
    shard_size: int = 64,
    batch_size: int | None = None,
    force: bool = False,
    progress: bool = True,
    load: LoadBackbone = load_backbone,
) -> FeatureStore:
    """Makes sure that a valid cache exists and opens it; extracts only what is missing.

    Of several processes that ask for the same cache, one extracts and the others wait and use it.
    An interrupted run is taken up by the next one.

    Args:
        items: The images.
        spec: What to extract.
        folder: Where the cache is or will be.
        device: ``auto``, ``cpu``, ``cuda`` or ``cuda:N``.
        shard_size: Images per chunk file.
        batch_size: Images per network call; None chooses by image size.
        force: Whether to extract anew even if the cache is valid.
        progress: Whether to show progress bars.
        load: Loads the backbone, at most once and only if it is needed.

    Raises:
        DatasetError: If there is no image, or a name occurs twice.
        ImageError: If an image is missing, damaged or unsuitable; nothing has been written then.
        DeviceError: If the device does not exist or its memory is too small.
        BackboneUnavailableError: If the model cannot be loaded.
        CacheError: If the cache cannot be written.
    """
    folder = folder.expanduser().resolve()
    _check_request(items, shard_size=shard_size, batch_size=batch_size)
    if not force:
        store = _valid_cache(items, spec, folder)
        if store is not None:
            return store
    target = resolve_device(device)
    check_writable(folder)
    images = inspect_images(items, progress=progress)
    job = _Job(images, spec, folder, target, shard_size, batch_size, force, progress)
    with feature_lock(folder):
        finish_swap(folder)
        store = None if force else find_cache(items, spec, folder)[0]
        if store is None:
            _build(job, load)
            store = FeatureStore.open(folder)
    log.info("%s features of %d images are in %s.", spec.name, len(store), folder)
    return store


@dataclass(frozen=True)
class _Job:
    images: Sequence[ImageInfo]
    spec: FeatureSpec
    folder: Path
    device: torch.device
    shard_size: int
    batch_size: int | None
    force: bool
    progress: bool


def _check_request(items: Sequence[ImageItem], *, shard_size: int, batch_size: int | None) -> None:
    names = [item.name for item in items]
    if not names or len(set(names)) != len(names):
        msg = (
            f"extract_features: items must be at least one image, each once, got {len(names)}. "
            "Check the dataset."
        )
        raise DatasetError(msg)
    for argument, value in (("shard_size", shard_size), ("batch_size", batch_size)):
        if value is not None and value < 1:
            msg = f"extract_features: {argument} must be at least 1, got {value}. Choose e.g. 64."
            raise CacheError(msg)


def _valid_cache(
    items: Sequence[ImageItem], spec: FeatureSpec, folder: Path
) -> FeatureStore | None:
    store, reason = find_cache(items, spec, folder)
    if store is not None:
        log.info("Using the %s features in %s.", spec.name, folder)
        return store
    level = logging.WARNING if (folder / MANIFEST).exists() else logging.INFO
    log.log(level, "Extracting %s features: %s.", spec.name, reason.rstrip("."))
    return None


def _build(job: _Job, load: LoadBackbone) -> None:
    """Extracts into the building folder, commits, and swaps it in; the lock is held."""
    backbone = load(job.spec.backbone, device=job.device, towers=("image",))
    plans = plan_chunks(
        job.images,
        short_side=job.spec.short_side,
        patch=backbone.patch_size,
        shard_size=job.shard_size,
    )
    identity = weights_identity(job.spec.backbone)
    key = job.spec.key(identity)
    building = building_folder(job.folder)
    previous = job.folder if building != job.folder else None
    writer = CacheWriter(building, key, fresh=job.force, previous=previous)
    records = _chunks(job, plans, backbone, writer)
    manifest = Manifest(
        spec=job.spec,
        weights_identity=identity,
        algorithm=ALGORITHM_VERSION,
        key=key,
        channels=backbone.channels,
        has_text=backbone.has_text,
        provenance=dict(backbone.provenance()),
        versions=_versions(),
        chunks=tuple(records),
        images=_image_records(job.images, plans),
    )
    writer.commit(manifest)
    swap_in(building, job.folder)


def _chunks(
    job: _Job, plans: Sequence[ChunkPlan], backbone: Backbone, writer: CacheWriter
) -> list[ChunkRecord]:
    """Finds or makes every chunk, in order."""
    encoder = ChunkEncoder(backbone, job.spec, job.batch_size)
    records: list[ChunkRecord] = []
    warned = False
    with progress_bar(show=job.progress) as bar:
        task = bar.add_task(job.spec.name, total=len(job.images))
        done = 0
        for plan in plans:
            record = writer.find(plan, backbone.channels)
            if record is None:
                record = _make_chunk(
                    plan, job.spec, encoder, writer, lambda n: bar.advance(task, n)
                )
                if record.dtype != job.spec.dtype and not warned:
                    warned = True
                    log.warning(
                        "Some %s features exceed float16; stored as float32.", job.spec.name
                    )
            records.append(record)
            done += len(plan.images)
            bar.update(task, completed=done)
    return records


def _make_chunk(
    plan: ChunkPlan,
    spec: FeatureSpec,
    encoder: ChunkEncoder,
    writer: CacheWriter,
    report: Callable[[int], object],
) -> ChunkRecord:
    """Writes one chunk and notes it; as float32 if float16 overflows in this chunk."""
    channels = encoder.channels
    try:
        parts = encoder.encode(plan, spec.dtype, report)
        record = writer.write(plan, parts, channels=channels, dtype=spec.dtype)
    except HalfOverflowError:
        parts = encoder.encode(plan, "float32", lambda _: None)
        record = writer.write(plan, parts, channels=channels, dtype="float32")
    record = replace(record, codec_error=encoder.codec_error)
    writer.note(plan, record)
    return record


def _image_records(
    images: Sequence[ImageInfo], plans: Sequence[ChunkPlan]
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
        affine, valid = PixelAffine.between(info.size, plan.grid), ValidRect.full(plan.grid)
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


def _versions() -> dict[str, str]:
    return {
        "f3rm": f3rm.__version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "pillow": PIL.__version__,
    }
