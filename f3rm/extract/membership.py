"""Taking part in making a cache: joining a run that others began, or beginning one."""

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path

from f3rm.errors import CacheError
from f3rm.extract.locks.folders import (
    building_folder,
    feature_lock,
    finish_swap,
    older_folders,
    remove_run,
    retire,
)
from f3rm.extract.locks.heartbeat import SILENT_SECONDS, Watch, Worker
from f3rm.extract.locks.journal import PROGRESS, Journal, Run
from f3rm.extract.plan import ChunkPlan, Names
from f3rm.extract.writer import CacheWriter
from f3rm.store.manifest import read_manifest

log = logging.getLogger(__name__)

POLL_SECONDS = 0.2
"""How often a worker that has nothing to do looks again."""

MakePlan = Callable[[Names], list[ChunkPlan]]
"""Cuts the images into chunks, given how an older cache was cut."""


@dataclass(frozen=True)
class Task:
    """What a worker wants to have made.

    Attributes:
        folder: Where the cache will be.
        keys: Hashes of the specifications of which one is made, the preferred one first.
        fresh: Whether no chunk of an older cache may be used.
        channels: Stored channels.
        plan: Cuts the images into chunks.
        is_done: Tells whether the wanted cache is there, perhaps made by others meanwhile.
    """

    folder: Path
    keys: tuple[str, ...]
    fresh: bool
    channels: int
    plan: MakePlan
    is_done: Callable[[], bool]

    @property
    def key(self) -> str:
        """The hash of the specification that is made; see :func:`settled`."""
        return self.keys[0]


@dataclass(frozen=True)
class Part:
    """A worker's part in a run.

    Attributes:
        writer: Claims, writes and commits.
        plans: The chunks of the whole run.
    """

    writer: CacheWriter
    plans: list[ChunkPlan]


@contextmanager
def take_part(task: Task) -> Iterator[Part | None]:
    """Joins the run that makes a cache, or begins one; waits while others make another one there.

    Yields:
        The part; None if the cache is there already.

    Raises:
        CacheError: If the file system refuses.
    """
    watch = Watch(building_folder(task.folder) / PROGRESS, silent_seconds=SILENT_SECONDS)
    said = False
    with ExitStack() as stack:
        while True:
            with feature_lock(task.folder):
                finish_swap(task.folder)
                done = task.is_done()
                part = None if done else _join_or_begin(task, watch, stack)
            if done or part is not None:
                break
            if not said:
                said = True
                log.warning("Other features are being made in %s; waiting.", watch.folder.parent)
            time.sleep(POLL_SECONDS)
        yield part


def _join_or_begin(task: Task, watch: Watch, stack: ExitStack) -> Part | None:
    """Enters the run, with the lock held; None while workers of another run are alive."""
    journal = Journal(building_folder(task.folder))
    current = journal.run()
    task = settled(task, current)
    plans = task.plan(older_cut(task, current))
    run = Run.of(task.key, plans, fresh=task.fresh)
    if watch.living():
        if current is None or not current.serves(run):
            return None
        run = current
    else:
        retire(task.folder)
        _remove_useless(task.folder, run)
        journal.begin(run)
    worker = stack.enter_context(Worker(watch.folder))
    writer = CacheWriter(task.folder, run, channels=task.channels, worker=worker, watch=watch)
    return Part(writer, plans)


def settled(task: Task, current: Run | None) -> Task:
    """Chooses what is made: what others began or finished, if it will do, else the preferred.

    So a cache that any of several specifications satisfies never mixes them, whoever works on it.

    Args:
        task: What is to be made.
        current: What is being made.
    """
    runs = [current, *(Journal(older).run() for older in older_folders(task.folder))]
    keys = [run.key for run in runs if run and (run.fresh or not task.fresh)]
    with suppress(CacheError):
        keys += [] if task.fresh else [read_manifest(task.folder).key]
    chosen = next((key for key in keys if key in task.keys), task.key)
    return replace(task, keys=(chosen,))


def older_cut(task: Task, current: Run | None) -> Names:
    """Returns how an older cache was cut: an unfinished one if there is, else the finished one.

    Args:
        task: What is to be made.
        current: What is being made.
    """
    runs = [current, *(Journal(older).run() for older in older_folders(task.folder))]
    for run in runs:
        if run and run.key == task.key and (run.fresh or not task.fresh):
            return run.chunks
    try:
        manifest = None if task.fresh else read_manifest(task.folder)
    except CacheError:
        return ()
    usable = manifest is not None and manifest.key == task.key
    return [chunk.images for chunk in manifest.chunks] if manifest and usable else ()


def _remove_useless(folder: Path, run: Run) -> None:
    """Removes what interrupted runs left if this one cannot use it."""
    for older in older_folders(folder):
        left = Journal(older).run()
        if left is None or not left.feeds(run):
            remove_run(older)
