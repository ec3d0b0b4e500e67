"""The data manager: Nerfstudio's rays and pixels, and beside them rows of the feature store.

It looks up and nothing else: extraction, geometry and files belong to :mod:`f3rm.extract`. Rows
are keyed by image, so how a dataparser splits, orders or downscales the images does not matter.
"""

import contextlib
import functools
import logging
import shutil
import tempfile
import weakref
from collections.abc import Callable, Generator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import torch
from nerfstudio.cameras.cameras import Cameras
from nerfstudio.cameras.rays import RayBundle
from nerfstudio.data.datamanagers.base_datamanager import (
    VanillaDataManager,
    VanillaDataManagerConfig,
    variable_res_collate,
)
from nerfstudio.data.dataparsers.base_dataparser import DataParserConfig, DataparserOutputs
from nerfstudio.data.dataparsers.nerfstudio_dataparser import NerfstudioDataParserConfig
from nerfstudio.data.datasets.base_dataset import InputDataset
from nerfstudio.engine.callbacks import TrainingCallback, TrainingCallbackAttributes
from torch import Tensor

from f3rm.errors import BackboneUnavailableError, HeadSpec
from f3rm.extract.cache import feature_folder, find_cache
from f3rm.extract.extraction import extract_features
from f3rm.extract.job import OnError
from f3rm.feature_field import FeatureStats, output_key
from f3rm.store.gather import MappedRows
from f3rm.store.items import (
    ImageItem,
    check_present,
    dataset_root,
    items_from_paths,
    read_items,
)
from f3rm.store.placement import Placement
from f3rm.store.reader import FeatureStore, GatherMode, place_stores
from f3rm.store.spec import Background, FeatureSpec, Precision, resolve_feature_type
from f3rm.training.eval_loaders import HOLD_OUT, FixedEvalLoader, RandomEvalLoader, check_held_out
from f3rm.training.left_out import check_trainable, images_left_out, kept_items, kept_outputs
from f3rm.training.lookup import FeatureLookup, ImageTargets, match_items
from f3rm.training.prefetch import Prefetcher
from f3rm.training.segments import Segments

logger = logging.getLogger(__name__)

_STATS_ROWS = 1 << 14
_SPLITS = ("train", "val", "test")


@dataclass
class FeatureDataManagerConfig(VanillaDataManagerConfig):
    """Nerfstudio's data manager, and where the features come from."""

    _target: type = field(default_factory=lambda: FeatureDataManager)
    feature_type: str = "CLIP"
    """CLIP, DINO, DINOV2, ROBOPOINTproj, ... (``f3rm models``), or several joined by ``+``."""
    enable_cache: bool = True
    """Whether extracted features are kept in the dataset's folder for the next run."""
    feature_cache_dir: Path | None = None
    """Another folder for them, e.g. where the dataset's folder is read-only."""
    weights: tuple[str, ...] = ()
    """Weights other than the default, by type: ``CLIP=PATH DINO=PATH``."""
    feature_sampling: GatherMode = "nearest"
    """How a pixel reads the feature map: the cell that it is in, or four cells blended."""
    feature_masks: Path | None = None
    """Folder of segments, a .png or .npz for each image: training targets are averaged over them;
    docs/training.md describes the files."""
    feature_background: Background = "black"
    """What images with alpha are composited over: ``black`` is what Nerfacto's default trains on;
    give ``white`` together with ``--pipeline.model.background-color white``."""
    shard_size: int = 64
    """Images per file of the feature cache."""
    feature_codec: str = "fp16"
    """How they are stored: ``fp16``, ``fp32``, ``int8`` or ``pca<d>``, e.g. ``pca128``; as with
    ``f3rm extract --codec``."""
    feature_precision: Precision = "auto"
    """What the 2D model computes in; ``auto`` takes what is cached, else what suits the device; as
    with ``f3rm extract --precision``."""
    feature_on_error: OnError = "raise"
    """Whether an image that cannot be extracted ends the run before training, or is left out of
    training and evaluation (``record``); as with ``f3rm extract --on-error``, after which training
    leaves out what was recorded."""
    feature_left_out: tuple[str, ...] = ()
    """Images that are neither trained on nor evaluated, by their ``file_path``. Those without
    features are added when training starts, so that the run's config.yml names them."""
    feature_device: str = "auto"
    """Device that extracts: ``cpu``, ``cuda``, ``cuda:1``, or ``auto``: the GPU that trains (with
    several, each process its own), else any GPU, else the CPU."""
    feature_residence: Placement = "auto"
    """Where features are while training: ``mmap`` reads them from the cache's files, ``gpu`` and
    ``ram`` hold all of them there, ``auto`` is ``gpu`` if they fit the budget and else ``mmap``."""
    feature_budget_gb: float | None = None
    """GiB that features may take on the GPU or in RAM; by default 30 % of the free GPU memory, or
    50 % of the available RAM."""
    feature_prefetch: bool = True
    """Whether a thread reads features from files while the model renders; the batches are the same
    either way."""


