"""Opens Gaussians with the dataset that they were trained on: a ``.ply``, or a splatfacto run.

A run is in the frame of its dataparser, which is kept beside it. A ``.ply`` does not say which
frame it is in. Its features do, once there are some. Before, it is
the frame in which the splat shows what the photographs show, of those that programs write:
*dataset* (the poses of transforms.json), *nerfstudio* (``ns-export``; the run's
``dataparser_transforms.json`` is read where it is beside the file) and *colmap* (INRIA's training
on the sparse model that the dataset was made from).
"""

import copy
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Float64
from nerfstudio.cameras.cameras import Cameras
from nerfstudio.data.dataparsers.base_dataparser import DataParserConfig, DataparserOutputs
from nerfstudio.data.dataparsers.nerfstudio_dataparser import NerfstudioDataParserConfig
from nerfstudio.models.splatfacto import SplatfactoModelConfig

from f3rm.errors import DatasetError, F3rmError, StrPath, as_path
from f3rm.scene.frames import Frame, Frames
from f3rm.scene.metres import affine_map
from f3rm.scene.run_loading import (
    Split,
    config_file,
    locate_data,
    newest_checkpoint,
    read_checkpoint,
    read_config,
)
from f3rm.scene.splat.answers import SplatSource
from f3rm.scene.splat.cameras import Photographs
from f3rm.splats.feature_file import read_heads
from f3rm.splats.gaussians import Gaussians
from f3rm.splats.ply import read_ply
from f3rm.splats.rasterizer import ImplementationChoice
from f3rm.splats.splatfacto import gaussians_of
from f3rm.splats.views import (
    LEAST_COVER,
    Agreement,
    PhotographsDisagreeError,
    compare,
)
from f3rm.store.items import dataset_root, read_items
from f3rm.training.lookup import match_items

SourceFrame = Literal["auto", "dataset", "nerfstudio", "colmap"]

SUFFIX = ".ply"
DATASET_FROM_SOURCE = "dataset_from_source"
"""Key of the provenance of features: the splat's frame, 4 x 4."""

_TRANSFORMS_FILE = "dataparser_transforms.json"
_COMPARED = 4
_COMPARED_SIDE = 200
"""Photographs, and pixels of their longest side, that a splat is compared with."""


@dataclass(frozen=True)
class LoadedSplat:
    """A splat and its dataset.

    Attributes:
        config_path: Its ``.ply``, or the run's ``config.yml``.
        file: The file of the Gaussians, beside which their features are: the ``.ply``, or the run's
            newest checkpoint.
        data: The dataset's folder, or a ``.json`` file in it.
        source: Its answers.
        train: The photographs that a run on the dataset is trained on, and features are lifted
            from.
        held_out: The others.
        paths: Files of the photographs of ``train``.
        held_out_paths: Files of those of ``held_out``.
        provenance: By head, what its features were made from.
    """

    config_path: Path
    file: Path
    data: Path
    source: SplatSource
    train: Split
    held_out: Split
    paths: tuple[Path, ...]
    held_out_paths: tuple[Path, ...]
    provenance: Mapping[str, Mapping[str, Any]]

    def __str__(self) -> str:
        """Returns file, size and photographs."""
        return (
            f"{self.config_path}: {len(self.source.gaussians)} Gaussians, {len(self.train.names)} "
            f"training and {len(self.held_out.names)} held-out photographs of {self.data}"
        )

    def photographs(self, longest: int) -> Photographs:
        """Returns the training photographs as the splat's views.

        Args:
            longest: Longest side of their pictures.
        """
        return _photographs(self.train, self.paths, self.source.source, longest)


@dataclass(frozen=True)
class _Found:
    """What a splat is read from: its configuration, file, Gaussians and dataset."""

    config_path: Path
    file: Path
    gaussians: Gaussians
    data: Path
    parser: DataParserConfig


def is_splat(path: StrPath) -> bool:
    """Returns whether a path is that of a ``.ply`` or of a splatfacto run.

    Raises:
        RunError: If it is neither a ``.ply`` nor a run.
    """
    path = as_path(path)
    if path.suffix.lower() == SUFFIX:
        return True
    model = read_config(config_file(path)).pipeline.model
    return isinstance(model, SplatfactoModelConfig)


