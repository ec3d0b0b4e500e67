"""Data managers of an opened run: cameras, names and features, without reading a photograph."""

from collections.abc import Callable
from dataclasses import fields
from pathlib import Path

from nerfstudio.data.datamanagers.base_datamanager import (
    VanillaDataManager,
    VanillaDataManagerConfig,
)
from nerfstudio.data.dataparsers.nerfstudio_dataparser import NerfstudioDataParserConfig
from nerfstudio.data.datasets.base_dataset import InputDataset
from nerfstudio.engine.trainer import TrainerConfig

from f3rm.feature_datamanager import FeatureDataManager, FeatureDataManagerConfig
from f3rm.store.items import is_regular_file, read_items
from f3rm.store.reader import FeatureStore


class _WithoutPhotographs:
    """Sets up no loaders, which would read all photographs."""

    reads_photographs = False

    def setup_train(self) -> None:
        """Reads nothing."""

    def setup_eval(self) -> None:
        """Reads nothing."""


class _OpenedManager(_WithoutPhotographs, VanillaDataManager[InputDataset]):
    pass


class _OpenedFeatureManager(_WithoutPhotographs, FeatureDataManager):
    def _open_stores(
        self,
        config: FeatureDataManagerConfig,
        data: Path,
        extract: Callable[..., FeatureStore] | None,
    ) -> dict[str, FeatureStore]:
        # A cache is valid if it fits the photographs.
        is_there = is_regular_file(self.items[0].path)
        return super()._open_stores(config, data, extract) if is_there else {}


def use_opened_manager(config: TrainerConfig, data: Path) -> None:
    """Replaces a run's data manager by one that reads no photograph and starts no process.

    Args:
        config: The run's configuration, which is changed.
        data: The dataset.
    """
    manager = config.pipeline.datamanager
    has_features = isinstance(manager, FeatureDataManagerConfig)
    kind = FeatureDataManagerConfig if has_features else VanillaDataManagerConfig
    values = {each.name: getattr(manager, each.name) for each in fields(kind)}
    values["_target"] = _OpenedFeatureManager if has_features else _OpenedManager
    opened = config.pipeline.datamanager = kind(**values)
    parser = opened.dataparser
    if isinstance(parser, NerfstudioDataParserConfig) and parser.downscale_factor is None:
        # To choose a factor, Nerfstudio opens the first photograph.
        photograph = read_items(data, present=False)[0].path
        parser.downscale_factor = None if is_regular_file(photograph) else 1
