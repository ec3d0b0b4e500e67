"""A trained run as a splat: flat Gaussians on its surfaces, with its features beside them."""

from dataclasses import replace

import numpy as np
import torch
from torch.nn import functional

from f3rm.errors import CacheError, StrPath, as_path
from f3rm.scene.export.files import CLOUD_SUFFIXES, ExportError, check_file
from f3rm.scene.export.points import Sampling, surface
from f3rm.scene.frames import Frame
from f3rm.scene.scene import SPACING, Scene
from f3rm.scene.splat.answers import SplatSource
from f3rm.scene.splat.loading import DATASET_FROM_SOURCE
from f3rm.scene.surface import SurfacePoints
from f3rm.splats.feature_file import HeadFeatures, write_head
from f3rm.splats.gaussians import Gaussians
from f3rm.splats.lifting import HIDDEN
from f3rm.splats.ply import write_ply
from f3rm.splats.surfels import surfels

_FEWEST = 4


def export_splat(scene: Scene, file: StrPath, sampling: Sampling) -> SurfacePoints:
    """Writes a Gaussian per surface point, as wide as the points are apart, and the features.

    ``f3rm.load(file, data=...)`` opens the result; viewers of splats show it.

    Args:
        scene: A trained run.
        file: The ``.ply``; a file of features per head is written beside it.
        sampling: Number, spacing and frame of the Gaussians; without a spacing, that of the cells
            in which instances are found.

    Returns:
        The points, in the frame of the file.

    Raises:
        ExportError: If the scene is a splat already or has no surfaces, or a file cannot be
            written.
        F3rmError: If the frame cannot be used.
    """
    path = check_file(as_path(file), CLOUD_SUFFIXES, what="a splat")
    if isinstance(scene.source, SplatSource):
        raise ExportError(
            "The scene is a splat already. Copy its .ply and the files beside it; of a splatfacto "
            "run ns-export gaussian-splat writes a .ply."
        )
    points, gaussians = surface_splat(scene, sampling)
    try:
        write_ply(path, gaussians)
        for head in _heads(scene, points, scene.frames.get(sampling.frame)):
            write_head(path, head)
    except CacheError as error:
        raise ExportError(f"Cannot write {str(path)!r}: {error}. Give another --out.") from error
    return points


def surface_splat(scene: Scene, sampling: Sampling) -> tuple[SurfacePoints, Gaussians]:
    """Makes a flat Gaussian of every surface point, as wide as the points are apart.

    Args:
        scene: A trained run.
        sampling: Number, spacing and frame of the Gaussians; see :func:`export_splat`.

    Raises:
        ExportError: If the scene has no surfaces.
        F3rmError: If the frame cannot be used.
    """
    spacing = sampling.spacing or SPACING / scene.frames.get(sampling.frame).scene_per_unit
    points = surface(scene, replace(sampling, spacing=spacing))
    if len(points) < _FEWEST:
        raise ExportError(f"The scene has {len(points)} surface points only. Give more --rays.")
    return points, surfels(points.positions, points.colours)


def _heads(scene: Scene, points: SurfacePoints, frame: Frame) -> list[HeadFeatures]:
    dataset = scene.frames.get("dataset").scene_from_frame
    provenance = {
        DATASET_FROM_SOURCE: (np.linalg.inv(dataset) @ frame.scene_from_frame).tolist(),
        "run": scene.run.config_path.parent.name,
    }
    made: list[HeadFeatures] = []
    for name in scene.heads:
        head = scene.head(name)
        hidden, weight = points.hidden[:, head.columns], head.linear.weight.detach().cpu()
        spare = (0, HIDDEN - weight.shape[1])
        if spare[1] < 0:
            msg = (
                f"Features of a splat have at most {HIDDEN} hidden channels, got {weight.shape[1]}."
            )
            raise ExportError(msg)
        made.append(
            HeadFeatures(
                spec=head.spec,
                coefficients=functional.pad(hidden, spare),
                weight=functional.pad(weight, spare),
                reliability=torch.ones(len(points)),
                weights=points.counts.float(),
                pca=head.pca,
                provenance=provenance,
            )
        )
    return made
