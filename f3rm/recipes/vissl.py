"""VISSL's folders of features, read and written: ``rank0_chunk3_train_res4_features.npy``.

Beside the features are ``..._targets.npy`` (items, 1) and ``..._inds.npy`` (items,), positions in
the dataset. :func:`load_features` and :func:`sample_features` have the names, arguments and results
of ``ExtractedFeaturesLoader``. Unlike it they keep the type of the features, sort chunks by number,
need no targets, and read only the wanted rows.

*Source:* https://github.com/facebookresearch/vissl, ``vissl/utils/extract_features_utils.py`` (MIT;
no code of it is used).
"""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from jaxtyping import Int, Shaped

from f3rm.backbones.taps import Tap
from f3rm.errors import CacheError, StrPath, as_path
from f3rm.extract.tables.exports import first_channels, flat_channels_first, slug_of
from f3rm.extract.tables.tables import TapStore
from f3rm.store.chunks import write_atomically
from f3rm.store.names import UnsafeNameError, safe_part
from f3rm.store.npy import map_npy

_FILE = re.compile(r"rank(\d+)_chunk(\d+)_(.+)_features\.npy")

Named = dict[Literal["features", "targets", "inds"], np.ndarray]
"""The arrays of a layer by VISSL's names."""


@dataclass(frozen=True)
class Shard:
    """The three files of one rank and chunk.

    Attributes:
        features: The file of features, whose name the others derive from.
        rank: Number of the process that wrote it.
        chunk: Its number among the files of that process.
    """

    features: Path
    rank: int
    chunk: int

    def beside(self, what: Literal["targets", "inds"]) -> Path:
        """Returns the file of targets or indices."""
        stem = self.features.name.removesuffix("features.npy")
        return self.features.with_name(f"{stem}{what}.npy")


def shards_of(input_dir: StrPath, split: str, layer: str) -> list[Shard]:
    """Lists the shards of a layer by rank and number, chunk 10 after chunk 2.

    Args:
        input_dir: The folder.
        split: Such as ``train``.
        layer: Such as ``res4``.

    Raises:
        CacheError: If there is none; the message names the splits and layers found.
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
        known = sorted({match[3] for _, match in found if match})
        msg = (
            f"{str(input_dir)!r} has no features of the split {split!r} and the layer {layer!r}, "
            f"got {', '.join(known) or 'no features'}."
        )
        raise CacheError(msg)
    return sorted(shards, key=lambda shard: (shard.rank, shard.chunk))


def load_features(
    input_dir: StrPath, split: str, layer: str, *, flatten_features: bool = False
) -> Named:
    """Reads a layer of a folder; of an item that occurs twice, the last one is taken.

    Args:
        input_dir: The folder.
        split: Such as ``train``.
        layer: Such as ``res4``.
        flatten_features: Whether the values of an item become one axis.

    Returns:
        ``features`` (items, ...), ``targets`` (items, 1) if all shards have some, and ``inds``
        (items,), ascending.

    Raises:
        CacheError: If the layer has no files, or one is damaged.
    """
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
        num_samples: Number of items; all if negative, or if there are fewer.
        seed: Seed of the draw; the result does not depend on the cut into chunks.
        flatten_features: Whether the values of an item become one axis.

    Returns:
        As :func:`load_features`.

    Raises:
        CacheError: If the layer has no files, or one is damaged.
    """
    shards = shards_of(input_dir, split, layer)
    rows = _row_table(shards)
    inds = np.array(sorted(rows), dtype=np.int64)
    if 0 <= num_samples < len(inds):
        inds = np.sort(np.random.default_rng(seed).choice(inds, num_samples, replace=False))
    features = _take([shard.features for shard in shards], rows, inds)
    found: Named = {"features": features, "inds": inds}
    if flatten_features:
        found["features"] = features.reshape(len(features), math.prod(features.shape[1:]))
    if all(shard.beside("targets").is_file() for shard in shards):
        found["targets"] = _take([shard.beside("targets") for shard in shards], rows, inds)
    return found


