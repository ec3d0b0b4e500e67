"""Maintenance of finished caches: list, verify, repair, remove."""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from f3rm.backbones.registry import load_backbone
from f3rm.backbones.weights import weights_identity
from f3rm.errors import CacheError, CacheMismatchError, StrPath, as_path
from f3rm.extract.cache import cache_roots
from f3rm.extract.extraction import run_job
from f3rm.extract.job import Job, LoadBackbone, identity_of
from f3rm.extract.locks.file_locks import living
from f3rm.extract.locks.folders import building_folder, feature_lock, older_folders, remove_run
from f3rm.extract.locks.journal import PROGRESS, Journal
from f3rm.store.chunks import map_chunk, verify_chunk
from f3rm.store.codec_files import read_codec
from f3rm.store.images import content_hash
from f3rm.store.items import ImageItem
from f3rm.store.manifest import (
    MANIFEST,
    ChunkRecord,
    ImageRecord,
    Manifest,
    read_manifest,
)
from f3rm.store.reader import FeatureStore
from f3rm.store.spec import ALIASES

Report = Callable[[int], object]
"""Called with the number of chunks that were verified."""

_BLOCK_CELLS = 1 << 16
"""Cells read at once, so that memory does not grow with the chunk."""


@dataclass(frozen=True)
class Damage:
    """A difference between the manifest and the files.

    Attributes:
        what: A file of the cache, or an image of the dataset.
        reason: The difference, as a sentence.
    """

    what: str
    reason: str


@dataclass(frozen=True)
class Unfinished:
    """A cache that is being extracted, or whose extraction was interrupted.

    Attributes:
        done: Number of finished chunks.
        chunks: Number of chunks in the end; None if unknown.
        workers: Number of living workers.
    """

    done: int
    chunks: int | None
    workers: int


def cache_folders(
    data: StrPath, *, cache_dir: StrPath | None = None, feature_type: str | None = None
) -> list[Path]:
    """Lists the folders of a dataset's caches, finished or not.

    Args:
        data: The dataset folder or a ``.json`` file in it.
        cache_dir: Folder for caches, instead of the dataset folder.
        feature_type: Only these types, e.g. ``DINO+CLIP``.

    Raises:
        CacheError: If one of these types has no cache.
    """
    roots = cache_roots(as_path(data), None if cache_dir is None else as_path(cache_dir))
    found = sorted({folder for root in roots for folder in _caches(root)})
    if feature_type is None:
        return found
    text = ALIASES.get(feature_type.strip().upper(), feature_type)
    wanted = [part.strip().lower() for part in text.split("+")]
    names = [folder.name for folder in found]
    for name in wanted:
        if name not in names:
            msg = (
                f"--feature-type: there is no cache of {name!r}, only of "
                f"{', '.join(names) or 'none'}. Run f3rm extract first, or name another."
            )
            raise CacheError(msg)
    return [folder for folder in found if folder.name in wanted]


def unfinished(folder: StrPath) -> Unfinished | None:
    """Returns the progress of an unfinished cache; None if there is none."""
    building = building_folder(as_path(folder))
    if not building.is_dir():
        return None
    journal = Journal(building)
    run = journal.run()
    workers = living(building / PROGRESS)
    done = sum(1 for _ in journal.notes())
    return Unfinished(done, len(run.chunks) if run else None, len(workers))


def verify_cache(
    folder: StrPath, items: Sequence[ImageItem], report: Report = lambda _: None
) -> Iterator[Damage]:
    """Reads a whole cache and all images, and yields their differences from the manifest.

    Args:
        folder: The cache folder.
        items: The images of the dataset.
        report: Called after every chunk.

    Raises:
        CacheError: If there is no usable manifest.
    """
    folder = as_path(folder)
    manifest = read_manifest(folder)
    try:
        read_codec(folder, manifest.codec, manifest.channels)
    except CacheError as error:
        yield Damage("codec", str(error))
    for chunk in manifest.chunks:
        if reason := _chunk_damage(folder, chunk):
            yield Damage(chunk.file, reason)
        report(1)
    yield from _image_damages(manifest, items)


