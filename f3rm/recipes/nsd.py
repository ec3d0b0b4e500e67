"""Features for brain encoding on the Natural Scenes Dataset: three arrays per subject and split.

The layout is that of the feature pre-extraction of transformer_brain_encoder: a subject's folder
has ``training_split/training_images`` and ``test_split/test_images``; results are ``train.npy`` and
``synt.npy`` in the sorted order of the file names. Differences: CLIP is normalised with its own
statistics and read in its QuickGELU form, and the geometry is explicit (:data:`GEOMETRIES`).

*Source:* https://github.com/boxed-mikann/transformer_brain_encoder (the description of its files;
no code of it is used).
"""

import logging
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import torch
from jaxtyping import Shaped
from torch import Tensor
from torch.utils.data import Dataset

from f3rm.errors import BackboneRef, DatasetError, StrPath, as_path
from f3rm.extract.tables.exports import export_array
from f3rm.extract.tables.items import ItemList
from f3rm.extract.tables.run import extract
from f3rm.extract.tables.tables import FeatureSource, TapStore, samples_of
from f3rm.store.geometry import Prep
from f3rm.store.items import items_from_paths
from f3rm.store.npy import map_npy
from f3rm.store.spec import FeatureSpec

log = logging.getLogger(__name__)

NsdBackbone = Literal["dinov2_q", "dinov2", "clip"]
Geometry = Literal["pad", "stretch"]

GEOMETRIES: Mapping[Geometry, Prep] = {
    "pad": Prep(resize="none", fit="pad"),
    "stretch": Prep(resize="exact", size=224),
}
"""``pad`` keeps the pixels and adds zeros up to whole patches: 425 pixels give 31 x 31 + 1 = 962
tokens. ``stretch`` resizes to 224 x 224: 16 x 16 + 1 = 257 tokens."""

SPLITS: Mapping[str, str] = {
    "train": "training_split/training_images",
    "synt": "test_split/test_images",
}
"""Name of the array -> folder of its images; ``synt`` is optional."""

_SUBJECT = re.compile(r"subj(\d+)")
_MAP_AXES = 4  # (items, rows, cols, channels)
_DINO = BackboneRef("dinov2", "facebook/dinov2-base", "facebook/dinov2-base")
_CLIP = BackboneRef("clip", "ViT-L-14-quickgelu", "openai")
_TAPS: Mapping[NsdBackbone, tuple[BackboneRef, str, Geometry]] = {
    "dinov2_q": (_DINO, "{layer}:query@{select}", "pad"),
    "dinov2": (_DINO, "{layer}@{select}|norm", "pad"),
    "clip": (_CLIP, "final@{select}|proj", "stretch"),
}


def nsd_spec(
    backbone: NsdBackbone = "dinov2_q",
    *,
    enc_layer: int = -1,
    geometry: Geometry | None = None,
    class_token: bool = True,
    weights: str = "",
    model: str = "",
) -> FeatureSpec:
    """Returns the specification of one of the three arrays: tokens with the class token first.

    Args:
        backbone: ``dinov2_q``: queries of a block of DINOv2 ViT-B/14, heads concatenated;
            ``dinov2``: its tokens after the final norm; ``clip``: projected tokens of CLIP
            ViT-L/14.
        enc_layer: The block, from the end if negative; CLIP has only the last.
        geometry: Preparation of the images; None for ``pad`` with DINOv2 (962 tokens of 425 x 425
            pixels) and ``stretch`` with CLIP (257 tokens).
        class_token: Whether the class token comes first. The original guide has it in all three
            arrays; its program leaves it out of ``dinov2`` (961 tokens).
        weights: A local copy of the weights; empty for the usual ones.
        model: Another model of the family; empty for the usual one.

    Raises:
        DatasetError: If ``backbone`` or ``geometry`` is unknown.
    """
    for name, value, known in (
        ("backbone", backbone, get_args(NsdBackbone)),
        ("geometry", geometry, (*get_args(Geometry), None)),
    ):
        if value not in known:
            msg = f"{name} must be one of {', '.join(map(str, known))}, got {value!r}."
            raise DatasetError(msg)
    select = "all" if class_token else "patch"
    ref, tap, usual = _TAPS[backbone]
    ref = replace(ref, model=model or ref.model, weights=weights or ref.weights)
    taps = (tap.format(layer=enc_layer, select=select),)
    return FeatureSpec(ref, taps, GEOMETRIES[geometry or usual], precision="float32")


