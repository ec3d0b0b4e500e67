"""What a job would cost, without writing anything: the work behind ``--dry-run``."""

from dataclasses import replace

from f3rm.backbones.registry import load_backbone
from f3rm.extract.extraction import prepared, wanted
from f3rm.extract.job import Job, LoadBackbone
from f3rm.extract.locks.chunk_reuse import chunks_of, manifest_with, noted_codec
from f3rm.extract.locks.folders import building_folder, check_writable, older_folders
from f3rm.extract.locks.journal import Journal, Run
from f3rm.extract.membership import older_cut, settled
from f3rm.extract.preflight import Preflight, estimate, free_bytes, seconds_of
from f3rm.extract.worker import ModelWorker
from f3rm.store.codecs import CodecRecord
from f3rm.store.device import resolve_device
from f3rm.store.manifest import Manifest, codec_hash


def preview_job(
    job: Job, load: LoadBackbone = load_backbone, kind: type[ModelWorker] = ModelWorker
) -> Preflight:
    """Checks the images, loads the model, times one batch, and writes nothing.

    Args:
        job: What is asked for.
        load: Loads the backbone, unless a valid cache is there.
        kind: What a worker of the job does.

    Raises:
        F3rmError: What a run would raise before it starts.
    """
    job = prepared(job)
    store, _ = wanted(job)
    if store is not None:
        return _nothing_to_do(job, store.manifest)
    device = resolve_device(job.device)
    check_writable(job.folder)
    failed: dict[str, str] = {}
    tolerant = failed if job.on_error == "record" else None
    images = kind.inspect(job.items, progress=job.progress, failed=tolerant)
    backbone = load(job.spec.backbone, device=device, towers=("image",))
    worker = kind.of(job, images, failed, backbone)
    current = Journal(building_folder(job.folder)).run()
    task = settled(worker.task(lambda: False), current)
    worker = worker.settled(task.key)
    plans = worker.plan(older_cut(task, current))
    run = Run.of(task.key, plans, fresh=job.force)
    known, codec = _at_hand(job, run)
    new = [plan for plan in plans if replace(plan, codec=codec).inputs not in known]
    costs = estimate(plans, new, worker.encoder, job.folder)
    return replace(costs, seconds=seconds_of(new, worker.encoder))


def _nothing_to_do(job: Job, manifest: Manifest) -> Preflight:
    chunks = len(manifest.chunks)
    images = len(manifest.images)
    free = free_bytes(job.folder)
    return Preflight(job.spec.name, job.folder, job.device, images, chunks, 0, 0, 0, free, 0.0)


def _at_hand(job: Job, run: Run) -> tuple[set[str], str]:
    """Returns the inputs of chunks that need not be computed, and the codec they are for."""
    known = set() if job.force else set(chunks_of(job.folder, run.key))
    manifest = None if job.force else manifest_with(job.folder, run.key)
    codec = manifest.codec_hash if manifest else ""
    for folder in (building_folder(job.folder), *older_folders(job.folder)):
        journal = Journal(folder)
        left = journal.run()
        if left and left.feeds(run):
            known.update(inputs for inputs, _ in journal.notes())
            codec = codec or codec_hash(noted_codec(journal) or CodecRecord())
    return known, codec
