"""Opens a packed scene: one file with field, heads, frames and cameras, and nothing else.

A ``.f3rm`` is a safetensors file: the model's tensors and those of the cameras, and as metadata a
JSON note, :class:`Note`. It is read as untrusted: nothing in it is executed, and it names no file.
A head names its text tower as f3rm's feature types do; weights other than theirs are left out.
"""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Annotated, Any, get_type_hints

import msgspec
import numpy as np
import torch
from msgspec import Meta
from nerfstudio.cameras.camera_optimizers import CameraOptimizerConfig
from nerfstudio.cameras.cameras import Cameras
from nerfstudio.data.scene_box import SceneBox
from safetensors import SafetensorError, safe_open
from torch import Tensor

from f3rm.errors import BackboneRef, F3rmError, HeadSpec, StrPath, as_path, printable
from f3rm.model import FeatureFieldModel, FeatureFieldModelConfig
from f3rm.networks.base import choose_implementation
from f3rm.scene.frames import Frame, Frames
from f3rm.scene.run_loading import CPU_RAYS, Split
from f3rm.scene.source import ModelSource
from f3rm.store.geometry import Size
from f3rm.store.spec import PRESETS

SUFFIX = ".f3rm"
NOTE = "f3rm"
VERSION = 1
MODEL = "model."
CAMERAS = ("camera_to_worlds", "fx", "fy", "cx", "cy", "width", "height", "camera_type")
"""Attributes of cameras that are always there; ``distortion_params`` only with a lens."""
LENS = "distortion_params"
LEFT_OUT = ("_target", "camera_optimizer", "viewer_image_folder")
"""Options of a model that its answers do not depend on."""

_FRAMES = ("nerfstudio", "dataset", "metres")
_LARGEST = 1 << 20
_LARGEST_TABLE = 24
"""Largest number, and table as a power of two, of a model that is built."""
_UNUSABLE = (
    *(OSError, SafetensorError, msgspec.MsgspecError, ArithmeticError, AssertionError),
    *(LookupError, MemoryError, RecursionError, RuntimeError, TypeError, ValueError),
)
"""What a damaged file, or Nerfstudio with its options, ends in."""

Side = Annotated[int, Meta(ge=1, le=_LARGEST)]
Matrix = list[list[float]]


class Note(msgspec.Struct, forbid_unknown_fields=True):
    """What a packed scene says beside its tensors.

    Attributes:
        version: Version of the format.
        provenance: Where it is from, as plain text and numbers.
        options: The model's options.
        field: Heads, trunks and implementation of the feature field.
        frames: The map from each frame to the scene frame, 4 x 4.
        train: Names of the training photographs.
        held_out: Names of the held-out photographs.
        file_sizes: Height and width of each photograph's file.
    """

    version: int
    provenance: dict[str, str | int]
    options: dict[str, Any]
    field: dict[str, Any]
    frames: dict[str, Matrix]
    train: list[str]
    held_out: list[str]
    file_sizes: dict[str, tuple[Side, Side]]


@dataclass(frozen=True)
class PackedScene:
    """A packed scene, opened.

    Attributes:
        config_path: Its file.
        data: The dataset, where it was given; else a folder that is not there.
        source: Its answers.
        train: The photographs that it was trained on.
        held_out: The others.
        file_sizes: Height and width of each photograph's file.
        provenance: Where it is from.
    """

    config_path: Path
    data: Path
    source: ModelSource
    train: Split
    held_out: Split
    file_sizes: Mapping[str, Size]
    provenance: Mapping[str, str | int]

    def __str__(self) -> str:
        """Returns file, run and photographs."""
        run = printable(f"{self.provenance.get('run')} of {self.provenance.get('dataset')}")
        return f"{self.config_path}: {run}, {len(self.train.names)} training photographs"


def is_packed(path: Path) -> bool:
    """Returns whether a path is that of a packed scene."""
    return path.suffix.lower() == SUFFIX


def load_packed(file: StrPath, *, data: StrPath | None = None, device: torch.device) -> PackedScene:
    """Opens a packed scene.

    Args:
        file: The file.
        data: The dataset, for what needs photographs.
        device: Device of the model.

    Raises:
        F3rmError: If it cannot be read, is damaged, or is of a newer version.
    """
    path = as_path(file).expanduser().absolute()
    if not path.is_file():
        raise F3rmError(f"No such file: {str(path)!r}.")
    try:
        with safe_open(path, "pt") as stored:
            note = _read_note((stored.metadata() or {})[NOTE])
            tensors: dict[str, Tensor] = {n: stored.get_tensor(n) for n in stored.keys()}  # noqa: SIM118
        train = _split("train", note.train, tensors)
        model = _model(note, tensors, len(train.names), device)
        source = ModelSource(model, _frames(note.frames), train.cameras)
        held_out = _split("held_out", note.held_out, tensors)
    except _UNUSABLE as error:
        reason = printable(str(error) or type(error).__name__)
        msg = f"{str(path)!r} is no file of f3rm pack, or damaged: {reason}. Pack the run again."
        raise F3rmError(msg) from error
    return PackedScene(
        config_path=path,
        data=path if data is None else as_path(data).expanduser().absolute(),
        source=source,
        train=train,
        held_out=held_out,
        file_sizes=note.file_sizes,
        provenance=note.provenance,
    )


