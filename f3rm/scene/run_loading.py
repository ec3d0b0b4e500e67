"""Opens a trained run: its configuration, dataset, model and teacher features.

``config.yml`` may be of another version of f3rm or Nerfstudio. A missing option takes its default,
which is how the run was trained before the option existed. An option of f3rm that this version does
not have is refused: the run may depend on it.

A run's ``config.yml`` stores paths as they were typed. The checkpoint is read from beside the file,
so a run may be moved as a whole; where the dataset was moved, its new path must be given.
"""

import pickle
from collections.abc import Iterator
from dataclasses import MISSING, dataclass, fields, is_dataclass
from pathlib import Path
from typing import Any

import torch
import yaml
from nerfstudio.cameras.cameras import Cameras
from nerfstudio.data.datamanagers.base_datamanager import (
    VanillaDataManager,
    VanillaDataManagerConfig,
)
from nerfstudio.data.datamanagers.full_images_datamanager import FullImageDatamanagerConfig
from nerfstudio.data.datasets.base_dataset import InputDataset
from nerfstudio.data.utils.dataloaders import FixedIndicesEvalDataloader
from nerfstudio.engine.trainer import TrainerConfig
from nerfstudio.models.base_model import ModelConfig
from nerfstudio.models.nerfacto import NerfactoModel
from nerfstudio.pipelines.base_pipeline import VanillaPipeline
from torch import Tensor
from torch.nn import Module

from f3rm.compat import lazy_lpips
from f3rm.errors import DatasetError, F3rmError, StrPath, as_path
from f3rm.f3rm_config import allow_nerfstudio_checkpoints
from f3rm.feature_datamanager import FeatureDataManager, FeatureLookup, match_items
from f3rm.model import FeatureFieldModel
from f3rm.networks.base import choose_implementation
from f3rm.networks.nerfacto_fast import use_fast_encodings
from f3rm.scene.opened_data import use_opened_manager
from f3rm.store.items import located, read_items
from f3rm.store.reader import FeatureStore

CONFIG_FILE = "config.yml"

_UNREADABLE = (OSError, yaml.YAMLError, ImportError, AttributeError, TypeError, ValueError)
"""Errors of a damaged configuration, or one that names classes of another program."""
_UNLOADABLE = (OSError, KeyError, TypeError, ValueError, RuntimeError, pickle.UnpicklingError)
_SHOWN = 3
_CHECKPOINTS = "step-*.ckpt"
CPU_RAYS = 1 << 12
"""Rays at once on a CPU: with fewer, threads wait for each other; with more, caches overflow."""


class RunError(F3rmError):
    """A run's configuration, checkpoint or dataset cannot be used."""


@dataclass(frozen=True)
class Split:
    """The training or the held-out photographs of a run.

    Attributes:
        names: ``file_path`` of each photograph as in transforms.json.
        cameras: Their cameras in the scene frame, at the size that is trained on.
        lookup: Their teacher features, blended between cells; None without a valid cache.
    """

    names: tuple[str, ...]
    cameras: Cameras
    lookup: FeatureLookup | None


@dataclass(frozen=True)
class LoadedRun:
    """A trained run.

    Attributes:
        config_path: Its ``config.yml``.
        config: The configuration, adapted for reading: a data manager that opens no photograph,
            fewer rays at once on a CPU.
        data: Folder or file of its dataset.
        step: Training step of the checkpoint.
        manager: Its data manager.
        model: Its model, in evaluation mode.
        stores: The teacher's features by head; empty without a valid cache.
        train: The photographs that it was trained on.
        held_out: The photographs that it is evaluated on.
    """

    config_path: Path
    config: TrainerConfig
    data: Path
    step: int
    manager: VanillaDataManager[InputDataset]
    model: NerfactoModel
    stores: dict[str, FeatureStore]
    train: Split
    held_out: Split

    def __str__(self) -> str:
        """Returns folder, step and photographs."""
        return (
            f"{self.config_path.parent} at step {self.step}: {len(self.train.names)} training and "
            f"{len(self.held_out.names)} held-out photographs of {self.data}"
        )

    def picture(self, index: int) -> tuple[Cameras, dict[str, Any]]:
        """Returns camera and photograph (``image``) of a held-out view, which is read now."""
        manager = self.manager
        loader = FixedIndicesEvalDataloader(manager.eval_dataset, device=manager.device)
        return loader.get_camera(index)