def load_splat(
    splat: StrPath,
    *,
    data: StrPath | None = None,
    device: torch.device,
    source_frame: SourceFrame = "auto",
    implementation: ImplementationChoice = "auto",
    check: bool = True,
) -> LoadedSplat:
    """Opens a splat with its dataset, and the features beside it.

    Args:
        splat: A ``.ply``, or the ``config.yml`` of a splatfacto run or its folder.
        data: The dataset, whose ``transforms.json`` has the cameras; None for that of a run.
        device: Where the splat is drawn.
        source_frame: The frame of a ``.ply``; ``auto`` takes that of its features, or else the one
            in which it shows what the photographs show.
        implementation: What draws it.
        check: Whether a splat that shows something else is refused, where it has no features.

    Raises:
        SplatFileError: If the file or its features cannot be used.
        RunError: If the run, or its dataset, cannot be used.
        DatasetError: If the dataset cannot be used, or is not given.
        PhotographsDisagreeError: If ``check``, and the splat does not show what the photographs
            show.
    """
    found = _found(as_path(splat).expanduser().absolute(), data)
    heads = read_heads(found.file, len(found.gaussians))
    items = read_items(found.data)  # Nerfstudio's own errors name no file
    outputs, held_out = _parsed(found)
    frames = Frames.of_dataset(outputs, found.data)
    train, left_out = (
        Split(tuple(match_items(each.image_filenames, items)), each.cameras, None)
        for each in (outputs, held_out)
    )
    gaussians = found.gaussians.to(device)
    known = [head.provenance[DATASET_FROM_SOURCE] for head in heads.values()]
    if known and source_frame == "auto":
        source = Frame(frames.get("dataset").scene_from_frame @ _matrix(known[0], found.file))
    else:
        candidates = _candidates(outputs, frames, found, source_frame)
        source = _agreeing(
            gaussians, candidates, train, outputs, implementation=implementation, check=check
        )
    return LoadedSplat(
        config_path=found.config_path,
        file=found.file,
        data=found.data,
        source=SplatSource(
            gaussians,
            heads,
            frames=frames,
            source=source,
            cameras=outputs.cameras,
            implementation=implementation,
        ),
        train=train,
        held_out=left_out,
        paths=tuple(outputs.image_filenames),
        held_out_paths=tuple(held_out.image_filenames),
        provenance={name: head.provenance for name, head in heads.items()},
    )


def _found(path: Path, data: StrPath | None) -> _Found:
    if path.suffix.lower() == SUFFIX:
        return _Found(path, path, read_ply(path), _checked(data), NerfstudioDataParserConfig())
    config_path = config_file(path)
    config = read_config(config_path)
    file = newest_checkpoint(config_path, config)
    root = locate_data(config, None if data is None else as_path(data))
    parser: Any = config.pipeline.datamanager
    gaussians = gaussians_of(read_checkpoint(file)["pipeline"])
    return _Found(config_path, file, gaussians, root, parser.dataparser)


def _checked(data: StrPath | None) -> Path:
    if data is None:
        raise DatasetError(
            "A splat is opened with the dataset that it was trained on, got none. Give it with "
            "--data (data= in Python)."
        )
    return as_path(data).expanduser().absolute()


def _parsed(found: _Found) -> tuple[DataparserOutputs, DataparserOutputs]:
    """Parses the dataset as a run does, at the size of its photographs."""
    config: Any = copy.deepcopy(found.parser)
    # Where it has to choose a factor, Nerfstudio opens a picture and never closes it.
    config.data, config.downscale_factor, config.load_3D_points = found.data, 1, False
    try:
        parser = config.setup()
        return parser.get_dataparser_outputs("train"), parser.get_dataparser_outputs("val")
    except (AssertionError, KeyError, ValueError, IndexError, TypeError, RuntimeError) as error:
        msg = (
            f"Nerfstudio cannot read the cameras of {str(found.data)!r}: {type(error).__name__}: "
            f"{error}. Make the dataset with ns-process-data."
        )
        raise DatasetError(msg) from error