def _read_note(text: str) -> Note:
    version = msgspec.json.decode(text)["version"]
    if version != VERSION:
        raise ValueError(f"its version is {version}, this f3rm reads version {VERSION}")
    note = msgspec.json.decode(text, type=Note)
    if not note.train:
        raise ValueError("it names no training photograph")
    for name in (*note.train, *note.held_out):
        if not is_below(name):
            raise ValueError(f"its photograph {name!r} is not in the dataset's folder")
    return note


def is_below(name: str) -> bool:
    """Returns whether a photograph's name leads to no place outside its dataset's folder."""
    return not Path(name).is_absolute() and ".." not in Path(name).parts


def _frames(given: Mapping[str, Matrix]) -> Frames:
    if not {"nerfstudio", "dataset"} <= set(given) <= set(_FRAMES):
        raise ValueError(f"its frames are {sorted(given)}")
    known = {name: np.asarray(given[name], dtype=np.float64) for name in _FRAMES if name in given}
    for matrix in known.values():
        if matrix.shape != (4, 4) or not abs(np.linalg.det(matrix)) > 0:
            raise ValueError("a frame is no invertible matrix, 4 x 4")
    return Frames({name: Frame(matrix) for name, matrix in known.items()})


def _split(name: str, names: list[str], tensors: Mapping[str, Tensor]) -> Split:
    """Rebuilds the cameras of a split, each attribute of shape (views, ...)."""
    values: dict[str, Any] = {}
    for part in (*CAMERAS, LENS):
        tensor = tensors.get(f"{name}.{part}")
        if tensor is None and part == LENS:
            continue
        shape = {"camera_to_worlds": (3, 4), LENS: (6,)}.get(part, (1,))
        if tensor is None or tuple(tensor.shape) != (len(names), *shape):
            raise ValueError(f"{name}.{part} does not fit its {len(names)} photographs")
        if not torch.isfinite(tensor).all():
            raise ValueError(f"{name}.{part} has values that are not finite")
        values[part] = tensor
    return Split(tuple(names), Cameras(**values), None)


def _model(
    note: Note, tensors: Mapping[str, Tensor], num_views: int, device: torch.device
) -> FeatureFieldModel:
    config = FeatureFieldModelConfig(**_options(note.options))
    config.camera_optimizer = CameraOptimizerConfig(mode="off")
    if config.implementation == "torch":
        chosen = choose_implementation("auto", device, with_tcnn=False)
        config.implementation = chosen.implementation
    if device.type == "cpu":
        config.eval_num_rays_per_chunk = min(config.eval_num_rays_per_chunk, CPU_RAYS)
    heads = msgspec.convert(note.field["heads"], list[HeadSpec])
    if any(not 0 < head.channels <= _LARGEST for head in heads):
        raise ValueError("a head has no or too many channels")
    if any(
        not 0 <= trunk < len(heads) for trunk in msgspec.convert(note.field["trunks"], list[int])
    ):
        raise ValueError("a head has no trunk")
    field = {**note.field, "heads": [trusted(head).to_dict() for head in heads]}
    box = SceneBox(tensors[f"{MODEL}field.aabb"])
    model = config.setup(scene_box=box, num_train_data=num_views, metadata={}, device=device)
    state: dict[str, Any] = {
        name.removeprefix(MODEL): tensor
        for name, tensor in tensors.items()
        if name.startswith(MODEL)
    }
    model.to(device).eval()
    model.load_state_dict({**state, "feature_field._extra_state": field})
    return model


def _options(plain: Mapping[str, Any]) -> dict[str, Any]:
    """Converts the options of a model to their types; those that have default values may lack."""
    hints = get_type_hints(FeatureFieldModelConfig)
    known = {each.name for each in fields(FeatureFieldModelConfig)} - set(LEFT_OUT)
    if not set(plain) <= known:
        raise ValueError(f"it has the unknown options {sorted(set(plain) - known)}")
    _check_sizes("", plain)
    return {name: msgspec.convert(value, hints[name]) for name, value in plain.items()}


def _check_sizes(name: str, value: object) -> None:
    """Refuses numbers with which a model would take all memory."""
    most = _LARGEST_TABLE if name.endswith("log2_hashmap_size") else _LARGEST
    if isinstance(value, int) and not 0 <= value <= most:
        raise ValueError(f"its option {name} is {value}")
    for key, inner in value.items() if isinstance(value, dict) else ():
        _check_sizes(str(key), inner)
    for inner in value if isinstance(value, list) else ():
        _check_sizes(name, inner)


def trusted(head: HeadSpec) -> HeadSpec:
    """Returns a head without towers, unless they are those of a feature type of f3rm's.

    Weights of one's own are a path, and some adapters import programs by name.
    """
    if any(head.backbone == preset.backbone for preset in PRESETS.values()):
        return head
    return HeadSpec(head.name, head.channels, False, BackboneRef("none", head.backbone.model, ""))
