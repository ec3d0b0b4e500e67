"""The features of a scene's surfaces as files: small and exact, or with every channel written out.

A head is linear, so all C channels of a point are ``basis @ coefficients`` with one basis for all
points: 64 numbers per point hold 768 channels exactly.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch
from jaxtyping import Float, UInt8
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor
from torch.nn import functional

from f3rm.errors import HeadSpec, StrPath, as_path
from f3rm.feature_field import FeatureHead
from f3rm.scene.export.files import ExportError, check_file, write_file
from f3rm.scene.export.points import Sampling, surface
from f3rm.scene.scene import Scene
from f3rm.scene.surface import SurfacePoints
from f3rm.store.progress import progress_bar

FEATURE_SUFFIXES = (".safetensors", ".npy")
_FORMAT = "f3rm features 1"
_BATCH = 1 << 14


@dataclass(frozen=True)
class FeaturePoints:
    """Points with features, as :func:`read_features` returns them.

    Attributes:
        positions: Positions, in ``frame``.
        colours: RGB in [0, 255].
        coefficients: Features in the basis.
        basis: Basis of all features.
        head: The feature head.
        frame: The frame of the positions.
    """

    positions: Float[Tensor, "points 3"]
    colours: UInt8[Tensor, "points 3"]
    coefficients: Float[Tensor, "points hidden"]
    basis: Float[Tensor, "channels hidden"]
    head: HeadSpec
    frame: str

    def features(self, rows: slice = slice(None)) -> Float[Tensor, "rows channels"]:
        """Returns all channels of some points, not normalised."""
        return functional.linear(self.coefficients[rows], self.basis)


def export_features(
    scene: Scene,
    file: StrPath,
    sampling: Sampling,
    *,
    head: str | None = None,
    show_progress: bool = False,
) -> SurfacePoints:
    """Writes the features of the surfaces.

    Args:
        scene: The scene.
        file: ``.safetensors`` for coefficients and basis; ``.npy`` for all channels as float16, and
            the positions beside it, as ``<name>_positions.npy``.
        sampling: Number, spacing and frame of the points.
        head: The feature head; None for the first.
        show_progress: Whether a bar counts points.

    Returns:
        The points, in the frame of the file.

    Raises:
        ExportError: If the file's ending does not fit, or it cannot be written.
        F3rmError: If head or frame cannot be used.
    """
    path = check_file(as_path(file), FEATURE_SUFFIXES, what="features")
    chosen = scene.head(head)
    points = surface(scene, sampling)
    if path.suffix.lower() == ".npy":
        _write_channels(path, points, chosen, show_progress=show_progress)
    else:
        _write_coefficients(path, points, chosen, sampling.frame)
    return points


def _write_coefficients(file: Path, points: SurfacePoints, head: FeatureHead, frame: str) -> None:
    tensors = {
        "positions": points.positions.float().contiguous(),
        "colours": (points.colours.clamp(0, 1) * 255).round().to(torch.uint8).contiguous(),
        "coefficients": points.hidden[:, head.columns].contiguous(),
        "basis": head.linear.weight.detach().cpu().contiguous(),
    }
    facts = {"format": _FORMAT, "frame": frame, "head": json.dumps(head.spec.to_dict())}
    content = save(tensors, facts)
    write_file(file, lambda stream: stream.write(content))


@torch.no_grad()
def _write_channels(
    file: Path, points: SurfacePoints, head: FeatureHead, *, show_progress: bool
) -> None:
    header = {
        "descr": np.lib.format.dtype_to_descr(np.dtype(np.float16)),
        "fortran_order": False,
        "shape": (len(points), head.spec.channels),
    }

    # In batches: 100,000 points of 5,120 channels are a gigabyte.
    def write(stream: BinaryIO) -> None:
        np.lib.format.write_array_header_1_0(stream, header)
        with progress_bar(show=show_progress, unit="points") as bar:
            task = bar.add_task("features", total=len(points))
            for hidden in points.hidden.split(_BATCH):
                features = head(hidden.to(head.linear.weight)).half().cpu()
                stream.write(features.contiguous().numpy().tobytes())
                bar.advance(task, len(hidden))

    positions = points.positions.float().numpy()
    beside = file.with_name(f"{file.stem}_positions.npy")
    write_file(beside, lambda stream: np.save(stream, positions))
    write_file(file, write)


def read_features(file: StrPath) -> FeaturePoints:
    """Reads a file of ``f3rm export RUN features --out NAME.safetensors``; no run is needed.

    Raises:
        ExportError: If it is another file, or damaged.
    """
    file = as_path(file)
    if not file.is_file():
        raise ExportError(f"No such file: {str(file)!r}.")
    try:
        with safe_open(file, framework="pt") as content:
            facts = content.metadata() or {}
            if facts.get("format") != _FORMAT:
                raise ExportError(_unreadable(file, f"format {facts.get('format')!r}"))
            tensors = {name: content.get_tensor(name) for name in content.keys()}  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        raise ExportError(_unreadable(file, str(error))) from error
    head = HeadSpec.from_dict(json.loads(facts["head"]))
    return FeaturePoints(**tensors, head=head, frame=facts["frame"])


def _unreadable(file: Path, got: str) -> str:
    return f"{str(file)!r} is no file of f3rm export RUN features: {got}. Export it again."
