"""Packs a run into one file, which :func:`f3rm.load` opens without the run and its dataset."""

from dataclasses import fields
from pathlib import Path
from typing import Any

import msgspec
import torch
from safetensors.torch import save
from torch import Tensor

import f3rm
from f3rm.errors import F3rmError, ImageError, StrPath, as_path
from f3rm.scene.export.files import check_file, write_file
from f3rm.scene.kept.packed import (
    CAMERAS,
    LEFT_OUT,
    LENS,
    MODEL,
    NOTE,
    SUFFIX,
    VERSION,
    Note,
    is_below,
    trusted,
)
from f3rm.scene.run_loading import LoadedRun, Split, read_config
from f3rm.scene.scene import Scene
from f3rm.scene.views import View, views_of
from f3rm.store.geometry import Size
from f3rm.store.items import dataset_root


@torch.no_grad()
def export_packed(scene: Scene, file: StrPath) -> tuple[str, ...]:
    """Writes a run's field, heads, frames and cameras into one ``.f3rm`` file.

    Args:
        scene: The run, opened.
        file: The file.

    Returns:
        Names of heads whose text and image towers stay behind, as their weights are not f3rm's.

    Raises:
        ExportError: If the file's ending does not fit, or it cannot be written.
        F3rmError: If the scene is not that of a run.
    """
    path = check_file(as_path(file), {SUFFIX: "f3rm"}, what="a packed scene")
    run = scene.run
    if not isinstance(run, LoadedRun):
        raise F3rmError(f"Only runs are packed, got {run.config_path}. Copy that file as it is.")
    state = dict(scene.model.state_dict())
    extra: dict[str, Any] = state.pop("feature_field._extra_state")
    # Cloned: some tensors of Nerfacto are one, which the format refuses.
    tensors = {
        f"{MODEL}{name}": value.detach().cpu().clone()
        for name, value in state.items()
        if not name.startswith("camera_optimizer.")
    }
    specs = {name: head.spec for name, head in scene.source.heads.items()}
    note = Note(
        version=VERSION,
        provenance=_provenance(run),
        options=_options(run, scene),
        field={**extra, "heads": [trusted(spec).to_dict() for spec in specs.values()]},
        frames={name: f.scene_from_frame.tolist() for name, f in scene.frames.known.items()},
        train=[_name(name) for name in run.train.names],
        held_out=[_name(name) for name in run.held_out.names],
        file_sizes={
            _name(view.name): _file_size(view)
            for split in (run.train, run.held_out)
            for view in views_of(run, split)
        },
    )
    tensors |= _cameras("train", run.train) | _cameras("held_out", run.held_out)
    content = save(tensors, metadata={NOTE: msgspec.json.encode(note).decode()})
    write_file(path, lambda stream: stream.write(content))
    return tuple(name for name, spec in specs.items() if trusted(spec) is not spec)


def _name(view: str) -> str:
    """Returns a photograph's name; its last part where it is outside of the dataset's folder."""
    return view if is_below(view) else Path(view).name


def _provenance(run: LoadedRun) -> dict[str, str | int]:
    return {
        "f3rm": f3rm.__version__,
        "method": str(run.config.method_name),
        "run": run.config_path.parent.name,
        "step": run.step,
        "dataset": dataset_root(run.data).name,
    }


def _options(run: LoadedRun, scene: Scene) -> dict[str, Any]:
    """Returns the model's options as plain values; opening the run had adapted them."""
    config = read_config(run.config_path).pipeline.model
    names = [each.name for each in fields(config) if each.name not in LEFT_OUT]
    values = {name: getattr(config, name) for name in names}
    return {**values, "implementation": scene.model.config.implementation}


def _cameras(name: str, split: Split) -> dict[str, Tensor]:
    cameras = split.cameras.to("cpu")
    parts = CAMERAS if cameras.distortion_params is None else (*CAMERAS, LENS)
    return {f"{name}.{part}": getattr(cameras, part).contiguous().clone() for part in parts}


def _file_size(view: View) -> Size:
    try:
        return view.file_size()
    except ImageError:  # the photograph is gone
        return view.size
