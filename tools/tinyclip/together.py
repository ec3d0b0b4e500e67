"""Several processes that train one model: each takes a part of every batch.

On a few cores that pays where threads do not: a small network's layers are too short to share.
"""

import multiprocessing
import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor, distributed

_MEETING = "meeting"


@contextmanager
def helped(work: Path, processes: int, helper: Callable[[int], None]) -> Iterator[None]:
    """Has ``helper(rank)`` run in ``processes - 1`` others; the caller is rank 0 of the group.

    Args:
        work: Folder in which the processes meet.
        processes: How many there are; with one, nothing is started.
        helper: What the others do; it must be picklable, and take as many steps as the caller.
    """
    if processes == 1:
        yield
        return
    work.mkdir(parents=True, exist_ok=True)
    (work / _MEETING).unlink(missing_ok=True)
    context = multiprocessing.get_context("spawn")
    others = [
        context.Process(target=_help, args=(helper, work, rank, processes))
        for rank in range(1, processes)
    ]
    for other in others:
        other.start()
    try:
        with _group(work, 0, processes):
            yield
        for other in others:
            other.join()
    finally:
        for other in others:
            other.terminate()


def average_gradients(parameters: Iterable[Tensor]) -> None:
    """Replaces gradients by their mean over the processes; every one must have the same ones."""
    if not distributed.is_initialized():
        return
    gradients = [p.grad for p in parameters if p.grad is not None]
    flat = torch.cat([gradient.flatten() for gradient in gradients])
    distributed.all_reduce(flat)
    flat /= distributed.get_world_size()
    for gradient, part in zip(gradients, flat.split([g.numel() for g in gradients]), strict=True):
        gradient.copy_(part.view_as(gradient))


def _help(helper: Callable[[int], None], work: Path, rank: int, processes: int) -> None:
    torch.set_num_threads(1)
    with _group(work, rank, processes):
        helper(rank)


@contextmanager
def _group(work: Path, rank: int, processes: int) -> Iterator[None]:
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")  # they are all on this machine
    meeting = f"file://{(work / _MEETING).absolute()}"
    distributed.init_process_group("gloo", meeting, rank=rank, world_size=processes)
    try:
        yield
    finally:
        distributed.destroy_process_group()
