"""VISSL's folders of features, read and written: ``rank0_chunk3_train_res4_features.npy``.

Beside the features lie ``..._targets.npy`` (items, 1) and ``..._inds.npy`` (items,), positions in
the dataset. :func:`load_features` and :func:`sample_features` have the names, the arguments and the
results of ``ExtractedFeaturesLoader``; unlike it they keep the type of the features, sort chunks by
number, need no targets, and read only the rows that are asked for.

*Source:* https://github.com/facebookresearch/vissl, ``vissl/utils/extract_features_utils.py`` (MIT;
no code of it is used).
"""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from jaxtyping import Int, Shaped

from f3rm.backbones.taps import Tap
from f3rm.errors import CacheError, StrPath, as_path
from f3rm.extract.taps.exports import first_channels, flat_channels_first, slug_of
from f3rm.extract.taps.store import TapStore
from f3rm.store.chunks import write_atomically
from f3rm.store.names import UnsafeNameError, safe_part
from f3rm.store.npy import map_npy

_FILE = re.compile(r"rank(\d+)_chunk(\d+)_(.+)_features\.npy")

Named = dict[Literal["features", "targets", "inds"], np.ndarray]


@dataclass(frozen=True)
class Shard:
    """Three files of one rank and chunk.

    Attributes:
        features: The file of features; the others have its name.
        rank: Who wrote it.
        chunk: Its number.
    """

    features: Path
    rank: int
    chunk: int

    def beside(self, what: Literal["targets", "inds"]) -> Path:
        """Returns the file of targets or indices."""
        return self.features.with_name(
            self.features.name.removesuffix("features.npy") + f"{what}.npy"
        )


def shards_of(input_dir: StrPath, split: str, layer: str) -> list[Shard]:
    """Lists the shards of a layer by rank and number, chunk 10 after chunk 2.

    Args:
        input_dir: The folder.
        split: Such as ``train``.
        layer: Such as ``res4``.

    Raises:
        CacheError: If there is none; the message names what there is.
    """
    input_dir = as_path(input_dir)
    wanted = f"{split.lower()}_{layer}"
    found = [(path, _FILE.fullmatch(path.name)) for path in input_dir.glob("*_features.npy")]
    shards = [
        Shard(path, int(match[1]), int(match[2]))
        for path, match in found
        if match and match[3] == wanted
    ]
    if not shards:
        there = sorted({match[3] for _, match in found if match})
        msg = (
            f"load_features: {str(input_dir)!r} must hold features of the split {split!r} and the "
            f"layer {layer!r}, got {', '.join(there) or 'no features'}."
        )
        raise CacheError(msg)
    return sorted(shards, key=lambda shard: (shard.rank, shard.chunk))


def load_features(
    input_dir: StrPath, split: str, layer: str, *, flatten_features: bool = False
) -> Named:
    """Reads a layer of a folder; of an item that occurs twice, the last one counts.

    Args:
        input_dir: The folder.
        split: Such as ``train``.
        layer: Such as ``res4``.
        flatten_features: Whether every item becomes one axis.

    Returns:
        ``features`` (items, ...), ``targets`` (items, 1) if there are some, and ``inds`` (items,),
        ascending.

    Raises:
        CacheError: If there is nothing, or a file is damaged.
    """
    input_dir = as_path(input_dir)
    return sample_features(input_dir, split, layer, -1, 0, flatten_features=flatten_features)


def sample_features(
    input_dir: StrPath,
    split: str,
    layer: str,
    num_samples: int,
    seed: int,
    *,
    flatten_features: bool = False,
) -> Named:
    """Draws items of a layer at random; reads only these.

    Args:
        input_dir: The folder.
        split: Such as ``train``.
        layer: Such as ``res4``.
        num_samples: How many; all if negative, or if there are fewer.
        seed: Seed of the draw; the result does not depend on how items are cut into chunks.
        flatten_features: Whether every item becomes one axis.

    Returns:
        As :func:`load_features`.

    Raises:
        CacheError: If there is nothing, or a file is damaged.
    """
    input_dir = as_path(input_dir)
    shards = shards_of(input_dir, split, layer)
    places = _places(shards)
    inds = np.array(sorted(places), dtype=np.int64)
    if 0 <= num_samples < len(inds):
        inds = np.sort(np.random.default_rng(seed).choice(inds, num_samples, replace=False))
    features = _take([shard.features for shard in shards], places, inds)
    found: Named = {"features": features, "inds": inds}
    if flatten_features:
        found["features"] = features.reshape(len(features), math.prod(features.shape[1:]))
    if all(shard.beside("targets").is_file() for shard in shards):
        found["targets"] = _take([shard.beside("targets") for shard in shards], places, inds)
    return found