class ExtractedFeaturesLoader:
    """The original's name of the functions here; their arguments may be given by position."""

    @classmethod
    def load_features(
        cls,
        input_dir: StrPath,
        split: str,
        layer: str,
        flatten_features: bool = False,  # noqa: FBT001, FBT002 - the original's position
    ) -> Named:
        """Reads a layer of a folder; see :func:`load_features`."""
        return load_features(input_dir, split, layer, flatten_features=flatten_features)

    @classmethod
    def sample_features(
        cls,
        input_dir: StrPath,
        split: str,
        layer: str,
        num_samples: int,
        seed: int,
        flatten_features: bool = False,  # noqa: FBT001, FBT002 - the original's position
    ) -> Named:
        """Draws items of a layer at random; see :func:`sample_features`."""
        return sample_features(
            input_dir, split, layer, num_samples, seed, flatten_features=flatten_features
        )

    @classmethod
    def map_features_to_img_filepath(
        cls, image_paths: Sequence[StrPath], input_dir: StrPath, split: str, layer: str
    ) -> list[Path]:
        """Writes ``features_to_image/<split>/<layer>/<image>.npy``, (1, ...) each.

        Args:
            image_paths: The dataset's images; indices are positions in it.
            input_dir: The folder of the features.
            split: Such as ``train``.
            layer: Such as ``res4``.

        Raises:
            CacheError: If the layer has no files, or a file cannot be written.
            UnsafeNameError: If two images have one name.
        """
        found = load_features(input_dir, split, layer)
        folder = as_path(input_dir) / "features_to_image" / safe_part(split) / safe_part(layer)
        stems = [safe_part(as_path(image_paths[index]).stem) for index in found["inds"].tolist()]
        repeated = sorted({stem for stem in stems if stems.count(stem) > 1})
        if repeated:
            raise UnsafeNameError(
                f"Images must have different names, got {repeated[0]!r} twice. Use "
                "export_per_item, which keeps their folders."
            )
        folder.mkdir(parents=True, exist_ok=True)
        written = [folder / f"{stem}.npy" for stem in stems]
        for path, row in zip(written, found["features"], strict=True):
            _save(path, row[None])
        return written


def export_vissl(
    store: TapStore,
    output_dir: StrPath,
    *,
    layers: Mapping[str, str] | None = None,
    split: str | None = None,
    flatten: bool = False,
    chunk: int | None = None,
) -> list[Path]:
    """Writes an extraction as VISSL does, without the duplicates of its padded samplers.

    Args:
        store: The extraction.
        output_dir: Folder of the files.
        layers: Tap -> layer in the file names; None names :func:`layer_names`.
        split: Name of the split in the file names; None for the store's.
        flatten: Whether the values of an item become one axis, channel by channel.
        chunk: Items per file; None for those of the extraction's own files, so that
            ``CHUNK_THRESHOLD: 0`` gives a file per batch.

    Returns:
        The files of features. Maps have channels first; without labels there are no targets.
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
        raise UnsafeNameError(f"Layers must give different files, got {found}. Rename one.")
    written: list[Path] = []
    for tap, layer in names.items():
        for number, table in enumerate(store.batches(chunk or store.chunk_size, tap)):
            # One rank wrote everything here, whatever number of workers extracted it.
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
    """Removes an earlier export's chunks after the last one: readers prefer later chunks."""
    own = _FILE.fullmatch(last.name)
    for path in last.parent.glob("rank0_chunk*_features.npy"):
        match = _FILE.fullmatch(path.name)
        if own and match and match[3] == own[3] and int(match[2]) > int(own[2]):
            shard = Shard(path, 0, int(match[2]))
            for stale in (path, shard.beside("inds"), shard.beside("targets")):
                stale.unlink(missing_ok=True)


def layer_names(taps: tuple[str, ...]) -> dict[str, str]:
    """Returns tap -> layer in VISSL's file names; taps of one layer have their whole text."""
    layers = [Tap.parse(tap).layer for tap in taps]
    layers = ["heads" if layer == "head" else layer for layer in layers]
    return {
        tap: layer if layers.count(layer) == 1 else slug_of(tap)
        for tap, layer in zip(taps, layers, strict=True)
    }


def _row_table(shards: list[Shard]) -> dict[int, tuple[int, int]]:
    """Returns index -> (shard, row) of every item; later shards replace earlier ones."""
    rows: dict[int, tuple[int, int]] = {}
    for number, shard in enumerate(shards):
        path = shard.beside("inds")
        inds = _open(path)
        if inds.dtype.kind not in "iu":
            msg = f"{str(path)!r} must hold whole numbers, got {inds.dtype}. Export it again."
            raise CacheError(msg)
        rows.update({index: (number, row) for row, index in enumerate(inds.reshape(-1).tolist())})
    return rows


def _take(
    files: list[Path], rows: Mapping[int, tuple[int, int]], inds: Int[np.ndarray, " items"]
) -> Shaped[np.ndarray, "items ..."]:
    """Reads the rows of some items from the files of the shards."""
    where = np.array([rows[index] for index in inds.tolist()], dtype=np.int64).reshape(-1, 2)
    numbers = sorted(set(where[:, 0].tolist())) or [0]  # file 0 gives no items their shape
    arrays = {number: _open(files[number]) for number in numbers}
    row_shape = arrays[numbers[0]].shape[1:]
    for number, array in arrays.items():  # all of them before memory is allocated
        last = where[where[:, 0] == number, 1].max(initial=-1)
        if array.ndim == 0 or array.shape[1:] != row_shape or last >= len(array):
            msg = (
                f"{str(files[number])!r} must have a row of shape {row_shape} for each of its "
                f"indices, got {array.shape}. Export it again."
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
    except FileNotFoundError as error:
        raise CacheError(f"No such file: {str(path)!r}.") from error
    except (OSError, ValueError) as error:
        raise CacheError(f"{str(path)!r} is not a .npy array: {error}. Export it again.") from error


def _save(path: Path, array: np.ndarray) -> None:
    write_atomically(path, lambda stream: np.save(stream, np.ascontiguousarray(array)))
