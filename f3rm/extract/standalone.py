"""Whole datasets in one call, and the names of f3rm's earlier standalone extractor.

:func:`extract_features_for_dataset` is the work behind ``f3rm extract``. :class:`LazyFeatures`,
:func:`feature_saver` and :func:`feature_loader` are thin names over
:class:`~f3rm.store.reader.FeatureStore` and :func:`~f3rm.extract.extraction.extract_features`;
new code uses these directly.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from f3rm.backbones.registry import load_backbone
from f3rm.errors import CacheError, StrPath, as_path
from f3rm.extract.cache import feature_folder
from f3rm.extract.engines import Engine, run_with
from f3rm.extract.extraction import extract_features
from f3rm.extract.job import Job, LoadBackbone, OnError
from f3rm.store.items import read_items
from f3rm.store.reader import FeatureStore
from f3rm.store.spec import Background, Precision, resolve_feature_type

Indices = int | Int[Tensor, "..."]


class LazyFeatures:
    """Feature maps addressed as ``features[image, row, col]``, read from disk when asked for."""

    def __init__(self, store: FeatureStore) -> None:
        """Wraps an open cache."""
        self.store = store

    def __len__(self) -> int:
        """Returns the number of images."""
        return len(self.store)

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """Images, rows, columns, channels.

        Raises:
            CacheError: If the images have maps of different sizes.
        """
        sizes = {self.store.grid_size(index) for index in range(len(self))}
        if len(sizes) > 1:
            msg = (
                f"LazyFeatures.shape: all maps must have one size, got {sorted(sizes)}. Use "
                "FeatureStore.grid_size."
            )
            raise CacheError(msg)
        rows, cols = sizes.pop()
        return len(self), rows, cols, self.store.channels

    def __getitem__(
        self, where: tuple[Indices, Indices, Indices]
    ) -> Float[Tensor, "*shape channels"]:
        """Returns the features of cells.

        Args:
            where: Image, row and column of the feature map: numbers, or integer tensors that
                broadcast together.

        Raises:
            IndexError: If an index is out of range.
        """
        images, rows, cols = torch.broadcast_tensors(*(torch.as_tensor(part) for part in where))
        found = self.store.cells(images.flatten(), rows.flatten(), cols.flatten())
        return found.reshape(*images.shape, self.store.channels)


def extract_features_for_dataset(  # noqa: PLR0913 - the command line's choices, by keyword
    data: StrPath,
    feature_type: str = "CLIP",
    *,
    shard_size: int = 64,
    device: str = "auto",
    force: bool = False,
    cache_dir: StrPath | None = None,
    weights: Mapping[str, str] | Sequence[str] = (),
    background: Background = "black",
    batch_size: int | None = None,
    codec: str = "fp16",
    precision: Precision = "auto",
    on_error: OnError = "raise",
    engine: Engine = "local",
    workers: int | None = None,
    progress: bool = True,
    load: LoadBackbone = load_backbone,
) -> dict[str, FeatureStore]:
    """Extracts every part of a feature type for a dataset, or opens what is there already.

    Args:
        data: A folder with ``transforms.json``, or such a ``.json`` file.
        feature_type: E.g. ``"CLIP"``, ``"DINOCLIP"`` or ``"DINO+CLIP"``.
        shard_size: Images per chunk file.
        device: ``auto``, ``cpu``, ``cuda`` or ``cuda:N``.
        force: Whether to extract anew even if the cache is valid.
        cache_dir: Where caches go instead of the dataset folder.
        weights: Weights by type, e.g. ``{"CLIP": "/path"}`` or ``["CLIP=/path"]``.
        background: What shows through where an image has alpha.
        batch_size: Images per network call; None chooses by image size.
        codec: How features are stored: ``fp16``, ``fp32``, ``int8`` or ``pca<d>``.
        precision: What the network computes in; ``auto`` takes what is cached, else what suits
            the device.
        on_error: Whether an image that cannot be extracted ends the run, or is left out and noted.
        engine: Who starts several workers.
        workers: How many; None is one, or with Ray one per GPU of the cluster.
        progress: Whether to show progress bars.
        load: Loads the backbones.

    Returns:
        The caches by name, in the order of ``feature_type``, e.g. ``{"dino": ..., "clip": ...}``.

    Raises:
        F3rmError: If dataset, names, device, model or disk are not right; it says what to do.
    """
    data = as_path(data)
    cache_dir = None if cache_dir is None else as_path(cache_dir)
    jobs = jobs_for_dataset(
        data,
        feature_type,
        cache_dir=cache_dir,
        weights=weights,
        background=background,
        codec=codec,
        precision=precision,
        on_error=on_error,
        shard_size=shard_size,
        device=device,
        force=force,
        batch_size=batch_size,
        progress=progress,
    )
    return {job.spec.name: run_with(job, engine=engine, workers=workers, load=load) for job in jobs}


def jobs_for_dataset(
    data: StrPath,
    feature_type: str = "CLIP",
    *,
    cache_dir: StrPath | None = None,
    weights: Mapping[str, str] | Sequence[str] = (),
    background: Background = "black",
    codec: str = "fp16",
    precision: Precision = "auto",
    on_error: OnError = "raise",
    **options: Any,
) -> list[Job]:
    """Lists what :func:`extract_features_for_dataset` does, one job per part of a feature type.

    Args:
        data: A folder with ``transforms.json``, or such a ``.json`` file.
        feature_type: E.g. ``"CLIP"``, ``"DINOCLIP"`` or ``"DINO+CLIP"``.
        cache_dir: Where caches go instead of the dataset folder.
        weights: Weights other than the default, by type.
        background: What shows through where an image has alpha.
        codec: How features are stored.
        precision: What the network computes in; ``auto`` takes what is cached, else what suits
            the device.
        on_error: What happens to images that cannot be extracted.
        options: Further fields of :class:`~f3rm.extract.job.Job`.

    Raises:
        F3rmError: If something is wrong with the dataset or the names.
    """
    data = as_path(data)
    cache_dir = None if cache_dir is None else as_path(cache_dir)
    specs = resolve_feature_type(
        feature_type, weights=weights, background=background, codec=codec, precision=precision
    )
    items = read_items(data, present=on_error == "raise")
    return [
        Job(
            items=items,
            spec=spec,
            folder=feature_folder(data, spec, cache_dir, items=items).expanduser().resolve(),
            on_error=on_error,
            **options,
        )
        for spec in specs
    ]


feature_saver = extract_features
"""Extracts into a folder: the older name of :func:`~f3rm.extract.extraction.extract_features`."""


def feature_loader(folder: StrPath) -> LazyFeatures:
    """Opens the finished cache in a folder, e.g. ``<dataset>/features/clip``.

    Raises:
        CacheError: If there is none, or it is damaged.
    """
    folder = as_path(folder)
    return LazyFeatures(FeatureStore.open(folder))
