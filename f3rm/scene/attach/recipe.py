"""The configurations of attaching: the one that trains new heads, and the one that is saved.

Both come from the run that heads are added to. Sizes of the feature field and its learning rate are
those of a run that has one; a Nerfacto run takes them from a method of f3rm.
"""

import copy
from collections.abc import Iterable
from dataclasses import fields
from datetime import datetime
from pathlib import Path
from typing import Any, Literal

from nerfstudio.data.datamanagers.base_datamanager import VanillaDataManagerConfig
from nerfstudio.engine.trainer import TrainerConfig
from nerfstudio.models.nerfacto import NerfactoModel, NerfactoModelConfig

from f3rm.f3rm_config import f3rm_big_method, f3rm_lite_method, f3rm_method
from f3rm.feature_datamanager import FeatureDataManagerConfig
from f3rm.model import FeatureFieldModelConfig
from f3rm.networks.base import Implementation
from f3rm.scene.run_config import RunError, read_config
from f3rm.scene.run_loading import LoadedRun

MethodName = Literal["auto", "f3rm", "f3rm-lite", "f3rm-big"]

_METHODS = {
    method.config.method_name: method.config
    for method in (f3rm_method, f3rm_lite_method, f3rm_big_method)
}
_GROUP = "feature_field"


def training_recipe(
    run: LoadedRun,
    *,
    feature_type: str,
    weights: tuple[str, ...],
    cache_dir: Path | None,
    method: MethodName,
) -> TrainerConfig:
    """Returns the configuration that trains only the new heads, on the run's colours and density.

    Args:
        run: What they are added to.
        feature_type: Type of the new heads.
        weights: Weights other than the default, by type.
        cache_dir: Folder of their features; None for the run's.
        method: Whose sizes and learning rate a Nerfacto run takes; ``auto`` is ``f3rm-lite`` on a
            CPU and ``f3rm`` on a GPU.

    Raises:
        RunError: If the run's model is configured by another program.
    """
    config = read_config(run.config_path)  # as it stands there: opening a run adapts its copy
    source = config.pipeline.model
    if not isinstance(source, FeatureFieldModelConfig):
        if not isinstance(source, NerfactoModelConfig):
            msg = (
                f"attach: the run must be one of nerfacto or f3rm, got a model of "
                f"{type(source).__name__}. Give the config.yml of such a run."
            )
            raise RunError(msg)
        name = method
        if name == "auto":
            name = "f3rm-lite" if run.model.device.type == "cpu" else "f3rm"
        chosen = copy.deepcopy(_METHODS[name])
        model: Any = chosen.pipeline.model
        _with_values(model, source, NerfactoModelConfig)
        source = config.pipeline.model = model
        config.method_name = name
        config.optimizers = {**config.optimizers, _GROUP: chosen.optimizers[_GROUP]}
        config.max_num_iterations = chosen.max_num_iterations
    source.implementation = _implementation(run.model)
    manager = FeatureDataManagerConfig()
    _with_values(manager, config.pipeline.datamanager, VanillaDataManagerConfig)
    if isinstance(config.pipeline.datamanager, FeatureDataManagerConfig):
        _with_values(manager, config.pipeline.datamanager, FeatureDataManagerConfig)
    manager.data, manager.feature_type, manager.weights = run.data, feature_type, weights
    manager.feature_cache_dir = cache_dir or manager.feature_cache_dir
    config.pipeline.datamanager = manager
    return config


def saved_recipe(run: LoadedRun, trained: TrainerConfig, *, out: Path) -> TrainerConfig:
    """Returns the configuration of the run with old and new heads, which ``ns-*`` commands read.

    Args:
        run: What heads were added to.
        trained: What :func:`training_recipe` returned.
        out: Folder of runs, as ``ns-train --output-dir``.
    """
    config = copy.deepcopy(trained)
    before, manager = run.config.pipeline.datamanager, config.pipeline.datamanager
    if isinstance(before, FeatureDataManagerConfig) and isinstance(
        manager, FeatureDataManagerConfig
    ):
        manager.feature_type = f"{before.feature_type}+{manager.feature_type}"
        manager.weights = (*before.weights, *manager.weights)
    config.set_experiment_name()
    config.output_dir, config.load_dir = out.expanduser().absolute(), None
    config.timestamp = _free_name(config, datetime.now().strftime("%Y-%m-%d_%H%M%S"))
    return config


def _free_name(config: TrainerConfig, wanted: str) -> str:
    """Returns a name that no run beside it has."""
    folder = config.output_dir / str(config.experiment_name) / str(config.method_name)
    names = [wanted, *(f"{wanted}-{number}" for number in range(2, 100))]
    return next(name for name in names if not (folder / name).exists())


def _with_values(target: Any, source: Any, kind: type) -> None:
    """Sets the fields that ``kind`` has from ``source``."""
    names: Iterable[str] = (field.name for field in fields(kind))
    for name in names:
        if name != "_target":
            setattr(target, name, copy.deepcopy(getattr(source, name)))


def _implementation(model: NerfactoModel) -> Implementation:
    """Returns what a Nerfacto model is computed with; its configuration says what was wished."""
    return "tcnn" if any("tcnn_encoding" in name for name in model.state_dict()) else "torch"
