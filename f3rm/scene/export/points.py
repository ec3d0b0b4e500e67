"""A scene's surfaces as a coloured point cloud."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float, UInt8
from nerfstudio.utils.colormaps import apply_float_colormap
from torch import Tensor

from f3rm.colours.pca import pca_colours_from_hidden
from f3rm.errors import StrPath, as_path
from f3rm.feature_field import FeatureHead
from f3rm.language.questions import Query, Question, all_scores, questions_in
from f3rm.scene.export.files import CLOUD_SUFFIXES, ExportError, check_file, write_cloud
from f3rm.scene.frames import FrameName
from f3rm.scene.scene import Scene
from f3rm.scene.surface import SurfacePoints

Colour = Literal["rgb", "pca", "similarity"]


@dataclass(frozen=True)
class Sampling:
    """Number, spacing and frame of the exported points."""

    rays: int = 1 << 17
    """Pixels of training views to render; most give a point."""
    spacing: float | None = None
    """Edge of the grid cells whose points are averaged, in units of the frame; None keeps all."""
    frame: FrameName = "dataset"
    """Frame of the file: dataset (of transforms.json), metres, or nerfstudio (the run's own)."""


@dataclass(frozen=True)
class Look:
    """Colours of points."""

    colour: Colour = "rgb"
    """The photographs' colours, the features' PCA, or the similarity to the query."""
    head: str | None = None
    """The feature head of PCA or query; None for the first that fits."""


def export_points(
    scene: Scene, file: StrPath, sampling: Sampling, look: Look, *, query: Query | None = None
) -> SurfacePoints:
    """Writes the surfaces as PLY, with a query's highest score as the property ``similarity``.

    Args:
        scene: The scene.
        file: The file.
        sampling: Number, spacing and frame of the points.
        look: Their colours.
        query: The query, or None.

    Returns:
        The points, in the frame of the file.

    Raises:
        ExportError: If the file's ending does not fit, it cannot be written, or a query is missing.
        F3rmError: If query, head or frame cannot be used.
    """
    path = check_file(as_path(file), CLOUD_SUFFIXES, what="a point cloud")
    asked = _questions(scene, look, query)  # before the points, which take long
    points = surface(scene, sampling)
    scores = scores_of(points, asked) if asked else None
    scalars = {} if scores is None else {"similarity": scores.numpy()}
    colours = point_colours(points, look.colour, scene.head(look.head), scores)
    write_cloud(path, points.positions.numpy(), colours, scalars)
    return points


def surface(scene: Scene, sampling: Sampling) -> SurfacePoints:
    """Returns the points to export.

    Raises:
        ExportError: If there are none, or ``rays`` or ``spacing`` is not positive.
        F3rmError: If the frame is not known.
    """
    if sampling.rays < 1 or not (sampling.spacing is None or sampling.spacing > 0):
        msg = (
            f"--rays and --spacing must be > 0, got {sampling.rays} and {sampling.spacing}. Leave "
            "them out for the defaults."
        )
        raise ExportError(msg)
    points = scene.surface_points(sampling.rays, spacing=sampling.spacing, frame=sampling.frame)
    if not len(points):
        msg = (
            "The scene has no surfaces: no ray of a training view reaches an accumulation of 0.5. "
            "Train longer."
        )
        raise ExportError(msg)
    return points


def point_colours(
    points: SurfacePoints,
    colour: Colour,
    head: FeatureHead,
    scores: Float[Tensor, " points"] | None,
) -> UInt8[np.ndarray, "points 3"]:
    """Returns the colours of points.

    Args:
        points: The points.
        colour: Meaning of the colours.
        head: The head of ``pca``.
        scores: Scores in [0, 1], needed for ``similarity``: blue is 0, red is 1.
    """
    if colour == "similarity":
        assert scores is not None  # noqa: S101 - both callers have a query then
        colours = apply_float_colormap(scores.clamp(0, 1)[:, None], "turbo")
    elif colour == "pca":
        weight = head.weight.detach()
        colours = pca_colours_from_hidden(points.hidden.to(weight), weight, head.pca)
    else:
        colours = points.colours
    return (colours.cpu().clamp(0, 1) * 255).round().to(torch.uint8).numpy()


@torch.no_grad()
def scores_of(points: SurfacePoints, asked: Sequence[Question]) -> Float[Tensor, " points"]:
    """Returns the highest score of points for any of some questions."""
    return all_scores(asked, points.hidden.to(asked[0].device)).amax(dim=-1).float().cpu()


def _questions(scene: Scene, look: Look, query: Query | None) -> list[Question]:
    if query is None:
        if look.colour == "similarity":
            raise ExportError("--colour similarity needs a query, got none. Add --query.")
        return []
    # The head of another colour may have no text tower.
    head = look.head if look.colour == "similarity" else None
    return [scene.question(each, head=head) for each in questions_in(query)]