def result_name(backbone: NsdBackbone, enc_layer: int = -1) -> str:
    """Returns the name of the folder in which the original program puts an array."""
    layer = "last" if enc_layer == -1 else str(enc_layer)
    return "clip_vit_512" if backbone == "clip" else f"{backbone}_{layer}"


def nsd_items(data: StrPath, subject: str, split: str) -> ItemList | None:
    """Lists the images of a subject, sorted by name; None if ``synt`` is missing.

    Args:
        data: The dataset: the folder of the subject, or that of all subjects (``subj01``, ...).
        subject: Such as ``"01"``.
        split: ``train`` or ``synt``.

    Raises:
        DatasetError: If there is no such subject, or there are no training images.
    """
    folder = _subject_folder(as_path(data), subject) / SPLITS[split]
    paths = sorted(folder.glob("*.png"))
    if not paths and split == "train":
        msg = f"No *.png files in {str(folder)!r}. Check the dataset's folder and the subject."
        raise DatasetError(msg)
    return ItemList(tuple(items_from_paths(paths, folder))) if paths else None


def _subject_folder(data: Path, subject: str) -> Path:
    """Returns a subject's folder: in that of all subjects, or the given one."""
    if not data.is_dir():
        raise DatasetError(f"No such folder: {str(data)!r}.")
    if not re.fullmatch(r"\w+", subject):
        raise DatasetError(f"A subject must be a number such as 01, got {subject!r}.")
    found = sorted(folder.name for folder in data.glob("subj*") if folder.is_dir())
    if f"subj{subject}" in found:
        return data / f"subj{subject}"
    own = _SUBJECT.fullmatch(data.name)
    if found or (own and own[1] != subject):  # never another subject's images under this name
        known = ", ".join(found or [data.name])
        raise DatasetError(f"No subject {subject!r} in {str(data)!r}, got {known}. Name one.")
    return data


def extract_nsd(
    data: StrPath,
    out: StrPath,
    spec: FeatureSpec,
    name: str,
    *,
    subjects: Sequence[str] = ("01",),
    **options: Any,
) -> dict[str, dict[str, TapStore]]:
    """Extracts one array of several subjects and writes it in the original layout.

    Args:
        data: The dataset, as for :func:`nsd_items`.
        out: Results go to ``out/<name>/<subject>/train.npy`` and ``synt.npy``; the extraction that
            can be resumed and opened is in ``out/<name>/<subject>/store``.
        spec: The specification, e.g. of :func:`nsd_spec`.
        name: Name of the array, e.g. of :func:`result_name`.
        subjects: Such as ``("01", "02")``.
        options: Further options of :func:`f3rm.extract.tables.run.extract`.

    Returns:
        Stores by subject and split.

    Raises:
        F3rmError: If the data, the model, the device or the disk cannot be used.
    """
    data = as_path(data)
    out = as_path(out)
    if len({_subject_folder(data, subject) for subject in subjects}) < len(subjects):
        found = ", ".join(subjects)
        msg = f"{str(data)!r} must have a folder subj01, ... per subject, got subjects {found}."
        raise DatasetError(msg)
    stores: dict[str, dict[str, TapStore]] = {}
    for subject in subjects:
        folder = out / name / subject
        stores[subject] = {}
        for split in SPLITS:
            items = nsd_items(data, subject, split)
            if items is None:
                log.warning("Subject %s has no images for %s.npy.", subject, split)
                continue
            store = extract(items, spec, folder / "store", split=split, **options)
            export_array(store, folder / f"{split}.npy", transform=_tokens_of)
            stores[subject][split] = store
    return stores


