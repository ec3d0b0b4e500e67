"""Several workers for one job: processes on this machine, or tasks on a Ray cluster.

Each runs :func:`~f3rm.extract.extraction.run_job`. They share the chunks by locks, so an engine
only starts them and waits. torchrun and Slurm need no engine: every process that they start is a
worker.
"""

import multiprocessing
import os
from contextlib import ExitStack
from dataclasses import replace
from typing import Literal

import torch

from f3rm.backbones.optional import require
from f3rm.backbones.registry import load_backbone
from f3rm.errors import F3rmError
from f3rm.extract.extraction import prepared, run_job
from f3rm.extract.job import Job, LoadBackbone
from f3rm.store.reader import FeatureStore

Engine = Literal["local", "ray"]
"""Starts the workers: this process, or Ray."""


class EngineError(F3rmError):
    """An engine is not installed, or its workers were lost."""


def run_with(
    job: Job,
    *,
    engine: Engine = "local",
    workers: int | None = None,
    load: LoadBackbone = load_backbone,
) -> FeatureStore:
    """Runs a job with several workers.

    Args:
        job: The request.
        engine: Starts the workers.
        workers: Number of workers; None is one, or with Ray one per GPU of the cluster.
        load: Loads the backbone; it is sent to the workers.

    Raises:
        EngineError: If the engine is not installed, or loses its workers.
        F3rmError: As a worker raises it.
    """
    if workers is not None and workers < 1:
        raise EngineError(f"--workers must be at least 1, got {workers}.")
    job = prepared(job)  # once, before the workers: each would see another cache to replace
    if engine == "ray":
        _run_on_ray(job, load, workers)
        return run_job(job, load)  # opens the cache
    return _run_here(job, load, workers or 1)


def _run_here(job: Job, load: LoadBackbone, workers: int) -> FeatureStore:
    """Works in this process, and in others beside it."""
    context = multiprocessing.get_context("spawn")  # a forked process cannot use CUDA
    helpers = [
        context.Process(target=_help, args=(job, load, rank, workers), daemon=True)
        for rank in range(1, workers)
    ]
    for helper in helpers:
        helper.start()
    with ExitStack() as if_interrupted:  # by Ctrl-C too: helpers must not go on alone
        for helper in helpers:
            if_interrupted.callback(helper.join)
            if_interrupted.callback(helper.terminate)
        store = run_job(job, load)
        if_interrupted.pop_all()
    for helper in helpers:
        helper.join()
    return store


def _help(job: Job, load: LoadBackbone, rank: int, workers: int) -> None:
    os.environ["LOCAL_RANK"] = str(rank)  # chooses the GPU, and keeps helpers' logs quiet
    torch.set_num_threads(max(1, (os.cpu_count() or 1) // workers))
    run_job(replace(job, progress=False), load)


def _run_on_ray(job: Job, load: LoadBackbone, workers: int | None) -> None:
    """Runs one task per worker on the cluster that Ray finds, or on this machine."""
    ray = require("ray", extra="ray", purpose="--engine ray", error=EngineError)
    started = not ray.is_initialized()
    if started:
        ray.init(log_to_driver=False)
    try:
        gpus = int(ray.cluster_resources().get("GPU", 0))
        on_gpu = gpus > 0 and job.device != "cpu"
        task = ray.remote(num_cpus=1, num_gpus=int(on_gpu), max_retries=3)(_work_on_ray)
        quiet = replace(job, progress=False)
        count = workers or max(1, gpus)
        ray.get([task.remote(quiet, load) for _ in range(count)])
    except ray.exceptions.RayTaskError as error:
        if isinstance(error.cause, F3rmError):  # say it in f3rm's words, without Ray's traceback
            raise error.cause from error
        raise
    except ray.exceptions.RayError as error:
        msg = (
            f"Ray lost its workers: {error}. Finished chunks are kept: run the same command again."
        )
        raise EngineError(msg) from error
    finally:
        if started:
            ray.shutdown()


def _work_on_ray(job: Job, load: LoadBackbone) -> int:
    """Returns the number of images: features go to the disk, never through Ray."""
    return len(run_job(job, load))
