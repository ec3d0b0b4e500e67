"""From images to a finished cache: valid chunks are reused, missing ones computed.

Nothing is written before every image, the device and the folder have been checked; no cache is
replaced before the new one is complete. Every process that asks for the same cache is a worker
(:mod:`~f3rm.extract.worker`): they share its chunks, and one of them commits. ``--dry-run`` goes
the same way up to the first chunk, and writes nothing.
"""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace

from f3rm.backbones.base import Backbone
from f3rm.backbones.registry import load_backbone
from f3rm.errors import DatasetError, StrPath, as_path, printable
from f3rm.extract.cache import find_cache
from f3rm.extract.estimate import Preflight, estimate, free_bytes, seconds_of
from f3rm.extract.job import Job, LoadBackbone, OnError, identity_of
from f3rm.extract.locks.chunk_reuse import finished_chunks, older_codecs, unfinished_chunks
from f3rm.extract.locks.folders import building_folder, check_writable, older_folders, recover
from f3rm.extract.membership import plan_run
from f3rm.extract.runner import TapRunner
from f3rm.extract.worker import ModelWorker
from f3rm.store.device import is_first_rank, release_memory, resolve_device
from f3rm.store.images import ImageFailedError, ImageInfo
from f3rm.store.items import ImageItem
from f3rm.store.manifest import MANIFEST, CodecRecord
from f3rm.store.reader import FeatureStore
from f3rm.store.spec import FeatureSpec
from f3rm.store.video import inspect_items

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
    """Opens a valid cache, or makes one; computes only missing chunks.

    Processes that ask for the same cache at the same time, on one machine or several, share the
    work. The next run continues an interrupted one.

    Args:
        items: The images.
        spec: The specification.
        folder: The cache folder; it need not exist.
        device: ``auto``, ``cpu``, ``cuda`` or ``cuda:N``.
        shard_size: Images per chunk file.
        batch_size: Images per network call; None chooses by image size. It is halved where memory
            is short.
        force: Whether to extract anew even if the cache is valid.
        progress: Whether to show progress bars.
        on_error: Whether an image that cannot be extracted ends the run, or is recorded.
        load: Loads the backbone, at most once and only if it is needed.

    Raises:
        DatasetError: If there is no image, or a name occurs twice, or no image can be extracted.
        ImageError: If an image is missing, damaged or unsuitable and ``on_error`` is ``raise``.
        DeviceError: If the device does not exist or its memory is too small.
        BackboneUnavailableError: If the model cannot be loaded.
        CacheError: If the cache cannot be written.
    """
    job = Job(
        items=items,
        spec=spec,
        folder=as_path(folder).expanduser().resolve(),
        device=device,
        shard_size=shard_size,
        batch_size=batch_size,
        force=force,
        progress=progress,
        on_error=on_error,
        maps=True,
    )
    return run_job(prepared(job), load)


def prepared(job: Job) -> Job:
    """Records which cache ``force`` replaces, so that a worker that starts late sees it done."""
    known = job.before is not None or not job.force
    return job if known else replace(job, before=identity_of(job.folder))


def run_job(job: Job, load: LoadBackbone = load_backbone) -> FeatureStore:
    """Does the work of :func:`extract_features`, as one worker of perhaps many.

    Args:
        job: The request.
        load: Loads the backbone.

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
    check_writable(job.folder)
    recover(job.folder)
    if wanted(job)[0] is None:  # unless recover() has just completed the cache
        _work(job, load)
        release_memory(device)  # the model's, for the training that may follow
    store = FeatureStore.open(job.folder)
    log.info("%s features of %d images are in %s.", job.spec.name, len(store), job.folder)
    return store


def preview_job(job: Job, load: LoadBackbone = load_backbone) -> Preflight:
    """Estimates what a job would cost: checks the images, loads the model, times one batch.

    Nothing is written.

    Args:
        job: The request.
        load: Loads the backbone, unless the cache is valid.

    Raises:
        F3rmError: As :func:`run_job` would raise it before the first chunk.
    """
    job = prepared(job)
    store, _ = wanted(job)
    if store is not None:
        counts = len(store.manifest.images), len(store.manifest.chunks)
        free = free_bytes(job.folder)
        return Preflight(job.spec.name, job.folder, job.device, *counts, 0, 0, 0, free, 0.0)
    check_writable(job.folder)
    backbone, images, failed = _ready(job, load)
    worker = ModelWorker.of(job, images, failed, backbone)
    run, plans = plan_run(worker.request(lambda: False))
    worker = worker.with_key(run.key)
    unfinished = [building_folder(job.folder), *older_folders(job.folder)]
    known = {**unfinished_chunks(unfinished, run), **finished_chunks(job.folder, run)}
    _, codec = next(older_codecs(job.folder, unfinished, run), (job.folder, CodecRecord()))
    new = [plan for plan in plans if replace(plan, codec=codec.hash).inputs not in known]
    costs = estimate(plans, new, worker.encoder, job.folder)
    return replace(costs, seconds=seconds_of(new, worker.encoder))


def wanted(job: Job) -> tuple[FeatureStore | None, str]:
    """Opens the cache if it satisfies the job; otherwise returns the reason why not."""
    if (job.force or job.renew) and identity_of(job.folder) == job.before:
        return None, "the cache is to be replaced"
    record = job.on_error == "record"
    return find_cache(job.items, job.spec, job.folder, failed_too=record)


def _work(job: Job, load: LoadBackbone) -> None:
    backbone, images, failed = _ready(job, load)
    while True:
        try:
            worker = ModelWorker.of(job, images, failed, backbone)
            worker.run(lambda: wanted(job)[0] is not None)
            break
        except ImageFailedError as error:
            # Found only by the network, e.g. NaN. The other images keep their finished chunks.
            if job.on_error == "raise":
                raise
            failed[error.name] = error.reason
            images = [info for info in images if info.item.name != error.name]
            _check_any_left(images, failed)
    for name, reason in failed.items():
        log.warning("%s has no features: %s.", printable(name), printable(reason))
    if failed:
        log.warning("%d of %d images failed and are recorded.", len(failed), len(job.items))


def _ready(job: Job, load: LoadBackbone) -> tuple[Backbone, list[ImageInfo], dict[str, str]]:
    """Returns the model, the images that can be decoded, and why others cannot.

    The taps are checked first: a wrong one must not be found after a million images.
    """
    backbone = load(job.spec.backbone, device=resolve_device(job.device), towers=("image",))
    runner = TapRunner(backbone, job.spec)
    if job.maps:
        runner.check_maps()
    failed: dict[str, str] = {}
    images = inspect_items(
        job.items,
        progress=job.progress and is_first_rank(),
        failed=failed if job.on_error == "record" else None,
    )
    _check_any_left(images, failed)
    return backbone, images, failed


def _check_any_left(images: Sequence[ImageInfo], failed: Mapping[str, str]) -> None:
    if not images:
        name, reason = next(iter(failed.items()))
        msg = (
            f"No image can be extracted: all {len(failed)} failed, e.g. {name!r}: {reason}. Check "
            "the dataset."
        )
        raise DatasetError(msg)