def _tokens_of(features: Shaped[np.ndarray, "items ..."]) -> Shaped[np.ndarray, "items ..."]:
    """Puts the cells of maps into one axis, row by row, as in the original arrays."""
    return features.reshape(len(features), -1, features.shape[-1])


class NsdDataset(Dataset[dict[str, Tensor]]):
    """Inputs of a brain encoder: maps with channels first, from a store or computed on demand.

    Attributes:
        maps: Tokens with the class token first, which is dropped, or maps without one.
        vectors: Tokens whose first one is appended to every cell (``cat_clip``).
    """

    def __init__(
        self, maps: FeatureSource | None = None, vectors: FeatureSource | None = None
    ) -> None:
        """Reads nothing yet.

        Args:
            maps: Such as DINOv2's array; None gives the repeated vectors alone.
            vectors: Such as CLIP's array; None gives the maps alone.

        Raises:
            DatasetError: If there is no source, or the two have different items.
        """
        sources = [source for source in (maps, vectors) if source is not None]
        names = [[source.items.names[index] for index in source.indices] for source in sources]
        if not sources or any(other != names[0] for other in names):
            found = "sources of different images" if sources else "no source"
            raise DatasetError(f"maps and vectors must be of the same images, got {found}.")
        self.maps = maps
        self.vectors = vectors
        self._sources = sources

    def __len__(self) -> int:
        """Returns the number of images."""
        return len(self._sources[0].indices)

    def __getitem__(self, number: int) -> dict[str, Tensor]:
        """Returns ``features`` (channels, rows, cols) and ``index`` of an image."""
        return self.__getitems__([number])[0]

    def __getitems__(self, numbers: list[int]) -> list[dict[str, Tensor]]:
        """Returns a batch of images.

        Raises:
            ValueError: If the tokens fill no square.
        """
        tables = [source.take(source.indices[numbers]) for source in self._sources]
        tokens = [torch.from_numpy(table.features).float() for table in tables]
        maps = tokens[0] if tokens[0].ndim == _MAP_AXES else _map_of_tokens(tokens[0])
        if self.vectors is not None:
            vectors = tokens[-1][:, 0]  # (items, channels): the class token, projected
            tiled = vectors[:, None, None].expand(-1, *maps.shape[1:3], -1)
            maps = tiled if self.maps is None else torch.cat([maps, tiled], dim=-1)
        return samples_of(tables[0], maps.movedim(-1, 1))  # (items, channels, rows, cols)


def _map_of_tokens(
    tokens: Shaped[Tensor, "items tokens channels"],
) -> Shaped[Tensor, "items rows cols channels"]:
    """Drops the class token and puts the patches of a square input on their grid."""
    num_patches = tokens.shape[1] - 1
    side = math.isqrt(num_patches)
    if side < 1 or side * side != num_patches:
        msg = (
            f"{num_patches} patches fill no square. Extract maps: class_token=False in nsd_spec, "
            "or a tap with @patch."
        )
        raise ValueError(msg)
    return tokens[:, 1:].unflatten(1, (side, side))


