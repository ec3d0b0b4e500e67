"""The earlier extractor's names, signatures and files; run as a script, it is ``f3rm extract``.

:func:`feature_saver` and :func:`feature_loader` work with any function from image files to feature
maps: ``features/<type>/chunk_0000.npy`` and ``meta.pt``, as training reads them.
"""

import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from f3rm.errors import CacheMismatchError, StrPath, as_path
from f3rm.extract.cache import feature_folder
from f3rm.extract.extraction import extract_features
from f3rm.extract.legacy import read_meta
from f3rm.scripts.command import run_command
from f3rm.scripts.extract import Extract
from f3rm.store.chunks import write_atomically
from f3rm.store.items import items_from_paths
from f3rm.store.npy import map_npy
from f3rm.store.spec import resolve_feature_type

__all__ = ["LazyFeatures", "extract_features_for_dataset", "feature_loader", "feature_saver"]

ExtractFn = Callable[[list[str], torch.device], Float[Tensor, "images rows cols channels"]]


@runtime_checkable
class ExtractArgs(Protocol):
    """Settings of an extraction function."""

    def id_dict(self) -> dict[str, Any]:
        """Returns the settings that decide the features, as plain values."""
        ...


class LazyFeatures:
    """Feature maps in chunk files, indexed as ``features[image, row, col]``; nothing is loaded.

    Attributes:
        paths: The files.
        H: Rows of a map.
        W: Columns.
        C: Channels.
    """

    def __init__(
        self,
        shard_paths: Sequence[StrPath],
        device: str | torch.device = "cpu",
        *,
        order: Sequence[int] | None = None,
    ) -> None:
        """Maps the files into memory.

        Args:
            shard_paths: Files (images, rows, cols, channels), in order.
            device: Where the vectors go.
            order: Row of the files for each image; None for the order of the files.
        """
        self.paths = [as_path(path) for path in shard_paths]
        self._device = torch.device(device)
        maps = [feature_map for path in self.paths for feature_map in map_npy(path)]
        self._maps = maps if order is None else [maps[row] for row in order]
        self.H, self.W, self.C = self._maps[0].shape

    def __len__(self) -> int:
        """Returns the number of images."""
        return len(self._maps)

    def __getitem__(self, where: tuple[int, int, int]) -> Float[Tensor, " channels"]:
        """Returns the vector of an image's cell.

        Raises:
            IndexError: If there is no such image or cell.
        """
        image, row, col = (int(index) for index in where)
        if not 0 <= image < len(self):
            raise IndexError(f"There are {len(self)} images, got the index {image}.")
        vector = np.array(self._maps[image][row, col], dtype=np.float32)
        return _async_to_cuda(torch.from_numpy(vector), self._device)

    def stacked(self) -> Float[Tensor, "images rows cols channels"]:
        """Loads all maps; they must have one size."""
        maps = torch.from_numpy(np.stack(self._maps).astype(np.float32))
        return _async_to_cuda(maps, self._device)


def extract_features_for_dataset(
    image_fnames: Sequence[StrPath],
    data_dir: StrPath,
    feature_type: str,
    device: str | torch.device,
    shard_size: int = 64,
    enable_cache: bool = True,  # noqa: FBT001, FBT002 - the original's position
    force: bool = False,  # noqa: FBT001, FBT002 - the original's position
) -> LazyFeatures | Tensor | dict[str, LazyFeatures] | dict[str, Tensor]:
    """Extracts the features of some images, or opens their cache if it is valid.

    Args:
        image_fnames: The images; the results have their order.
        data_dir: The dataset, whose cache is in ``data_dir/features/<type>``.
        feature_type: Such as ``CLIP`` or ``DINOCLIP``.
        device: Where the model runs, and the vectors go.
        shard_size: Images per file.
        enable_cache: Whether to read and keep files; else the result is a tensor
            (images, rows, cols, channels).
        force: Whether to extract again even if the cache is valid.

    Returns:
        The features; of several parts by name, ``{"dino": ..., "clip": ...}``.

    Raises:
        F3rmError: If images, feature type, device, model or disk cannot be used.
    """
    items = items_from_paths([as_path(name) for name in image_fnames], as_path(data_dir))
    found: dict[str, LazyFeatures] = {}
    with TemporaryDirectory() as elsewhere:
        for spec in resolve_feature_type(feature_type):
            cache = None if enable_cache else elsewhere
            folder = feature_folder(data_dir, spec, cache, items=items)
            options = {"shard_size": shard_size, "force": force, "device": str(device)}
            store = extract_features(items, spec, folder=folder, **options)
            rows = {name: row for row, name in enumerate(store.names)}
            files = [store.folder / chunk.file for chunk in store.manifest.chunks]
            order = [rows[item.name] for item in items]
            found[spec.name] = LazyFeatures(files, device, order=order)
        results = found if enable_cache else {name: each.stacked() for name, each in found.items()}
    return results if len(results) > 1 else next(iter(results.values()))


