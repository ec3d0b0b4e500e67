"""A scene's surfaces as a point cloud, coloured by what the user asks for."""

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
from f3rm.language.questions import Question
from f3rm.scene.export.files import CLOUD_SUFFIXES, ExportError, check_file, write_cloud
from f3rm.scene.frames import FrameName
from f3rm.scene.scene import Scene
from f3rm.scene.surface import SurfacePoints

Colour = Literal["rgb", "pca", "similarity"]


@dataclass(frozen=True)
class Sampling:
    """Which points of the surfaces are exported."""

    rays: int = 1 << 17
    """Pixels of training views that are rendered; most give a point."""
    spacing: float | None = None
    """Edge of a grid's cells whose points are averaged, in units of the frame; all without it."""
    frame: FrameName = "dataset"
    """Frame of the file: dataset (of transforms.json), metres, or nerfstudio (the run's own)."""


@dataclass(frozen=True)
class Look:
    """What points are coloured by."""

    colour: Colour = "rgb"
    """Colours: of the photographs, the PCA of the features, or the similarity to the query."""
    head: str | None = None
    """The feature head that is coloured or asked; without it the first that fits."""


def export_points(
    scene: Scene, file: StrPath, sampling: Sampling, look: Look, *, query: str | None = None
) -> SurfacePoints:
    """Writes the surfaces as PLY, with the score of a query as the property ``similarity``.

    Args:
        scene: The scene.
        file: Where to.
        sampling: Which points.
        look: Their colours.
        query: What is asked, or None.

    Returns:
        The points, in the frame of the file.

    Raises:
        ExportError: If the file's ending does not fit, it cannot be written, or a query is missing.
        F3rmError: If query, head or frame cannot be used.
    """
    file = as_path(file)
    place = check_file(file, CLOUD_SUFFIXES, what="a point cloud")
    question = _question(scene, look, query)
    points = surface(scene, sampling)
    scores = None if question is None else scores_of(points, question)
    scalars = {} if scores is None else {"similarity": scores.numpy()}
    colours = point_colours(points, look.colour, scene.head(look.head), scores)
    write_cloud(place, points.positions.numpy(), colours, scalars)
    return points


def surface(scene: Scene, sampling: Sampling) -> SurfacePoints:
    """Returns the points that are exported.

    Raises:
        ExportError: If there is none, or their number or spacing is not positive.
        F3rmError: If the frame is not known.
    """
    if sampling.rays < 1 or not (sampling.spacing is None or sampling.spacing > 0):
        msg = (
            f"export: rays and spacing must be > 0, got {sampling.rays} and {sampling.spacing}. "
            "Leave them out for the defaults."
        )
        raise ExportError(msg)
    points = scene.surface_points(sampling.rays, spacing=sampling.spacing, frame=sampling.frame)
    if not len(points):
        msg = (
            "export: the scene must have surfaces, got none: no ray of a training view is absorbed "
            "by half. Train longer."
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
        colour: What the colours show.
        head: The head of ``pca``.
        scores: Scores in [0, 1] for ``similarity``: blue is 0, red is 1.

    Raises:
        ExportError: If there are no scores to show.
    """
    if colour == "similarity":
        if scores is None:
            msg = "export: query must be given to colour by similarity, got none. Add --query."
            raise ExportError(msg)
        colours = apply_float_colormap(scores.clamp(0, 1)[:, None], "turbo")
    elif colour == "pca":
        weight = head.weight.detach()
        colours = pca_colours_from_hidden(points.hidden.to(weight), weight, head.pca)
    else:
        colours = points.colours
    return (colours.cpu().clamp(0, 1) * 255).round().to(torch.uint8).numpy()


@torch.no_grad()
def scores_of(points: SurfacePoints, question: Question) -> Float[Tensor, " points"]:
    """Returns how well points answer a question."""
    return question.scores(points.hidden.to(question.device)).float().cpu()


def _question(scene: Scene, look: Look, query: str | None) -> Question | None:
    if query is None:
        if look.colour == "similarity":
            msg = "export: query must be given to colour by similarity, got none. Add --query."
            raise ExportError(msg)
        return None
    head = look.head if look.colour == "similarity" else None
    return scene.question(query, head=head)