def export_vissl(
    store: TapStore,
    output_dir: StrPath,
    *,
    layers: Mapping[str, str] | None = None,
    split: str | None = None,
    flatten: bool = False,
    chunk: int | None = None,
) -> list[Path]:
    """Writes an extraction as VISSL would have, without the duplicates of its padded samplers.

    Args:
        store: The extraction.
        output_dir: Where the files go.
        layers: Tap -> layer in the file names; by default the tap's layer, or all of the tap where
            several taps have one layer.
        split: Name of the split in the file names; the store's if not given.
        flatten: Whether every item becomes one axis, channel by channel.
        chunk: Items per file; None for those of the extraction's own files, so that with
            ``CHUNK_THRESHOLD: 0`` every batch has one.

    Returns:
        The files of features. Maps have channels first; items without a label get no targets.
        Later chunks of an earlier export into the folder are removed.

    Raises:
        CacheError: If items differ in shape, or a file cannot be written.
        UnsafeNameError: If two layers would have one file.
    """
    output_dir = as_path(output_dir)
    output_dir.mkdir(parents=True, exist_ok=True)
    names = layers or layer_names(store.taps)
    if len({safe_part(layer) for layer in names.values()}) < len(names):
        found = ", ".join(repr(layer) for layer in names.values())
        msg = f"export_vissl: layers must give different files, got {found}. Name them otherwise."
        raise UnsafeNameError(msg)
    written: list[Path] = []
    for tap, layer in names.items():
        for number, table in enumerate(store.batches(chunk or store.chunk_size, tap)):
            stem = f"rank0_chunk{number}_{(split or store.split).lower()}_{safe_part(layer)}"
            arrange = flat_channels_first if flatten else first_channels
            path = output_dir / f"{stem}_features.npy"
            _save(path, arrange(table.features))
            _save(output_dir / f"{stem}_inds.npy", table.indices)
            if table.targets is not None:
                _save(output_dir / f"{stem}_targets.npy", table.targets[:, None])
            written.append(path)
        if written:
            _remove_later(written[-1])
    return written


def _remove_later(last: Path) -> None:
    """Removes an earlier export's chunks after the last one: readers take later ones for newer."""
    own = _FILE.fullmatch(last.name)
    for path in last.parent.glob("rank0_chunk*_features.npy"):
        match = _FILE.fullmatch(path.name)
        if own and match and match[3] == own[3] and int(match[2]) > int(own[2]):
            shard = Shard(path, 0, int(match[2]))
            for stale in (path, shard.beside("inds"), shard.beside("targets")):
                stale.unlink(missing_ok=True)


def layer_names(taps: tuple[str, ...]) -> dict[str, str]:
    """Returns the name of every tap in VISSL's files; no two are the same."""
    layers = [Tap.parse(tap).layer for tap in taps]
    layers = ["heads" if layer == "head" else layer for layer in layers]
    return {
        tap: layer if layers.count(layer) == 1 else slug_of(tap)
        for tap, layer in zip(taps, layers, strict=True)
    }


def _places(shards: list[Shard]) -> dict[int, tuple[int, int]]:
    """Returns shard and row of every item; later shards replace earlier ones."""
    places: dict[int, tuple[int, int]] = {}
    for number, shard in enumerate(shards):
        path = shard.beside("inds")
        inds = _open(path)
        if inds.dtype.kind not in "iu":
            msg = f"load_features: {str(path)!r} must hold whole numbers, got {inds.dtype}."
            raise CacheError(f"{msg} Export it again.")
        places.update({index: (number, row) for row, index in enumerate(inds.reshape(-1).tolist())})
    return places


def _take(
    files: list[Path], places: Mapping[int, tuple[int, int]], inds: Int[np.ndarray, " items"]
) -> Shaped[np.ndarray, "items ..."]:
    where = np.array([places[index] for index in inds.tolist()], dtype=np.int64).reshape(-1, 2)
    numbers = sorted(set(where[:, 0].tolist())) or [0]
    arrays = {number: _open(files[number]) for number in numbers}
    row_shape = arrays[numbers[0]].shape[1:]
    for number, array in arrays.items():  # all of them before memory is asked for
        last = where[where[:, 0] == number, 1].max(initial=-1)
        if array.ndim == 0 or array.shape[1:] != row_shape or last >= len(array):
            msg = (
                f"load_features: {str(files[number])!r} must have rows of shape {row_shape} for "
                f"all its indices, got {array.shape}. Export it again."
            )
            raise CacheError(msg)
    features = np.empty((len(inds), *row_shape), dtype=arrays[numbers[0]].dtype)
    for number, array in arrays.items():
        mine = np.flatnonzero(where[:, 0] == number)
        features[mine] = array[where[mine, 1]]
    return features


def _open(path: Path) -> np.ndarray:
    try:
        return map_npy(path)
    except (OSError, ValueError) as error:
        msg = f"load_features: {str(path)!r} must be a .npy array, got: {error}. Export it again."
        raise CacheError(msg) from error


def _save(path: Path, array: np.ndarray) -> None:
    write_atomically(path, lambda stream: np.save(stream, np.ascontiguousarray(array)))
