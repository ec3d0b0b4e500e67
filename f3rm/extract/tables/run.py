"""Extraction of taps to disk, in one call.

The output folder has, per split, ``<split>.items.json`` (names, labels, order) and a cache in the
folder ``<split>``. Chunks, resuming, workers, failures and validity are those of
:mod:`f3rm.extract`.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from f3rm.backbones.registry import load_backbone
from f3rm.errors import CacheError, StrPath, as_path
from f3rm.extract.engines import Engine, run_with
from f3rm.extract.job import Job, LoadBackbone, OnError
from f3rm.extract.tables.items import ItemList, list_items, split_folder, write_split
from f3rm.extract.tables.tables import TapStore
from f3rm.store.device import is_first_rank
from f3rm.store.spec import FeatureSpec

Shard = int | Literal["auto", "batch", "all"]
"""Items per file: a number, one batch, all of them, or as many as 256 MB hold."""

_SHARD_BYTES = 1 << 28
_LARGEST_SHARD = 4096
_BATCH = 16


def extract(  # noqa: PLR0913 - one call with every choice, by keyword
    items: ItemList | Path | str | Sequence[Path | str],
    spec: FeatureSpec,
    out: StrPath,
    *,
    split: str = "all",
    shard: Shard = "auto",
    batch_size: int | None = None,
    device: str = "auto",
    overwrite: bool = False,
    on_error: OnError = "raise",
    engine: Engine = "local",
    workers: int | None = None,
    progress: bool = True,
    load: LoadBackbone = load_backbone,
) -> TapStore:
    """Extracts features of images and videos, or opens them if they are extracted already.

    Several processes may run the same call at once, on one machine or on several (torchrun,
    Slurm): they share the chunks, and every item is computed once.

    Args:
        items: A list, or anything that :func:`f3rm.extract.tables.items.list_items` takes.
        spec: The specification.
        out: Folder of the results, common to all splits.
        split: Name of this list of items, e.g. ``train``.
        shard: Items per file. The file of an item depends on the list alone.
        batch_size: Items per network call; None chooses by image size.
        device: ``auto``, ``cpu``, ``cuda`` or ``cuda:N``.
        overwrite: Whether to compute everything again.
        on_error: Whether an item that fails ends the run, or is recorded; others keep their
            indices.
        engine: Starts the workers if there are several.
        workers: Number of workers.
        progress: Whether to show progress bars.
        load: Loads the backbone.

    Returns:
        The results, open for reading.

    Raises:
        F3rmError: If the items, the model, a tap, the device or the disk cannot be used.
    """
    out = as_path(out)
    chosen = items if isinstance(items, ItemList) else list_items(items)
    job = make_job(
        chosen,
        spec,
        split_folder(out, split),
        shard=shard,
        batch_size=batch_size,
        device=device,
        force=overwrite,
        on_error=on_error,
        progress=progress,
    )
    run_with(job, engine=engine, workers=workers, load=load)
    if is_first_rank():
        write_split(out, split, chosen)
    return TapStore.open(out, split, items=chosen)


def make_job(
    items: ItemList,
    spec: FeatureSpec,
    folder: StrPath,
    *,
    shard: Shard = "auto",
    batch_size: int | None = None,
    **options: Any,
) -> Job:
    """Returns the job of an extraction.

    Args:
        items: The items.
        spec: The specification.
        folder: Folder of the split.
        shard: Items per file.
        batch_size: Items per network call; None chooses by image size.
        options: Further fields of :class:`~f3rm.extract.job.Job`.

    Raises:
        CacheError: If ``shard`` is not a choice.
    """
    folder = as_path(folder)
    sizes: dict[Shard, int] = {
        "auto": _LARGEST_SHARD,
        "batch": batch_size or _BATCH,
        "all": max(1, len(items)),
    }
    size = shard if isinstance(shard, int) else sizes.get(shard)
    if size is None or size < 1:
        raise CacheError(f"shard must be auto, batch, all or at least 1, got {shard!r}.")
    return Job(
        items=items.items,
        spec=spec,
        folder=folder.expanduser().resolve(),
        shard_size=size,
        batch_size=sizes["batch"] if shard == "batch" else batch_size,
        shard_bytes=_SHARD_BYTES if shard == "auto" else None,
        **options,
    )