def load_run(run: StrPath, *, data: StrPath | None = None, device: torch.device) -> LoadedRun:
    """Opens a run with its newest checkpoint.

    Args:
        run: The run's ``config.yml``, or its folder.
        data: The dataset, if it is not where the run was trained from.
        device: Device of the model.

    Raises:
        RunError: If configuration, checkpoint or dataset cannot be used.
        F3rmError: If the dataset's photographs or its feature cache are broken.
    """
    run = as_path(run)
    data = None if data is None else as_path(data)
    config_path = config_file(run)
    config = read_config(config_path)
    newest = newest_checkpoint(config_path, config)
    config.load_dir = newest.parent
    root = locate_data(config, data)
    use_opened_manager(config, root)
    if device.type == "cpu" and isinstance(config.pipeline.model, ModelConfig):
        rays = config.pipeline.model.eval_num_rays_per_chunk
        config.pipeline.model.eval_num_rays_per_chunk = min(rays, CPU_RAYS)
    with lazy_lpips():
        pipeline = config.pipeline.setup(device=str(device), test_mode="test")
    chosen = choose_implementation("auto", device, with_tcnn=False)
    use_fast_encodings(pipeline.model, chosen.implementation)
    pipeline.eval()
    step = _load_checkpoint(newest, pipeline)
    manager, model = pipeline.datamanager, pipeline.model
    if not (isinstance(model, NerfactoModel) and isinstance(manager, VanillaDataManager)):
        raise not_a_run(config_path, f"it is a run of {config.method_name}")
    stores = manager.stores if isinstance(manager, FeatureDataManager) else {}
    return LoadedRun(
        config_path=config_path,
        config=config,
        data=root,
        step=step,
        manager=manager,
        model=model,
        stores=stores,
        train=_split(manager, manager.train_dataset, root, stores),
        held_out=_split(manager, manager.eval_dataset, root, stores),
    )


def field_model(run: LoadedRun) -> FeatureFieldModel:
    """Returns the model of a run that has a feature field.

    Raises:
        RunError: If it has none.
    """
    if not isinstance(run.model, FeatureFieldModel):
        msg = (
            f"{str(run.config_path)!r} is a run of {run.config.method_name}, without features. Add "
            "some: f3rm attach RUN --feature-type CLIP."
        )
        raise RunError(msg)
    return run.model


def newest_checkpoint(config_path: Path, config: TrainerConfig) -> Path:
    """Returns the newest checkpoint beside a run's configuration.

    Raises:
        RunError: If there is none.
    """
    folder = config_path.parent / config.relative_model_dir
    found = sorted(folder.glob(_CHECKPOINTS), key=lambda file: int(file.stem.split("-")[1]))
    if not found:
        msg = (
            f"There is no checkpoint in {str(folder)!r}. Train until the first one is saved "
            "(--steps-per-save), or keep nerfstudio_models beside config.yml."
        )
        raise RunError(msg)
    return found[-1]


def read_checkpoint(path: Path) -> dict[str, Any]:
    """Reads a checkpoint: its ``step``, and the tensors of its ``pipeline`` by name.

    Raises:
        RunError: If it is damaged, or holds anything but tensors and plain values.
    """
    allow_nerfstudio_checkpoints()
    try:
        # Mapped: the optimizers' tensors, two thirds of it, are not read.
        state = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        return {"step": int(state["step"]), "pipeline": dict(state["pipeline"])}
    except _UNLOADABLE as error:
        raise _unfit(path, error) from error


def _unfit(path: Path, error: Exception) -> RunError:
    return RunError(
        f"The newest checkpoint {str(path)!r} does not fit the run: {error}. Remove it if it is "
        "incomplete, or train again."
    )


def _load_checkpoint(newest: Path, pipeline: VanillaPipeline) -> int:
    """Loads a checkpoint as Nerfstudio's ``eval_load_checkpoint`` does; returns its step."""
    missing: list[str] = []

    def note_missing(_: Module, keys: Any) -> None:
        # Nerfstudio loads the model, if that fails once more and less strictly, and then the
        # pipeline around it, which lacks all of the model's keys by design.
        if not any(name.startswith("_model.") for name in keys.missing_keys):
            missing[:] = keys.missing_keys

    pipeline.model.register_load_state_dict_post_hook(note_missing)
    state = read_checkpoint(newest)
    try:
        pipeline.load_pipeline(state["pipeline"], state["step"])
    except _UNLOADABLE as error:
        raise _unfit(newest, error) from error
    if missing:
        msg = (
            f"The newest checkpoint {str(newest)!r} lacks {len(missing)} of the model's tensors, "
            f"e.g. {missing[0]!r}. If it was trained with tiny-cuda-nn, open it on a machine that "
            "has tiny-cuda-nn and a GPU."
        )
        raise RunError(msg)
    return state["step"]


def locate_data(config: TrainerConfig, data: Path | None) -> Path:
    """Points a run's configuration at the dataset, and returns its path.

    Args:
        config: The configuration.
        data: The dataset; None for that which the run was trained on.

    Raises:
        RunError: If there is no such dataset, or the run is of another program.
    """
    manager = config.pipeline.datamanager
    if not isinstance(manager, VanillaDataManagerConfig | FullImageDatamanagerConfig):
        raise RunError(
            f"Only runs of f3rm, nerfacto and splatfacto can be opened; this one's data manager is "
            f"a {type(manager).__name__}."
        )
    trained = Path(manager.data if manager.data is not None else manager.dataparser.data)
    try:
        manager.data = located(data or trained)
    except DatasetError as error:
        raise RunError(str(error)) from error
    return manager.data