class FeatureDataManager(VanillaDataManager[InputDataset]):
    """Nerfstudio's data manager with target features in every batch.

    A training or evaluation batch of rays has ``feature`` (rays, channels), or ``feature_<name>``
    with several feature types; an evaluation image has ``feature_targets``. Features are extracted
    when training starts without a valid cache; a run that is only opened uses the cache if it is
    valid and goes without features otherwise.
    """

    config: FeatureDataManagerConfig  # pyright: ignore[reportIncompatibleVariableOverride]

    def __init__(
        self,
        config: FeatureDataManagerConfig,
        device: torch.device | str = "cpu",
        test_mode: Literal["test", "val", "inference"] = "val",
        world_size: int = 1,
        local_rank: int = 0,
        **kwargs: Any,
    ) -> None:
        self.specs = resolve_feature_type(
            config.feature_type,
            weights=config.weights,
            background=config.feature_background,
            codec=config.feature_codec,
            precision=config.feature_precision,
        )
        data = Path(config.data if config.data is not None else config.dataparser.data)
        self.items: list[ImageItem] = []
        self.stores: dict[str, FeatureStore] = {}
        if test_mode != "inference" or config.feature_left_out:
            self.items = _list_items(data, config.dataparser)
        if test_mode != "inference":  # which opens no image
            extract = functools.partial(
                extract_features,
                device=_extraction_device(config.feature_device, device),
                shard_size=config.shard_size,
                progress=local_rank == 0,
                on_error=config.feature_on_error,
            )
            self.stores = self._open_stores(config, data, extract if test_mode == "val" else None)
            config.feature_left_out = images_left_out(
                config.feature_left_out, self.stores.values(), len(self.items)
            )
            check_present(kept_items(self.items, config.feature_left_out), data)
        super().__init__(config, device, test_mode, world_size, local_rank, **kwargs)
        self._lookups: dict[str, FeatureLookup] = {}
        self._prefetcher: Prefetcher[RayBundle] | None = None
        if not len(self.eval_dataset) and test_mode != "inference":  # setup_eval was not called
            self._make_eval_loaders()
            if test_mode == "val":
                logger.warning("No evaluation images: evaluation is skipped. %s", HOLD_OUT)
        if self.stores:
            if test_mode == "val":  # else the checkpoint brings heads and statistics
                self._publish()
                self._place_features()
            self._lookups["train"] = self._make_lookup(self.train_dataset)
            if test_mode == "val" and config.feature_masks is not None:
                self._pool_targets(config.feature_masks)
            self._lookups["eval"] = self._make_lookup(self.eval_dataset)

    def _open_stores(
        self,
        config: FeatureDataManagerConfig,
        data: Path,
        extract: Callable[..., FeatureStore] | None,
    ) -> dict[str, FeatureStore]:
        """Opens the caches; ``extract`` makes missing ones, without it there are no features."""
        stores: dict[str, FeatureStore] = {}
        cache_dir = config.feature_cache_dir
        if extract and not config.enable_cache:
            cache_dir = Path(tempfile.mkdtemp(prefix="f3rm-features-"))
            weakref.finalize(self, shutil.rmtree, cache_dir, ignore_errors=True)
        for spec in self.specs:
            folder = feature_folder(data, spec, cache_dir, items=self.items)
            if extract:
                stores[spec.name] = self._open_or_extract(config, data, spec, folder, extract)
                continue
            try:
                store, reason = find_cache(self.items, spec, folder, failed_too=True)
            except BackboneUnavailableError as error:  # weights that were given by path are gone
                store, reason = None, str(error)
            if store is None:
                logger.warning("No feature metrics: %s", reason)
                return {}
            stores[spec.name] = store
        return stores

    def _open_or_extract(
        self,
        config: FeatureDataManagerConfig,
        data: Path,
        spec: FeatureSpec,
        folder: Path,
        extract: Callable[..., FeatureStore],
    ) -> FeatureStore:
        """Opens a cache, images that failed or not; extracts what is missing."""
        store, _ = find_cache(self.items, spec, folder, failed_too=True)
        if store is not None and store.manifest.failed:
            return store
        if config.feature_on_error == "raise":
            check_present(self.items, data)
        return extract(self.items, spec, folder=folder)

    def create_train_dataset(self) -> InputDataset:
        """Returns the training images that are not left out.

        Raises:
            DatasetError: If all of them are.
        """
        kept = self._kept_outputs(self.train_dataparser_outputs)
        self.train_dataparser_outputs = check_trainable(kept)
        return super().create_train_dataset()

    def create_eval_dataset(self) -> InputDataset:
        """Returns the evaluation images that are not left out."""
        outputs = self.dataparser.get_dataparser_outputs(split=self.test_split)
        return self.dataset_type(
            dataparser_outputs=self._kept_outputs(outputs),
            scale_factor=self.config.camera_res_scale_factor,
        )

    def _kept_outputs(self, outputs: DataparserOutputs) -> DataparserOutputs:
        return kept_outputs(outputs, self.items, self.config.feature_left_out)

    def get_training_callbacks(
        self, training_callback_attributes: TrainingCallbackAttributes
    ) -> list[TrainingCallback]:
        """Writes the run's config.yml once more, with the names of images that were left out.

        Opening the run needs as many training cameras as it was trained with.
        """
        trainer = training_callback_attributes.trainer
        if self.config.feature_left_out and trainer is not None and self.local_rank == 0:
            trainer.config.save_config()
        return super().get_training_callbacks(training_callback_attributes)

    def _publish(self) -> None:
        """Tells the model, through the dataset's metadata, which heads to build."""
        metadata = self.train_dataset.metadata
        metadata["feature_heads"] = [
            HeadSpec(
                name=spec.name,
                channels=self.stores[spec.name].channels,
                has_text=self.stores[spec.name].manifest.has_text,
                backbone=spec.backbone,
                identity=f"{self.stores[spec.name].manifest.weights_identity} {spec.taps[0]}",
            )
            for spec in self.specs
        ]
        metadata["feature_stats"] = {
            name: FeatureStats.fit(store.sample(_STATS_ROWS, seed=0))
            for name, store in self.stores.items()
        }

    def _pool_targets(self, folder: Path) -> None:
        """Averages the training images' targets over segments; evaluation keeps the plain ones."""
        names = match_items(self.train_dataset.image_filenames, self.items)
        segments = Segments.read(folder, names)
        for name in self.stores:
            self._lookups["train"].pool(name, segments)

    def _place_features(self) -> None:
        """Places the rows in GPU memory, RAM or files, and starts the prefetch for files."""
        gigabytes = self.config.feature_budget_gb
        budget = None if gigabytes is None else int(gigabytes * (1 << 30))
        wanted, device = self.config.feature_residence, torch.device(self.device)
        self.stores = place_stores(self.stores, wanted, device=device, budget=budget)
        mapped = all(isinstance(store.rows, MappedRows) for store in self.stores.values())
        if self.config.feature_prefetch and mapped:
            loader = self.train_image_dataloader
            ahead = loader.cache_all_images and not self.config.images_on_gpu
            self._prefetcher = Prefetcher(ahead=ahead)
            weakref.finalize(self, self._prefetcher.close)

    def _make_lookup(self, dataset: InputDataset) -> FeatureLookup:
        cameras = dataset.cameras
        return FeatureLookup(
            self.stores,
            names=match_items(dataset.image_filenames, self.items),
            sizes=torch.cat((cameras.height, cameras.width), dim=-1).cpu(),
            mode=self.config.feature_sampling,
        )

    def setup_eval(self) -> None:
        """Sets up evaluation with the collation that the evaluation cameras need.

        Nerfstudio chooses it by the training cameras alone, and fails on one portrait among
        landscape evaluation images.
        """
        with self._collation(self.eval_dataset.cameras):
            super().setup_eval()
        self._make_eval_loaders()

    def _make_eval_loaders(self) -> None:
        loaders = (self.eval_dataset, self.device, self.eval_targets)
        self.fixed_indices_eval_dataloader = FixedEvalLoader(*loaders)
        self.eval_dataloader = RandomEvalLoader(*loaders)

    @contextlib.contextmanager
    def _collation(self, cameras: Cameras) -> Generator[None]:
        chosen = self.config.collate_fn
        sizes = torch.cat((cameras.height, cameras.width), dim=-1).unique(dim=0)
        if len(sizes) > 1:
            self.config.collate_fn = variable_res_collate
        try:
            yield
        finally:
            self.config.collate_fn = chosen

    def next_train(self, step: int) -> tuple[RayBundle, dict[str, Any]]:
        """Returns rays and pixels of the next training batch, with their features.

        With prefetch the features may still be on their way; asking for them waits.
        """
        if self._prefetcher is None:
            bundle, batch = super().next_train(step)
            return bundle, self._with_features(batch, "train")
        plain, count = super().next_train, self.train_count
        sampler = self.train_pixel_sampler
        settings = (sampler, sampler and sampler.num_rays_per_batch)
        drawn = self._prefetcher.next(
            lambda: plain(step), self._look_ups("train"), settings=settings
        )
        self.train_count = count + 1  # however many batches have been drawn ahead
        return drawn

    def next_eval(self, step: int) -> tuple[RayBundle, dict[str, Any]]:
        """Returns rays and pixels of the next evaluation batch, with their features.

        Raises:
            DatasetError: If there are no evaluation images.
        """
        check_held_out(self.eval_dataset)
        bundle, batch = super().next_eval(step)
        return bundle, self._with_features(batch, "eval")

    def _with_features(self, batch: dict[str, Any], split: str) -> dict[str, Any]:
        for key, look_up in self._look_ups(split).items():
            batch[key] = look_up(batch["indices"])
        return batch

    def _look_ups(self, split: str) -> dict[str, Callable[[Tensor], Tensor]]:
        """Returns a function from ray indices to features for each feature entry of a batch."""
        lookup = self._lookups.get(split)
        if lookup is None:
            return {}
        names = list(lookup.stores)
        return {
            output_key("feature", name, len(names)): functools.partial(
                lookup.features, name, device=self.device
            )
            for name in names
        }

    def eval_targets(self, index: int) -> ImageTargets | None:
        """Returns the target features of an evaluation image, or None without a valid cache."""
        lookup = self._lookups.get("eval")
        return ImageTargets(lookup, index) if lookup else None


def _extraction_device(wanted: str, training: torch.device | str) -> str:
    """Returns the device that extracts; ``auto`` is the GPU that this process trains on."""
    own = torch.device(training)
    return str(own) if wanted == "auto" and own.type == "cuda" else wanted


def _list_items(data: Path, dataparser: DataParserConfig) -> list[ImageItem]:
    """Lists every image of a dataset, whatever its split.

    Nerfstudio's own format is read from transforms.json; any other dataparser is asked.
    """
    if isinstance(dataparser, NerfstudioDataParserConfig):
        return read_items(data, present=False)
    parser = replace(dataparser, data=data).setup()
    paths = [
        path
        for split in _SPLITS
        for path in parser.get_dataparser_outputs(split=split).image_filenames
    ]
    return items_from_paths(paths, dataset_root(data))
