"""``f3rm cache``: list, verify, repair and remove the features of a dataset."""

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from f3rm.errors import CacheError, CacheMismatchError, printable
from f3rm.extract.cache import find_cache
from f3rm.extract.maintenance import (
    Damage,
    cache_folders,
    remove_features,
    repair_cache,
    unfinished,
    verify_cache,
)
from f3rm.scripts.command import Command, say
from f3rm.store.items import ImageItem, read_items
from f3rm.store.manifest import Manifest, read_manifest
from f3rm.store.progress import progress_bar

_MEGABYTE = 1e6


@dataclass
class Action:
    """The arguments that all actions share, and the caches they name."""

    data: Path
    """Dataset folder with transforms.json."""
    feature_type: str | None = None
    """Only these types, e.g. CLIP or DINO+CLIP; by default all."""
    cache_dir: Path | None = None
    """The folder of f3rm extract --cache-dir."""

    @abstractmethod
    def run(self) -> None:
        """Acts on the caches and prints the result."""

    def folders(self) -> list[Path]:
        """Returns the folders of the caches.

        Raises:
            CacheError: If there are none.
        """
        found = cache_folders(self.data, cache_dir=self.cache_dir, feature_type=self.feature_type)
        if not found:
            msg = (
                f"{str(self.data)!r} has no features. Run f3rm extract first, or pass --cache-dir."
            )
            raise CacheError(msg)
        return found


@dataclass
class Status(Action):
    """List the features of a dataset: images, chunks, size, and whether they are valid."""

    def run(self) -> None:
        """Prints a table.

        Raises:
            F3rmError: If there are no features.
        """
        folders, items = self.folders(), read_items(self.data, present=False)
        table = Table("features", "images", "chunks", "MB", "codec", "state", box=None)
        for folder in folders:
            table.add_row(*(Text(printable(cell)) for cell in _status(folder, items)))
        Console().print(table)


@dataclass
class Verify(Action):
    """Read all chunks and images and compare their checksums; exit code 1 if one differs."""

    def run(self) -> None:
        """Prints the damage.

        Raises:
            CacheMismatchError: If there is any.
            F3rmError: If a cache cannot be verified.
        """
        items = read_items(self.data, present=False)
        damaged = 0
        for folder in self.folders():
            found = _verify(folder, items)
            damaged += len(found)
            if not found:
                say(f"{folder.name}: sound, in {folder}")
            for damage in found:
                say(f"{folder.name}: {damage.what}: {damage.reason}")
        if damaged:
            msg = (
                f"{damaged} difference(s) between caches and their manifests. Run f3rm cache "
                "repair with the same arguments."
            )
            raise CacheMismatchError(msg)


@dataclass
class Repair(Action):
    """Compute damaged chunks and those of changed images again; keep all others."""

    device: str = "auto"
    """auto (the GPU if there is one), cpu, cuda, cuda:0, ..."""

    def run(self) -> None:
        """Repairs and prints where the features are.

        Raises:
            F3rmError: If it cannot be done; the message says what to do.
        """
        items = read_items(self.data, present=False)
        for folder in self.folders():
            if not _verify(folder, items):
                say(f"{folder.name}: nothing to repair in {folder}")
                continue
            store = repair_cache(folder, items, device=self.device)
            say(f"{folder.name}: {len(store)} images, sound again in {folder}")


@dataclass
class Remove(Action):
    """Remove features, after asking."""

    yes: bool = False
    """Remove without asking."""

    def run(self) -> None:
        """Removes the caches and prints their folders.

        Raises:
            CacheError: If the answer is no, or features are being extracted.
        """
        for folder in self.folders():
            if not (self.yes or _agrees(folder)):
                raise CacheError(f"{folder} is kept. Pass --yes to remove it without asking.")
            remove_features(folder)
            say(f"removed {folder}")


@dataclass
class Cache(Command):
    """List, verify, repair or remove the features of a dataset."""

    action: Annotated[
        Annotated[Status, tyro.conf.subcommand("status")]
        | Annotated[Verify, tyro.conf.subcommand("verify")]
        | Annotated[Repair, tyro.conf.subcommand("repair")]
        | Annotated[Remove, tyro.conf.subcommand("remove")],
        tyro.conf.arg(name=""),
    ]

    def run(self) -> None:
        """Runs the action.

        Raises:
            F3rmError: If it cannot be done; the message says what to do.
        """
        self.action.run()


def _status(folder: Path, items: Sequence[ImageItem]) -> tuple[str, ...]:
    """Returns a row of the table; a cache without a manifest may still be in the making."""
    making = unfinished(folder)
    note = ""
    if making:
        chunks = "?" if making.chunks is None else making.chunks
        note = f"{making.done} of {chunks} chunks of a new cache done, {making.workers} worker(s)"
    try:
        manifest = read_manifest(folder)
    except CacheError as error:
        state = note if making and not folder.exists() else str(error)
        return folder.name, "-", "-", "-", "-", state
    failed_too = bool(manifest.failed)
    store, reason = find_cache(items, manifest.spec, folder, failed_too=failed_too)
    parts = ["valid" if store else reason, note]
    if manifest.failed:
        parts.append(f"{len(manifest.failed)} image(s) failed")
    size = sum(chunk.bytes for chunk in manifest.chunks) / _MEGABYTE
    return (
        folder.name,
        str(len(manifest.images)),
        str(len(manifest.chunks)),
        f"{size:.1f}",
        _codec(manifest),
        "; ".join(part for part in parts if part),
    )


def _codec(manifest: Manifest) -> str:
    """Returns the codec's name, and its mean error as 1 - cosine."""
    name, error = manifest.spec.codec, manifest.codec.cosine_error
    return name if error is None else f"{name} (1 - cosine {error.mean:.1e})"


def _verify(folder: Path, items: Sequence[ImageItem]) -> list[Damage]:
    total = len(read_manifest(folder).chunks)
    with progress_bar(show=True, unit="chunks") as bar:
        task = bar.add_task(escape(printable(f"verifying {folder.name}")), total=total)
        return list(verify_cache(folder, items, lambda number: bar.advance(task, number)))


def _agrees(folder: Path) -> bool:
    try:
        return input(printable(f"Remove {folder}? [y/N] ")).strip().lower() in ("y", "yes")
    except EOFError:
        return False
