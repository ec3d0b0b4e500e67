"""Joining the run that makes a cache, or beginning one."""

import logging
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from f3rm.errors import CacheError
from f3rm.extract.locks.file_locks import POLL_SECONDS, WorkerLocks, living
from f3rm.extract.locks.folders import (
    building_folder,
    feature_lock,
    finish_swap,
    older_folders,
    remove_run,
    retire,
)
from f3rm.extract.locks.journal import PROGRESS, Journal, Run
from f3rm.extract.plan import ChunkPlan, Names
from f3rm.extract.writer import CacheWriter
from f3rm.store.manifest import read_manifest

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class CacheRequest:
    """The cache that a worker wants.

    Attributes:
        folder: The cache folder.
        keys: Hashes of the specifications that satisfy the worker, the preferred one first. There
            are several when the precision is ``auto``.
        fresh: Whether chunks of an older cache must not be used.
        channels: Stored channels.
        plan: Cuts the images into chunks, given how an older cache was cut.
        is_done: Tells whether the wanted cache exists, perhaps made by others meanwhile.
    """

    folder: Path
    keys: tuple[str, ...]
    fresh: bool
    channels: int
    plan: Callable[[Names], list[ChunkPlan]]
    is_done: Callable[[], bool]


@dataclass(frozen=True)
class RunMembership:
    """The run that a worker has joined.

    Attributes:
        writer: Locks, writes and commits.
        plans: The chunks of the whole run.
    """

    writer: CacheWriter
    plans: list[ChunkPlan]


@contextmanager
def join_run(request: CacheRequest) -> Generator[RunMembership | None]:
    """Joins the run that makes a cache, or begins one; waits while another run uses the folder.

    A run may end without this worker, which others took to hang, or which made a chunk that another
    has published. Then the block ends too, without an error, and the caller joins again.

    Yields:
        The membership; None if the cache exists already.

    Raises:
        CacheError: If the file system refuses.
    """
    warned = False
    with ExitStack() as stack:
        while True:
            with feature_lock(request.folder):
                finish_swap(request.folder)  # of a process that died between two renames
                done = request.is_done()
                membership = None if done else _join_or_begin(request, stack)
            if done or membership is not None:
                break
            if not warned:
                warned = True
                progress = building_folder(request.folder) / PROGRESS
                log.warning(
                    "Other features are being extracted in %s by %s; waiting for them to finish. "
                    "If one hangs, end it; if its machine is gone, remove its file worker-... in "
                    "%s.",
                    progress.parent,
                    ", ".join(living(progress)),
                    progress,
                )
            time.sleep(POLL_SECONDS)  # without the lock, which the others need to commit
        try:
            yield membership
        except CacheError:
            if membership is None or membership.writer.locks.is_member():
                raise
            log.info("The extraction in %s ended without this worker.", request.folder)


def plan_run(request: CacheRequest) -> tuple[Run, list[ChunkPlan]]:
    """Chooses the specification and cuts the chunks of a run; writes nothing.

    A specification that an earlier run or the finished cache has is preferred, with the way in
    which that one was cut: its chunks can be reused then, and workers with different preferences
    agree on one specification.
    """
    key, cut = next(
        (found for found in _earlier_cuts(request) if found[0] in request.keys),
        (request.keys[0], ()),
    )
    plans = request.plan(cut)
    return Run.of(key, plans, fresh=request.fresh), plans


def _join_or_begin(request: CacheRequest, stack: ExitStack) -> RunMembership | None:
    """Enters the run, with the lock held; None while workers of another run are alive."""
    building = building_folder(request.folder)
    journal = Journal(building)
    run, plans = plan_run(request)
    if living(journal.folder):
        current = journal.run()
        if current is None or not current.satisfies(run):
            return None
        run = current
    else:  # nobody is left: a new run, even if only to reuse what the last one has finished
        retire(request.folder)
        _remove_useless(request.folder, run)
        journal.begin(run)
    # Before the lock is released, or the next worker would take this run for abandoned.
    locks = stack.enter_context(WorkerLocks(building))
    writer = CacheWriter(request.folder, run, channels=request.channels, locks=locks)
    return RunMembership(writer, plans)


def _earlier_cuts(request: CacheRequest) -> Iterator[tuple[str, Names]]:
    """Yields key and cut of the current run, of interrupted ones, and of the finished cache."""
    for folder in (building_folder(request.folder), *older_folders(request.folder)):
        run = Journal(folder).run()
        if run and (run.fresh or not request.fresh):
            yield run.key, run.chunks
    if not request.fresh:
        with suppress(CacheError):
            manifest = read_manifest(request.folder)
            yield manifest.key, [chunk.images for chunk in manifest.chunks]


def _remove_useless(folder: Path, run: Run) -> None:
    """Removes interrupted runs whose chunks this one cannot reuse."""
    for older in older_folders(folder):
        left = Journal(older).run()
        if left is None or not left.can_supply(run):
            remove_run(older)