class AlgonautsDataset(Dataset[Tensor]):
    """Saved features as a brain encoder reads them: maps (channels, rows, cols), float32.

    The files are those of :func:`extract_nsd`, or of the original program. They stay on disk.

    Attributes:
        fts_subj_train: Tokens (images, 1 + rows * cols, channels), the class token first; None
            with ``clip``.
        clip_subj_train: CLIP's vectors (images, channels) or its tokens; None without ``cat_clip``.
    """

    def __init__(
        self,
        saved_feats: str = "dinov2q",
        saved_feats_dir: StrPath = ".",
        subj: str | int = "01",
        *,
        split: str = "train",
        cat_clip: bool = True,
        idxs: Sequence[int] | None = None,
        side: int = 31,
    ) -> None:
        """Opens the files.

        Args:
            saved_feats: ``dinov2q``; ``dinov2``; or ``clip``, its vector repeated over the map.
            saved_feats_dir: Folder with ``dinov2_q_last``, ``dinov2_last`` and ``clip_vit_512``.
            subj: The subject, 1 or ``"01"``.
            split: ``train`` or ``synt``.
            cat_clip: Whether CLIP's vector is appended to every cell of DINOv2's map.
            idxs: Rows of the files, in the order of the dataset; None takes all.
            side: Rows and columns of the map of ``clip`` alone.

        Raises:
            DatasetError: If ``saved_feats`` is unknown, or a file is missing, damaged or does not
                fit the others.
        """
        folders = {"dinov2q": "dinov2_q_last", "dinov2": "dinov2_last", "clip": None}
        if saved_feats not in folders or split not in SPLITS:
            known = f"saved_feats must be one of {', '.join(folders)}, split of {', '.join(SPLITS)}"
            raise DatasetError(f"{known}, got {saved_feats!r} and {split!r}.")
        root, name = as_path(saved_feats_dir), folders[saved_feats]
        file = f"{int(subj):02d}/{split}.npy"
        self.fts_subj_train = None if name is None else _saved(root / name / file, axes=(3,))
        with_clip = cat_clip or name is None
        clip_file = root / "clip_vit_512" / file
        self.clip_subj_train = _saved(clip_file, axes=(2, 3)) if with_clip else None
        arrays = (self.fts_subj_train, self.clip_subj_train)
        lengths = {len(array) for array in arrays if array is not None}
        if len(lengths) > 1:
            raise DatasetError(
                f"{str(root)!r} must have DINOv2's and CLIP's features of the same images, got "
                f"{' and '.join(map(str, sorted(lengths)))} of subject {subj}. Extract both again."
            )
        self.idxs = range(lengths.pop()) if idxs is None else list(idxs)
        self._side = side

    def __len__(self) -> int:
        """Returns the number of images."""
        return len(self.idxs)

    def __getitem__(self, number: int) -> Tensor:
        """Returns an image's map (channels, rows, cols).

        Raises:
            ValueError: If its tokens fill no square.
        """
        row = self.idxs[number]
        maps: list[Tensor] = []
        sides = (self._side, self._side)
        if self.fts_subj_train is not None:
            tokens = torch.tensor(self.fts_subj_train[row]).float()[None]
            (cells,) = _map_of_tokens(tokens)  # (rows, cols, channels)
            maps, sides = [cells], cells.shape[:2]
        if self.clip_subj_train is not None:
            vector = torch.tensor(self.clip_subj_train[row]).float()
            vector = vector if vector.ndim == 1 else vector[0]  # the class token, projected
            maps.append(vector.expand(*sides, -1))
        return torch.cat(maps, dim=-1).permute(2, 0, 1)


algonauts_dataset = AlgonautsDataset
"""The original's name of :class:`AlgonautsDataset`."""


def _saved(path: Path, *, axes: tuple[int, ...]) -> Shaped[np.ndarray, "images ..."]:
    """Maps an array of saved features into memory."""
    try:
        array = map_npy(path)
    except FileNotFoundError as error:
        msg = f"No saved features at {str(path)!r}. Extract them: f3rm nsd --data_dir DIR ..."
        raise DatasetError(msg) from error
    except (OSError, ValueError) as error:
        msg = f"{str(path)!r} is not a .npy array: {error}. Extract it again."
        raise DatasetError(msg) from error
    if array.ndim not in axes or array.dtype.kind != "f":
        msg = f"{str(path)!r} must hold tokens or vectors of images, got {array.shape}."
        raise DatasetError(msg)
    return array