def feature_saver(
    image_fnames: Sequence[StrPath],
    extract_fn: ExtractFn,
    extract_args: ExtractArgs,
    data_dir: StrPath,
    feature_type: str,
    device: str | torch.device,
    shard_sz: int = 64,
) -> None:
    """Writes the maps of a function of your own; ``meta.pt`` comes last, when all are complete.

    Args:
        image_fnames: The images.
        extract_fn: Computes the maps of some images (images, rows, cols, channels).
        extract_args: Its settings, which are recorded.
        data_dir: The dataset; files go to ``data_dir/features/<type>``.
        feature_type: The name of the features, such as ``CLIP``.
        device: Passed to ``extract_fn``.
        shard_sz: Images per file.

    Raises:
        CacheError: If a file cannot be written.
    """
    folder = _folder(data_dir, feature_type)
    folder.mkdir(parents=True, exist_ok=True)
    for old in (folder / "meta.pt", *folder.glob("chunk_*.npy")):  # of a longer run
        old.unlink(missing_ok=True)
    names = [str(name) for name in image_fnames]
    for number, start in enumerate(range(0, len(names), shard_sz)):
        maps = extract_fn(names[start : start + shard_sz], torch.device(device)).cpu().numpy()
        path = folder / f"chunk_{number:04d}.npy"
        write_atomically(path, lambda stream, maps=maps: np.save(stream, maps, allow_pickle=False))
    meta = {"args": extract_args.id_dict(), "image_fnames": names}
    write_atomically(folder / "meta.pt", lambda stream: torch.save(meta, stream))


def feature_loader(
    image_fnames: Sequence[StrPath],
    extract_args: ExtractArgs,
    data_dir: StrPath,
    feature_type: str,
    device: str | torch.device,
) -> LazyFeatures | None:
    """Opens the files of :func:`feature_saver`; None if they are of other images or settings.

    Args:
        image_fnames: The images.
        extract_args: The settings.
        data_dir: The dataset.
        feature_type: The name of the features.
        device: Where the vectors go.
    """
    folder = _folder(data_dir, feature_type)
    chunks = sorted(folder.glob("chunk_*.npy"))
    try:
        found = read_meta(folder)
    except CacheMismatchError:
        return None
    wanted = ([str(name) for name in image_fnames], extract_args.id_dict())
    return LazyFeatures(chunks, device) if chunks and found == wanted else None


def _folder(data_dir: StrPath, feature_type: str) -> Path:
    return as_path(data_dir) / "features" / feature_type.lower()


def _async_to_cuda(tensor: Tensor, device: str | torch.device) -> Tensor:
    """Copies a tensor to a GPU without waiting for it; on the CPU it stays as it is."""
    target = torch.device(device)
    if target.type == "cuda" and tensor.device.type == "cpu":
        tensor = tensor.pin_memory()  # from pageable memory the copy would wait
    return tensor.to(target, non_blocking=True)


if __name__ == "__main__":
    sys.exit(run_command(Extract))