def _split(
    manager: VanillaDataManager[InputDataset],
    dataset: InputDataset,
    data: Path,
    stores: dict[str, FeatureStore],
) -> Split:
    items = (
        manager.items
        if isinstance(manager, FeatureDataManager)
        else read_items(data, present=False)
    )
    names = match_items(dataset.image_filenames, items)
    cameras = dataset.cameras
    lookup = None
    if stores:
        sizes: Tensor = torch.cat((cameras.height, cameras.width), dim=-1).cpu()
        lookup = FeatureLookup(stores, names=names, sizes=sizes, mode="bilinear")
    return Split(names=tuple(names), cameras=cameras, lookup=lookup)


def check_same_views(run: LoadedRun, other: LoadedRun) -> None:
    """Checks that another run holds out the same photographs.

    Raises:
        RunError: If it does not: the PSNRs of the two could not be compared.
    """
    differing = sorted(set(run.held_out.names) ^ set(other.held_out.names))
    if differing:
        shown = differing[:3]
        msg = (
            f"Both runs must hold out the same photographs, but {len(differing)} are held out by "
            f"one only, e.g. {', '.join(shown)}. Train both with the same dataparser options."
        )
        raise RunError(msg)


def config_file(run: Path) -> Path:
    """Returns the ``config.yml`` of a run.

    Args:
        run: The file itself, or its folder.

    Raises:
        RunError: If the folder has none.
    """
    # Links are resolved: the checkpoint is beside the file, not beside a link to it.
    path = run.expanduser().resolve()
    if not path.is_dir():
        return path
    if (path / CONFIG_FILE).is_file():
        return (path / CONFIG_FILE).resolve()  # the demo's is a link
    deeper = [file for level in range(1, 4) for file in path.glob("*/" * level + CONFIG_FILE)]
    shown = ", ".join(str(file) for file in sorted(deeper)[:_SHOWN])
    hint = f" Deeper inside are {shown}." if shown else ""
    msg = (
        f"There is no {CONFIG_FILE} in {str(path)!r}.{hint} Give the file that ns-train wrote "
        "beside nerfstudio_models, or its folder."
    )
    raise RunError(msg)


def read_config(path: Path) -> TrainerConfig:
    """Reads a run's configuration.

    Args:
        path: The file.

    Raises:
        RunError: If it cannot be read, is no configuration of a run, or has options of f3rm that
            this version does not have.
    """
    try:
        # Nerfstudio's runs name Python classes, which only this loader reads. It can execute code:
        # as with ns-eval, open only runs that you trust.
        config = yaml.load(path.read_text(encoding="utf-8"), Loader=yaml.Loader)  # noqa: S506
    except FileNotFoundError as error:
        raise RunError(f"No such file: {str(path)!r}.") from error
    except _UNREADABLE as error:
        raise not_a_run(path, f"it cannot be read: {error}") from error
    if not isinstance(config, TrainerConfig):
        raise not_a_run(path, f"it holds a {type(config).__name__}")
    unknown = sorted(name for part in _parts(config) for name in _unknown_options(part))
    if unknown:
        msg = (
            f"{str(path)!r} has options that this version of f3rm does not have: "
            f"{', '.join(unknown)}. Another version wrote it: open it with that one, or remove "
            "these lines if the run does not depend on them."
        )
        raise RunError(msg)
    return config


def not_a_run(path: Path, reason: str) -> RunError:
    """Returns the error for a file that is no configuration of a run that can be opened."""
    return RunError(
        f"{str(path)!r} is not the {CONFIG_FILE} of a run of f3rm (or nerfacto, where the command "
        f"takes one): {reason}. Give the file that ns-train wrote beside nerfstudio_models."
    )


def _parts(config: Any) -> Iterator[Any]:
    """Yields a configuration and those inside of it, after setting missing options.

    Raises:
        RunError: If a missing option has no default.
    """
    for option in fields(config):
        # Options with a plain default are attributes of the class, so only factories are missing.
        if hasattr(config, option.name):
            continue
        if option.default_factory is MISSING:
            msg = (
                f"The run's {CONFIG_FILE} lacks the option {option.name}, which has no default. "
                "Open it with the version that wrote it, or train again."
            )
            raise RunError(msg)
        setattr(config, option.name, option.default_factory())
    yield config
    for value in vars(config).values():
        if is_dataclass(value) and not isinstance(value, type):
            yield from _parts(value)


def _unknown_options(config: Any) -> list[str]:
    if not type(config).__module__.startswith("f3rm."):
        return []
    known = {option.name for option in fields(config)}
    return [f"{type(config).__name__}.{name}" for name in vars(config) if name not in known]