def _candidates(
    outputs: DataparserOutputs, frames: Frames, found: _Found, source_frame: SourceFrame
) -> dict[str, Frame]:
    """Returns the frames that a splat of the dataset may be in: of a run, and if named, one."""
    ply = found.file
    if found.file != found.config_path and source_frame == "auto":
        source_frame = "nerfstudio"
    parsed = np.eye(4)
    parsed[:3] = outputs.dataparser_transform.double().cpu().numpy()[:3]
    parsed = np.diag([*[outputs.dataparser_scale] * 3, 1.0]) @ parsed
    nerfstudio = np.eye(4)
    beside = next(
        (each / _TRANSFORMS_FILE for each in (ply.parent, ply.parent.parent)
         if (each / _TRANSFORMS_FILE).is_file()),
        None,
    )  # fmt: skip
    if beside is not None:
        nerfstudio = parsed @ np.linalg.inv(_read_transform(beside))
    known = {
        "dataset": frames.get("dataset"),
        "nerfstudio": Frame(nerfstudio),
        "colmap": Frame(parsed),
    }
    return known if source_frame == "auto" else {source_frame: known[source_frame]}


def _read_transform(path: Path) -> Float64[np.ndarray, "4 4"]:
    """Reads the map from the poses that a run's dataparser read to the run's frame."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        matrix = affine_map([*content["transform"], [0, 0, 0, 1]])
        return np.diag([*[float(content["scale"])] * 3, 1.0]) @ matrix
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        msg = f"{str(path)!r} is no {_TRANSFORMS_FILE} of Nerfstudio: {error}. Move it away."
        raise DatasetError(msg) from error


def _matrix(rows: object, ply: Path) -> Float64[np.ndarray, "4 4"]:
    try:
        return affine_map(rows)
    except (ValueError, TypeError) as error:
        msg = f"The features beside {str(ply)!r} name no frame: {error}. Remove them, attach again."
        raise F3rmError(msg) from error


def _agreeing(
    gaussians: Gaussians,
    candidates: Mapping[str, Frame],
    train: Split,
    outputs: DataparserOutputs,
    *,
    implementation: ImplementationChoice,
    check: bool,
) -> Frame:
    """Returns the frame in which the splat shows most of what the photographs show."""
    chosen = np.linspace(0, len(train.names) - 1, min(_COMPARED, len(train.names))).round()
    found: dict[str, Agreement] = {}
    for name, source in candidates.items():
        views = _photographs(train, outputs.image_filenames, source, _COMPARED_SIDE)
        some = [views[int(number)] for number in chosen]
        found[name] = compare(gaussians, some, implementation=implementation)
    best = max(found, key=lambda name: found[name].gain)
    if check and not found[best].is_good:
        raise PhotographsDisagreeError(_disagreement(found))
    return candidates[best]


def _disagreement(found: Mapping[str, Agreement]) -> str:
    if max(each.cover for each in found.values()) < LEAST_COVER:
        return (
            f"No photograph shows the splat: it covers less than {LEAST_COVER:.0%} of them in the "
            f"frame {' or '.join(found)}. It is in another frame, or of another scene."
        )
    measured = ", ".join(
        f"{name} {each.psnr:.1f} dB ({each.gain:+.1f} dB)" for name, each in found.items()
    )
    return (
        "The splat does not show what the photographs show. PSNR by the frame that it would be in "
        f"(and above that of a photograph's mean colour): {measured}. Give the dataset that it was "
        "trained on, or --source-frame; --anyway goes on with the best of these."
    )


def _photographs(
    split: Split, paths: tuple[Path, ...] | list[Path], source: Frame, longest: int
) -> Photographs:
    cameras: Cameras = split.cameras
    return Photographs(split.names, list(paths), cameras, source, longest=longest)


def dataset_from_source(splat: LoadedSplat) -> Float64[np.ndarray, "4 4"]:
    """Returns the map from a splat's frame to that of transforms.json."""
    dataset = splat.source.frames.get("dataset").scene_from_frame
    return np.linalg.inv(dataset) @ splat.source.source.scene_from_frame


def data_name(splat: LoadedSplat) -> str:
    """Returns the name of a splat's dataset folder."""
    return dataset_root(splat.data).name
