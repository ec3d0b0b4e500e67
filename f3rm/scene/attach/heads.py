"""Adds feature heads to a trained run of Nerfacto or f3rm; colours and density stay as they are.

The new heads get a trunk of their own and learn on the frozen scene. The result is a new run that
``ns-viewer``, ``ns-eval`` and ``f3rm`` open like any other; the old one is not touched.
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
from f3rm.scene.attach.recipe import MethodName, saved_recipe, training_recipe
from f3rm.scene.attach.training import freeze_scene, held_out_cosines, train_features
from f3rm.scene.run_loading import LoadedRun, load_run
from f3rm.store.device import resolve_device
from f3rm.store.spec import resolve_feature_type


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
    method: MethodName = "auto"
    """Whose sizes and learning rate of the feature field a Nerfacto run takes."""
    seed: int = 42
    """Draws the field's first values and the rays."""


@dataclass(frozen=True)
class Attached:
    """A run with new heads.

    Attributes:
        config_path: Its ``config.yml``.
        heads: All its heads, in order.
        cosines: Mean cosine of each new head with its teacher at pixels of held-out views.
        steps: How long they trained.
        seconds: How long that took.
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
    """Trains new heads on a run's frozen scene and writes a run that has them too.

    Colours, density and the features of heads that the run has already stay as they are.

    Args:
        config_path: The run's ``config.yml``.
        settings: Which heads, and how they train.
        data: The dataset's place, if not the one that the run was trained from.
        out: Folder of runs, as ``ns-train --output-dir``.
        device: ``auto``, ``cpu``, ``cuda`` or ``cuda:N``.
        show_progress: Whether a bar counts steps.

    Raises:
        RunError: If the run or its dataset cannot be used.
        F3rmError: If features, device or folder cannot be used, or the run has such a head.
    """
    config_path = as_path(config_path)
    data = None if data is None else as_path(data)
    out = as_path(out)
    specs = resolve_feature_type(settings.feature_type, weights=settings.weights)
    if settings.steps is not None and settings.steps < 1:
        msg = f"attach: steps must be at least 1, got {settings.steps}. Give more, or none at all."
        raise F3rmError(msg)
    run = load_run(config_path, data=data, device=resolve_device(device))
    _check_names(run, [spec.name for spec in specs])
    recipe = training_recipe(
        run,
        feature_type=settings.feature_type,
        weights=settings.weights,
        cache_dir=settings.cache_dir,
        method=settings.method,
    )
    steps = settings.steps or recipe.max_num_iterations
    torch.manual_seed(settings.seed)
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
    config = saved_recipe(run, recipe, out=out)
    path = _write(config, whole, manager, step=run.step + steps)
    return Attached(path, tuple(whole.heads), cosines, steps, seconds)


def _check_names(run: LoadedRun, names: Iterable[str]) -> None:
    """Refuses a head that is there already."""
    here = list(run.model.heads) if isinstance(run.model, FeatureFieldModel) else []
    taken = [name for name in names if name in here]
    if taken:
        msg = (
            f"attach: the feature type must be new to the run, got {taken[0]!r} beside "
            f"{', '.join(here)}. Attach another type, or attach to the run before that head."
        )
        raise F3rmError(msg)


def _check_images(run: LoadedRun, manager: FeatureDataManager) -> None:
    """Refuses features that lack photographs of the run: its scene has an entry for each camera."""
    if len(manager.train_dataset) < len(run.manager.train_dataset):
        before = getattr(run.config.pipeline.datamanager, "feature_left_out", ())
        names = [name for name in manager.config.feature_left_out if name not in before]
        msg = (
            "attach: every photograph that the run was trained on must have features, but "
            f"{len(names)} have none, e.g. {names[0]!r}. f3rm cache verify says why; repair them, "
            "or train a run without them."
        )
        raise F3rmError(msg)


def _write(
    config: TrainerConfig, model: NerfactoModel, manager: FeatureDataManager, *, step: int
) -> Path:
    """Writes a run beside its place, then moves it there; returns its ``config.yml``."""
    place = config.get_base_dir()
    partial = place.with_name(f".{place.name}.partial")
    state = {f"_model.{name}": value for name, value in model.state_dict().items()}
    try:
        shutil.rmtree(partial, ignore_errors=True)
        models = partial / config.relative_model_dir
        models.mkdir(parents=True)
        torch.save({"step": step, "pipeline": state}, models / f"step-{step:09d}.ckpt")
        outputs = manager.train_dataparser_outputs
        outputs.save_dataparser_transform(partial / "dataparser_transforms.json")
        (partial / "config.yml").write_text(yaml.dump(config), encoding="utf-8")
        partial.replace(place)
    except (OSError, RuntimeError) as error:  # torch.save raises the latter on a full disk
        shutil.rmtree(partial, ignore_errors=True)
        msg = (
            f"attach: {str(place)!r} must be a folder that can be written, got: {error}. Give "
            "another folder with --out."
        )
        raise F3rmError(msg) from error
    return place / "config.yml"