def repair_cache(
    folder: StrPath,
    items: Sequence[ImageItem],
    *,
    load: LoadBackbone = load_backbone,
    **options: Any,
) -> FeatureStore:
    """Computes damaged chunks, and those of changed images, anew.

    Every chunk is read and compared with its checksum; sound ones are kept.

    Args:
        folder: The cache folder.
        items: The images of the dataset.
        load: Loads the backbone.
        options: Further fields of :class:`~f3rm.extract.job.Job`.

    Raises:
        CacheMismatchError: If the weights differ from those that the cache was made with.
        CacheError: If there is no usable manifest, or the file system refuses.
        F3rmError: As extraction raises it.
    """
    folder = as_path(folder)
    manifest = read_manifest(folder)
    identity = weights_identity(manifest.spec.backbone)
    if identity != manifest.weights_identity:
        msg = (
            f"The cache was made with the weights {manifest.weights_identity}, but the model's are "
            f"{identity} now. Put the old ones back, or run f3rm extract --force."
        )
        raise CacheMismatchError(msg)
    job = Job(
        items=items,
        spec=manifest.spec,
        folder=folder.resolve(),
        shard_size=max(len(chunk.images) for chunk in manifest.chunks),  # keeps the cut
        renew=True,
        before=identity_of(folder),
        on_error="record" if manifest.failed else "raise",
        **options,
    )
    return run_job(job, load)


def remove_features(folder: StrPath) -> None:
    """Removes a cache, finished and unfinished; files that are not f3rm's stay.

    Raises:
        CacheError: If workers are extracting it.
    """
    folder = as_path(folder)
    with feature_lock(folder):
        progress = unfinished(folder)
        if progress and progress.workers:
            msg = (
                f"{str(folder)!r} is being extracted by {progress.workers} worker(s). Stop them, "
                "then retry."
            )
            raise CacheError(msg)
        for part in (folder, building_folder(folder), *older_folders(folder)):
            if part.is_dir():
                # First, so that a half-removed cache is not valid.
                (part / MANIFEST).unlink(missing_ok=True)
                remove_run(part)


def _caches(root: Path) -> Iterator[Path]:
    if not root.is_dir():
        return
    for path in root.iterdir():
        if (path / MANIFEST).exists():
            yield path
        elif path.suffix == ".building" and path.is_dir():
            yield path.with_suffix("")  # of a first extraction, which has no cache yet


def _chunk_damage(folder: Path, chunk: ChunkRecord) -> str:
    try:
        verify_chunk(folder, chunk)
        rows = map_chunk(folder, chunk)
    except CacheError as error:
        return str(error)
    if chunk.dtype == "int8":  # has no NaN
        return ""
    flat = rows.reshape(math.prod(chunk.shape[:3]), chunk.shape[3])
    blocks = range(0, len(flat), _BLOCK_CELLS)
    finite = all(np.isfinite(flat[start : start + _BLOCK_CELLS]).all() for start in blocks)
    return "" if finite else "It holds NaN or infinity."


def _image_damages(manifest: Manifest, items: Sequence[ImageItem]) -> Iterator[Damage]:
    recorded = {image.name: image for image in (*manifest.images, *manifest.failed)}
    for item in items:
        record = recorded.pop(item.name, None)
        if record is None:
            yield Damage(item.name, "The image is not in the cache.")
        # Failed images are not compared: nothing of them is stored.
        elif isinstance(record, ImageRecord) and (reason := _image_damage(record, item)):
            yield Damage(item.name, reason)
    for name in recorded:
        yield Damage(name, "The image is not in the dataset any more.")


def _image_damage(record: ImageRecord, item: ImageItem) -> str:
    try:
        same = content_hash(item.path) == record.content
    except OSError as error:
        return f"The image cannot be read: {error}."
    return "" if same else "The image is another one than when it was extracted."
