"""Pictures of a scene, rendered a few rows at a time: only the results grow with picture size.

Each picture is made from the composited hidden vectors of its rows; only ``features`` and
``hidden`` have more than a few channels.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
import torch
from jaxtyping import Bool, Float
from nerfstudio.cameras.cameras import Cameras
from nerfstudio.cameras.rays import RayBundle
from scipy.spatial import KDTree
from torch import Tensor

from f3rm.camera_render import CameraOutputs
from f3rm.colours.palette import best_query_index, composite
from f3rm.colours.pca import pca_colours_from_hidden
from f3rm.errors import F3rmError
from f3rm.feature_field import FeatureHead
from f3rm.language.questions import Question, all_scores
from f3rm.model import FeatureFieldModel
from f3rm.scene.casting import HIDDEN_ONLY, LEAST_ACCUMULATION, hidden_of

Output = Literal[
    "rgb",
    "depth",
    "accumulation",
    "pca",
    "similarity",
    "composite",
    "mask",
    "labels",
    "features",
    "hidden",
]
"""Names of the pictures; ``docs/rendering.md`` explains each."""

ANSWERING: frozenset[str] = frozenset(("composite", "mask", "labels"))
"""Outputs that compare scores with thresholds."""
ASKING: frozenset[str] = ANSWERING | {"similarity"}
"""Outputs that need a query."""


@dataclass(frozen=True)
class Wanted:
    """What to render of a camera.

    Attributes:
        outputs: Names of the pictures.
        head: The head of ``pca`` and ``features``.
        questions: The queries.
        thresholds: Each query's least score of a matching pixel.
        compete: Whether a pixel is in the mask of its best query only.
        units_per_scene: Length of the scene frame's unit in that of ``depth``.
    """

    outputs: tuple[str, ...]
    head: FeatureHead
    questions: tuple[Question, ...]
    thresholds: tuple[float, ...]
    compete: bool
    units_per_scene: float

    def __post_init__(self) -> None:
        if len(self.thresholds) != len(self.questions):
            msg = (
                f"thresholds must be one per question, got {len(self.thresholds)} for "
                f"{len(self.questions)}. Leave them out to choose them by the scene."
            )
            raise F3rmError(msg)


def check_outputs(outputs: Sequence[str], *, asked: bool) -> tuple[str, ...]:
    """Checks names of outputs and drops repeated ones.

    Args:
        outputs: The names.
        asked: Whether there is a query.

    Raises:
        F3rmError: If one is unknown, or needs a query where there is none.
    """
    known = get_args(Output)
    if not isinstance(outputs, Sequence) or isinstance(outputs, str):
        raise F3rmError(f"outputs must be a list of names, got {outputs!r}.")
    for name in outputs:
        if name not in known:
            raise F3rmError(f"There is no output {name!r}. Choose from {', '.join(known)}.")
        if name in ASKING and not asked:
            raise F3rmError(f"The output {name!r} needs a query, got none. Give one with --query.")
    if not outputs:
        raise F3rmError(f"No output was named. Choose at least one of {', '.join(known)}.")
    return tuple(dict.fromkeys(outputs))


def render_bands(
    model: FeatureFieldModel, camera: Cameras
) -> Iterator[tuple[RayBundle, CameraOutputs]]:
    """Renders a camera from top to bottom, about as many rows at once as the model takes rays.

    Args:
        model: The trained model.
        camera: One camera of shape (1,), in the scene frame.

    Yields:
        The rays of some rows, and Nerfacto's outputs with hidden vectors for them.
    """
    camera = camera.to(model.device)
    height, width = int(camera.height[0]), int(camera.width[0])
    step = max(1, model.config.eval_num_rays_per_chunk // width)
    columns = torch.arange(width, device=model.device) + 0.5
    for start in range(0, height, step):
        rows = torch.arange(start, min(start + step, height), device=model.device) + 0.5
        coords = torch.stack(torch.meshgrid(rows, columns, indexing="ij"), dim=-1)
        bundle = camera.generate_rays(camera_indices=0, coords=coords)
        yield bundle, model.get_outputs_for_camera_ray_bundle(bundle, request=HIDDEN_ONLY)


@torch.no_grad()
def render_images(
    bands: Iterable[tuple[RayBundle, CameraOutputs]], camera: Cameras, wanted: Wanted
) -> dict[str, Tensor]:
    """Makes pictures of one camera.

    Args:
        bands: Its rows from top to bottom; see :func:`render_bands`.
        camera: One camera of shape (1,).
        wanted: Outputs, head, queries and units.

    Returns:
        Pictures by name on the CPU, of shape (height, width) or (height, width, channels).
    """
    size = int(camera.height[0]), int(camera.width[0])
    images: dict[str, Tensor] = {}
    start = 0
    for bundle, band in bands:
        stop = start + len(bundle.origins)
        for name, rows in _band_images(band, wanted).items():
            if name not in images:
                images[name] = torch.empty((*size, *rows.shape[2:]), dtype=rows.dtype)
            # Into one array: a list of bands would be held twice when they are joined.
            images[name][start:stop] = rows.cpu()
        start = stop
    return images


def _band_images(band: CameraOutputs, wanted: Wanted) -> dict[str, Tensor]:
    hidden, names = hidden_of(band), wanted.outputs
    images = {
        "rgb": band["rgb"],
        "depth": band["depth"][..., 0] * wanted.units_per_scene,
        "accumulation": band["accumulation"][..., 0],
        "hidden": hidden,
    }
    if "pca" in names:
        images["pca"] = pca_colours_from_hidden(hidden, wanted.head.weight, wanted.head.pca)
    if "features" in names:
        images["features"] = wanted.head(hidden)
    if ASKING & set(names):
        images |= _query_images(band, all_scores(wanted.questions, hidden), wanted)
    return {name: images[name] for name in names}


def _query_images(
    band: CameraOutputs,
    scores: Float[Tensor, "rows width questions"],
    wanted: Wanted,
) -> dict[str, Tensor]:
    thresholds = wanted.thresholds
    on_surface: Bool[Tensor, "rows width 1"] = band["accumulation"] >= LEAST_ACCUMULATION
    # A ray without a surface still has a score, of next to nothing; it must not match.
    matchable = torch.where(on_surface, scores, -torch.inf)
    labels = best_query_index(matchable, thresholds)
    own = labels[..., None] == torch.arange(len(thresholds), device=labels.device)
    return {
        "similarity": scores,
        "mask": own if wanted.compete else matchable >= matchable.new_tensor(thresholds),
        "labels": labels,
        "composite": composite(band["rgb"], matchable, thresholds),
    }


@torch.no_grad()
def render_mask(
    bands: Iterable[tuple[RayBundle, CameraOutputs]],
    points: Float[Tensor, "points 3"],
    reach: float,
) -> Bool[Tensor, "height width"]:
    """Returns the pixels whose surface is near one of some points.

    Args:
        bands: A camera's rows from top to bottom; see :func:`render_bands`.
        points: The points, in the scene frame.
        reach: Largest distance of a pixel's surface to the nearest point.
    """
    tree = KDTree(points.numpy())
    rows: list[Tensor] = []
    for bundle, band in bands:
        positions = (bundle.origins + bundle.directions * band["depth"]).cpu().double()
        distances, _ = tree.query(positions.numpy(), distance_upper_bound=reach)
        on_surface = band["accumulation"][..., 0].cpu() >= LEAST_ACCUMULATION
        rows.append(torch.from_numpy(np.isfinite(distances)) & on_surface)
    return torch.cat(rows)
