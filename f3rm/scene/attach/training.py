"""Trains a feature field on frozen colours and density."""

import math
from dataclasses import replace
from typing import Any

import torch
from nerfstudio.engine.trainer import TrainerConfig
from nerfstudio.models.nerfacto import NerfactoModel
from torch.amp.grad_scaler import GradScaler

from f3rm.errors import F3rmError
from f3rm.feature_datamanager import FeatureDataManager
from f3rm.model import FeatureFieldModel
from f3rm.scene.run_loading import RunError
from f3rm.store.progress import progress_bar

FIELD = "feature_field."
_SHOWN_EVERY = 20
_MEASURED_BATCHES = 16


def freeze_scene(model: FeatureFieldModel, source: NerfactoModel) -> None:
    """Copies everything but the feature field from a trained model and freezes it.

    Raises:
        RunError: If the two models have different tensors, as models of other programs do.
    """
    state = {k: v for k, v in source.state_dict().items() if not k.startswith(FIELD)}
    ours = {name for name in model.state_dict() if not name.startswith(FIELD)}
    if ours != set(state):
        different = sorted(ours ^ set(state))
        msg = (
            f"The run is no Nerfacto: {len(different)} of its tensors differ, e.g. "
            f"{different[0]!r}. Give a run of nerfacto or f3rm."
        )
        raise RunError(msg)
    model.load_state_dict(state, strict=False)
    model.requires_grad_(requires_grad=False)
    model.feature_field.requires_grad_()


def train_features(
    model: FeatureFieldModel,
    manager: FeatureDataManager,
    config: TrainerConfig,
    *,
    steps: int,
    show_progress: bool = False,
) -> None:
    """Trains the feature field; density and colour have no gradient, so their graph is not kept.

    Args:
        model: A model after :func:`freeze_scene`.
        manager: Source of rays and features.
        config: Optimiser and schedule (``feature_field``), and whether half precision is used.
        steps: Number of batches; the learning rate schedule ends with them.
        show_progress: Whether a bar counts steps.

    Raises:
        F3rmError: If training diverged.
    """
    device = torch.device(model.device).type
    half = config.mixed_precision and device == "cuda"
    group: dict[str, Any] = config.optimizers["feature_field"]
    optimizer = group["optimizer"].setup(params=list(model.feature_field.parameters()))
    schedule = replace(group["scheduler"], max_steps=steps).setup()
    schedule = schedule.get_scheduler(optimizer=optimizer, lr_init=group["optimizer"].lr)
    scaler = GradScaler(device, enabled=half)
    model.train()
    with progress_bar(show=show_progress, unit="steps") as bar:
        task = bar.add_task("features", total=steps)
        for step in range(steps):
            bundle, batch = manager.next_train(step)
            with torch.autocast(device, enabled=half):
                outputs = model(bundle)
                loss = torch.stack(list(model.feature_losses(outputs, batch).values())).sum()
            optimizer.zero_grad()
            scaler.scale(loss).backward()
            scaler.step(optimizer)
            scaler.update()
            schedule.step()
            if step % _SHOWN_EVERY == 0:
                _check_finite(float(loss.detach()), step)
                cosines = _cosines(model, outputs, batch)
                shown = ", ".join(f"{name} {value:.3f}" for name, value in cosines.items())
                bar.update(task, description=f"features (cosine {shown})")
            bar.advance(task)
    # The loss is looked at every twentieth step only; a later overflow shows in the weights.
    _check_finite(sum(float(p.detach().sum()) for p in model.feature_field.parameters()), steps)


@torch.no_grad()
def held_out_cosines(model: FeatureFieldModel, manager: FeatureDataManager) -> dict[str, float]:
    """Returns each head's mean cosine with its teacher at random pixels of held-out views.

    The result is empty where no view is held out.
    """
    if not len(manager.eval_dataset):
        return {}
    model.eval()
    sums = dict.fromkeys(model.heads, 0.0)
    for step in range(_MEASURED_BATCHES):
        bundle, batch = manager.next_eval(step)
        for name, cosine in _cosines(model, model(bundle), batch).items():
            sums[name] += cosine / _MEASURED_BATCHES
    return sums


def _cosines(
    model: FeatureFieldModel, outputs: dict[str, Any], batch: dict[str, Any]
) -> dict[str, float]:
    measured = model.feature_metrics(outputs, batch)
    return {name: float(measured[model.key("feature_cosine", name)]) for name in model.heads}


def _check_finite(value: float, step: int) -> None:
    if not math.isfinite(value):
        msg = (
            f"Training diverged: the loss is {value} by step {step}. Nothing was written. Check "
            "the features with f3rm cache verify."
        )
        raise F3rmError(msg)
