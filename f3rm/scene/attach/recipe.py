"""Settings of attaching, and two configurations: to train new heads, and to save with the run.

Both configurations start from the run that heads are added to. An f3rm run keeps the sizes and the
learning rate of its feature field; a Nerfacto run takes those of a method of f3rm.
"""

import copy
from dataclasses import dataclass, fields
from datetime import datetime
from pathlib import Path
from typing import Any, Literal

from nerfstudio.data.datamanagers.base_datamanager import VanillaDataManagerConfig
from nerfstudio.engine.trainer import TrainerConfig
from nerfstudio.models.nerfacto import NerfactoModel, NerfactoModelConfig

from f3rm.f3rm_config import f3rm_big_method, f3rm_lite_method, f3rm_method
from f3rm.feature_datamanager import FeatureDataManagerConfig
from f3rm.model import FeatureFieldModelConfig
from f3rm.networks.base import Implementation, choose_implementation
from f3rm.scene.run_loading import LoadedRun, RunError, read_config

MethodName = Literal["auto", "f3rm", "f3rm-lite", "f3rm-big"]

_METHODS = {
    method.config.method_name: method.config
    for method in (f3rm_method, f3rm_lite_method, f3rm_big_method)
}
_GROUP = "feature_field"


@dataclass(frozen=True)
class AttachSettings:
    """How heads are added."""

    feature_type: str = "CLIP"
    """Type of the new heads, e.g. CLIP, DINO, or several joined by +."""
    steps: int | None = None
    """Training steps; None for as many as the run's method trains."""
    weights: tuple[str, ...] = ()
    """Weights other than the default, by type: CLIP=PATH DINO=PATH."""
    cache_dir: Path | None = None
    """Folder of the features, instead of the run's or DATA/features."""
    feature_masks: Path | None = None
    """Folder of segments of the photographs, over which targets are averaged, as with ns-train."""
    method: MethodName = "auto"
    """Method whose feature field sizes and learning rate a Nerfacto run takes; auto is f3rm-lite on
    a CPU and f3rm on a GPU."""
    seed: int = 42
    """Seed of the field's initial values and the rays."""


def training_recipe(run: LoadedRun, settings: AttachSettings) -> TrainerConfig:
    """Returns the configuration that trains only the new heads, on the run's colours and density.

    Raises:
        RunError: If the run's model is configured by another program.
    """
    config = read_config(run.config_path)  # read again: opening a run adapts its copy
    source = config.pipeline.model
    if not isinstance(source, FeatureFieldModelConfig):
        if not isinstance(source, NerfactoModelConfig):
            msg = (
                "Heads can be attached to runs of nerfacto or f3rm, got one with a model of "
                f"{type(source).__name__}. Give the config.yml of such a run."
            )
            raise RunError(msg)
        name = settings.method
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
    has_features = isinstance(config.pipeline.datamanager, FeatureDataManagerConfig)
    kind = FeatureDataManagerConfig if has_features else VanillaDataManagerConfig
    _with_values(manager, config.pipeline.datamanager, kind)
    manager.data = run.data
    manager.feature_type, manager.weights = settings.feature_type, settings.weights
    manager.feature_cache_dir = settings.cache_dir or manager.feature_cache_dir
    manager.feature_masks = settings.feature_masks or manager.feature_masks
    config.pipeline.datamanager = manager
    return config


def saved_recipe(run: LoadedRun, trained: TrainerConfig, *, out: Path) -> TrainerConfig:
    """Returns the configuration of the run with old and new heads, which ``ns-*`` commands read.

    Args:
        run: The run that heads were added to.
        trained: The result of :func:`training_recipe`.
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
    """Returns a name that no other run of the experiment has: two may start in one second."""
    folder = config.output_dir / str(config.experiment_name) / str(config.method_name)
    names = [wanted, *(f"{wanted}-{number}" for number in range(2, 100))]
    return next(name for name in names if not (folder / name).exists())


def _with_values(target: object, source: object, kind: type) -> None:
    """Sets the fields that ``kind`` has from ``source``."""
    for field in fields(kind):
        if field.name != "_target":
            setattr(target, field.name, copy.deepcopy(getattr(source, field.name)))


def _implementation(model: NerfactoModel) -> Implementation:
    """Returns what a Nerfacto model was built with; its configuration has only the request."""
    if any("tcnn_encoding" in name for name in model.state_dict()):
        return "tcnn"
    return choose_implementation("auto", model.device, with_tcnn=False).implementation
