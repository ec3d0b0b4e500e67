"""Adds feature heads to a trained run of Nerfacto or f3rm; colours and density stay as they are.

The new heads get a trunk of their own and train on the frozen scene. The result is a new run that
``ns-viewer``, ``ns-eval`` and ``f3rm`` open like any other; the old run is not modified.
"""

import shutil
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import torch
import yaml
from nerfstudio.engine.trainer import TrainerConfig
from nerfstudio.models.nerfacto import NerfactoModel

from f3rm.errors import F3rmError, StrPath, as_path
from f3rm.feature_datamanager import FeatureDataManager
from f3rm.model import FeatureFieldModel
from f3rm.scene.attach.recipe import AttachSettings, saved_recipe, training_recipe
from f3rm.scene.attach.training import freeze_scene, held_out_cosines, train_features
from f3rm.scene.run_loading import CONFIG_FILE, LoadedRun, load_run
from f3rm.store.device import resolve_device
from f3rm.store.spec import resolve_feature_type


@dataclass(frozen=True)
class Attached:
    """A run with new heads.

    Attributes:
        config_path: Its ``config.yml``.
        heads: All its heads, in order.
        cosines: Mean cosine of each new head with its teacher at pixels of held-out views.
        steps: Training steps of the new heads.
        seconds: Duration of their training.
    """

    config_path: Path
    heads: tuple[str, ...]
    cosines: dict[str, float]
    steps: int
    seconds: float


def attach(
    config_path: StrPath,
    settings: AttachSettings,
    *,
    data: StrPath | None = None,
    out: StrPath = Path("outputs"),
    device: str = "auto",
    show_progress: bool = False,
) -> Attached:
    """Trains new heads on a run's frozen scene and writes a run with old and new heads.

    Colours, density and the features of the run's own heads stay as they are.

    Args:
        config_path: The run's ``config.yml``.
        settings: Feature type and training of the new heads.
        data: The dataset, if it is not where the run was trained from.
        out: Folder of runs, as ``ns-train --output-dir``.
        device: ``auto``, ``cpu``, ``cuda`` or ``cuda:N``.
        show_progress: Whether a bar counts steps.

    Raises:
        RunError: If the run or its dataset cannot be used.
        F3rmError: If features, device or folder cannot be used, or the run has such a head.
    """
    specs = resolve_feature_type(settings.feature_type, weights=settings.weights)
    if settings.steps is not None and settings.steps < 1:
        raise F3rmError(f"--steps must be at least 1, got {settings.steps}.")
    run = load_run(config_path, data=data, device=resolve_device(device))
    _check_names(run, [spec.name for spec in specs])
    recipe = training_recipe(run, settings)
    steps = settings.steps or recipe.max_num_iterations
    torch.manual_seed(settings.seed)
    # "val": Nerfstudio makes evaluation rays, which the cosines need, only outside of "test".
    pipeline = recipe.pipeline.setup(device=str(run.model.device), test_mode="val")
    model, manager = pipeline.model, pipeline.datamanager
    assert isinstance(model, FeatureFieldModel)  # noqa: S101 - the recipe names both classes
    assert isinstance(manager, FeatureDataManager)  # noqa: S101
    _check_images(run, manager)
    freeze_scene(model, run.model)
    start = time.perf_counter()
    train_features(model, manager, recipe, steps=steps, show_progress=show_progress)
    seconds = time.perf_counter() - start
    cosines = held_out_cosines(model, manager)
    whole = model
    if isinstance(run.model, FeatureFieldModel):
        whole = run.model
        whole.feature_field.adopt(model.feature_field)
    config = saved_recipe(run, recipe, out=as_path(out))
    path = _write(config, whole, manager, step=run.step + steps)
    return Attached(path, tuple(whole.heads), cosines, steps, seconds)


def _check_names(run: LoadedRun, names: Iterable[str]) -> None:
    """Refuses heads that the run has already."""
    own = list(run.model.heads) if isinstance(run.model, FeatureFieldModel) else []
    taken = [name for name in names if name in own]
    if taken:
        msg = (
            f"The run has a head {taken[0]!r} already (its heads: {', '.join(own)}). Give another "
            "--feature-type, or attach to a run without that head."
        )
        raise F3rmError(msg)


def _check_images(run: LoadedRun, manager: FeatureDataManager) -> None:
    """Refuses features that lack photographs of the run: its model has an entry per camera."""
    if len(manager.train_dataset) < len(run.manager.train_dataset):
        before = getattr(run.config.pipeline.datamanager, "feature_left_out", ())
        names = [name for name in manager.config.feature_left_out if name not in before]
        msg = (
            f"Photographs that the run was trained on have no features: {len(names)}, e.g. "
            f"{names[0]!r}. f3rm cache verify says why; repair them, or train a run without them."
        )
        raise F3rmError(msg)


def _write(
    config: TrainerConfig, model: NerfactoModel, manager: FeatureDataManager, *, step: int
) -> Path:
    """Writes a run to a hidden folder, then renames it; returns its ``config.yml``."""
    folder = config.get_base_dir()
    partial = folder.with_name(f".{folder.name}.partial")
    state = {f"_model.{name}": value for name, value in model.state_dict().items()}
    try:
        shutil.rmtree(partial, ignore_errors=True)
        models = partial / config.relative_model_dir
        models.mkdir(parents=True)
        torch.save({"step": step, "pipeline": state}, models / f"step-{step:09d}.ckpt")
        outputs = manager.train_dataparser_outputs
        outputs.save_dataparser_transform(partial / "dataparser_transforms.json")
        (partial / CONFIG_FILE).write_text(yaml.dump(config), encoding="utf-8")
        partial.replace(folder)
    except (OSError, RuntimeError) as error:  # torch.save raises the latter on a full disk
        shutil.rmtree(partial, ignore_errors=True)
        msg = f"Cannot write the run to {str(folder)!r}: {error}. Give another folder with --out."
        raise F3rmError(msg) from error
    return folder / CONFIG_FILE
