"""Whole datasets in one call, and the function names of f3rm's earlier standalone extractor.

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
    """Feature maps indexed as ``features[image, row, col]``, read from disk on demand."""

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
                "Feature maps have a common shape only if all have one size, got "
                f"{sorted(sizes)}. Use FeatureStore.grid_size."
            )
            raise CacheError(msg)
        rows, cols = sizes.pop()
        return len(self), rows, cols, self.store.channels

    def __getitem__(
        self, where: tuple[Indices, Indices, Indices]
    ) -> Float[Tensor, "*shape channels"]:
        """Returns the features of cells.

        Args:
            where: Image, row and column of the feature map: numbers, or integer tensors of
                shapes that broadcast.

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
    """Extracts every part of a feature type for a dataset, or opens caches that are valid.

    Args:
        data: A folder with ``transforms.json``, or such a ``.json`` file.
        feature_type: For example ``"CLIP"``, ``"DINOCLIP"`` or ``"DINO+CLIP"``.
        shard_size: Images per chunk file.
        device: ``auto``, ``cpu``, ``cuda`` or ``cuda:N``.
        force: Whether to extract anew even if the cache is valid.
        cache_dir: Folder for caches, instead of the dataset folder.
        weights: Weights by type, e.g. ``{"CLIP": "/path"}`` or ``["CLIP=/path"]``.
        background: Colour behind transparent pixels.
        batch_size: Images per network call; None chooses by image size.
        codec: How features are stored: ``fp16``, ``fp32``, ``int8`` or ``pca<d>``.
        precision: Number format of the network; ``auto`` keeps an existing cache's, else takes
            the best one of the device.
        on_error: Whether an image that cannot be extracted ends the run, or is recorded.
        engine: Starts the workers, if there are several.
        workers: Number of workers; None is one, or with Ray one per GPU of the cluster.
        progress: Whether to show progress bars.
        load: Loads the backbones.

    Returns:
        The caches by name, in the order of ``feature_type``, e.g. ``{"dino": ..., "clip": ...}``.

    Raises:
        F3rmError: If dataset, feature type, device, model or disk cannot be used; the message says
            what to do.
    """
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
    """Lists the jobs of :func:`extract_features_for_dataset`, one per part of a feature type.

    Args:
        data: A folder with ``transforms.json``, or such a ``.json`` file.
        feature_type: As there.
        cache_dir: As there.
        weights: As there.
        background: As there.
        codec: As there.
        precision: As there.
        on_error: As there; with ``record`` the dataset may name images that do not exist.
        options: Further fields of :class:`~f3rm.extract.job.Job`.

    Raises:
        F3rmError: If the dataset or the feature type cannot be used.
    """
    specs = resolve_feature_type(
        feature_type, weights=weights, background=background, codec=codec, precision=precision
    )
    # With "record", images that do not exist fail later, one by one.
    items = read_items(data, present=on_error == "raise")
    return [
        Job(
            items=items,
            spec=spec,
            folder=feature_folder(data, spec, cache_dir, items=items).expanduser().resolve(),
            on_error=on_error,
            maps=True,
            **options,
        )
        for spec in specs
    ]


feature_saver = extract_features
"""The earlier extractor's name of :func:`~f3rm.extract.extraction.extract_features`."""


def feature_loader(folder: StrPath) -> LazyFeatures:
    """Opens the finished cache in a folder, e.g. ``<dataset>/features/clip``.

    Raises:
        CacheError: If there is none, or it is damaged.
    """
    return LazyFeatures(FeatureStore.open(as_path(folder)))
