"""From images to a finished cache: what is valid is used, what is missing is made.

Nothing is written before every image, the device and the folder have been checked; nothing that a
user has is replaced before what replaces it is complete. Every process that asks for the same
cache is a worker (:mod:`~f3rm.extract.worker`): they share its chunks, and one of them commits.
"""

import logging
from collections.abc import Sequence
from dataclasses import replace

import torch

from f3rm.backbones.registry import load_backbone
from f3rm.errors import DatasetError, StrPath, as_path, printable
from f3rm.extract.cache import feature_folder, find_cache
from f3rm.extract.job import Job, LoadBackbone, OnError, identity_of
from f3rm.extract.locks.folders import check_writable, recover
from f3rm.extract.worker import ModelWorker
from f3rm.store.device import is_first_rank, release_memory, resolve_device
from f3rm.store.images import ImageFailedError
from f3rm.store.items import ImageItem
from f3rm.store.manifest import MANIFEST
from f3rm.store.reader import FeatureStore
from f3rm.store.spec import FeatureSpec

__all__ = [
    "LoadBackbone",
    "extract_features",
    "feature_folder",
    "find_cache",
    "resolve_device",
    "run_job",
    "wanted",
]

log = logging.getLogger(__name__)


def extract_features(  # noqa: PLR0913 - one call with every choice, by keyword
    items: Sequence[ImageItem],
    spec: FeatureSpec,
    *,
    folder: StrPath,
    device: str = "auto",
    shard_size: int = 64,
    batch_size: int | None = None,
    force: bool = False,
    progress: bool = True,
    on_error: OnError = "raise",
    load: LoadBackbone = load_backbone,
) -> FeatureStore:
    """Makes sure that a valid cache exists and opens it; extracts only what is missing.

    Processes that ask for the same cache at the same time, on one machine or several, share the
    work. An interrupted run is taken up by the next one.

    Args:
        items: The images.
        spec: What to extract.
        folder: Where the cache is or will be.
        device: ``auto``, ``cpu``, ``cuda`` or ``cuda:N``.
        shard_size: Images per chunk file.
        batch_size: Images per network call; None chooses by image size. Halved where memory is
            short.
        force: Whether to extract anew even if the cache is valid.
        progress: Whether to show progress bars.
        on_error: Whether an image that cannot be extracted ends the run, or is recorded and left
            out.
        load: Loads the backbone, at most once and only if it is needed.

    Raises:
        DatasetError: If there is no image, or a name occurs twice, or no image can be extracted.
        ImageError: If an image is missing, damaged or unsuitable and ``on_error`` is ``raise``;
            nothing of it has been written then.
        DeviceError: If the device does not exist or its memory is too small.
        BackboneUnavailableError: If the model cannot be loaded.
        CacheError: If the cache cannot be written.
    """
    folder = as_path(folder)
    job = Job(
        items=items,
        spec=spec,
        folder=folder.expanduser().resolve(),
        device=device,
        shard_size=shard_size,
        batch_size=batch_size,
        force=force,
        progress=progress,
        on_error=on_error,
    )
    return run_job(prepared(job), load)


def prepared(job: Job) -> Job:
    """Notes which cache ``force`` replaces, so that workers who come late see that it is done."""
    known = job.before is not None or not job.force
    return job if known else replace(job, before=identity_of(job.folder))


def run_job(
    job: Job, load: LoadBackbone = load_backbone, worker: type[ModelWorker] = ModelWorker
) -> FeatureStore:
    """Does what :func:`extract_features` does, as one worker of perhaps many.

    Args:
        job: What is asked for.
        load: Loads the backbone.
        worker: What the worker does; another room's kind of it computes other things.

    Raises:
        F3rmError: As :func:`extract_features` raises them.
    """
    store, reason = wanted(job)
    if store is not None:
        log.info("Using the %s features in %s.", job.spec.name, job.folder)
        return store
    if not (job.force or job.renew):
        level = logging.WARNING if (job.folder / MANIFEST).exists() else logging.INFO
        log.log(level, "Extracting %s features: %s.", job.spec.name, reason.rstrip("."))
    device = resolve_device(job.device)
    _work(job, device, load, worker)
    release_memory(device)  # the model's, for the training that may follow
    store = FeatureStore.open(job.folder)
    log.info("%s features of %d images are in %s.", job.spec.name, len(store), job.folder)
    return store


def wanted(job: Job) -> tuple[FeatureStore | None, str]:
    """Opens the cache if it is what the job asks for; otherwise says why not.

    Args:
        job: What is asked for.
    """
    if (job.force or job.renew) and identity_of(job.folder) == job.before:
        return None, "the cache is to be replaced"
    record = job.on_error == "record"
    return find_cache(job.items, job.spec, job.folder, failed_too=record)


def _work(job: Job, device: torch.device, load: LoadBackbone, kind: type[ModelWorker]) -> None:
    check_writable(job.folder)
    recover(job.folder)
    if wanted(job)[0] is not None:
        return
    failed: dict[str, str] = {}
    record = job.on_error == "record"
    images = kind.inspect(
        job.items, progress=job.progress and is_first_rank(), failed=failed if record else None
    )
    backbone = load(job.spec.backbone, device=device, towers=("image",)) if images else None
    while backbone is not None and images:
        try:
            worker = kind.of(job, images, failed, backbone)
            worker.run(lambda: wanted(job)[0] is not None)
        except ImageFailedError as error:
            if not record:
                raise
            failed[error.name] = error.reason
            images = [info for info in images if info.item.name != error.name]
        else:
            _warn(failed, len(job.items))
            return
    name, reason = next(iter(failed.items()))
    msg = (
        f"extract_features: items must have an image that can be extracted, but all {len(failed)} "
        f"failed, e.g. {name!r}: {reason}. Check the dataset."
    )
    raise DatasetError(msg)


def _warn(failed: dict[str, str], total: int) -> None:
    for name, reason in failed.items():
        log.warning("%s has no features: %s.", printable(name), printable(reason))
    if failed:
        log.warning("%d of %d images failed and are recorded as such.", len(failed), total)
