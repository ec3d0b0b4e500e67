"""Pictures of a scene, made a few rows at a time: memory beyond them does not grow with their size.

Each picture is made from the composited hidden vectors of its rows; only ``features`` and
``hidden`` have more than a few channels.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from jaxtyping import Float
from nerfstudio.cameras.cameras import Cameras
from nerfstudio.cameras.rays import RayBundle
from torch import Tensor

from f3rm.camera_render import CameraOutputs
from f3rm.colours.palette import belongs, composite
from f3rm.colours.pca import pca_colours_from_hidden
from f3rm.errors import F3rmError
from f3rm.feature_field import FeatureHead
from f3rm.language.questions import Question, all_scores
from f3rm.model import FeatureFieldModel
from f3rm.scene.surface import HIDDEN_ONLY, LEAST_ACCUMULATION, hidden_of

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
"""What can be rendered; ``docs/rendering.md`` explains each."""

ANSWERING: frozenset[str] = frozenset(("composite", "mask", "labels"))
"""Outputs that say where a query is answered."""
ASKING: frozenset[str] = ANSWERING | {"similarity"}
"""Outputs that need a query."""


@dataclass(frozen=True)
class Wanted:
    """What is rendered of every row.

    Attributes:
        outputs: Names of the pictures.
        head: The head of ``pca`` and ``features``.
        questions: What is asked.
        thresholds: From which score on each question counts as answered.
        units_per_scene: Length of the scene frame's unit in that of ``depth``.
    """

    outputs: tuple[str, ...]
    head: FeatureHead
    questions: tuple[Question, ...]
    thresholds: tuple[float, ...]
    units_per_scene: float


def check_outputs(outputs: Sequence[str], *, asked: bool) -> tuple[str, ...]:
    """Checks names of outputs.

    Args:
        outputs: The names.
        asked: Whether there is a query.

    Raises:
        F3rmError: If one is unknown, or needs a query where there is none.
    """
    known = get_args(Output)
    for name in outputs:
        if name not in known:
            msg = f"render: outputs must be among {', '.join(known)}, got {name!r}. Choose of them."
            raise F3rmError(msg)
        if name in ASKING and not asked:
            msg = (
                f"render: query must be given for the output {name!r}, got none. Say what to seek."
            )
            raise F3rmError(msg)
    if not outputs:
        msg = f"render: outputs must name at least one of {', '.join(known)}, got none. Add one."
        raise F3rmError(msg)
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
        stop = min(start + step, height)
        rows = torch.arange(start, stop, device=model.device) + 0.5
        coords = torch.stack(torch.meshgrid(rows, columns, indexing="ij"), dim=-1)
        bundle = camera.generate_rays(camera_indices=0, coords=coords)
        yield bundle, model.get_outputs_for_camera_ray_bundle(bundle, request=HIDDEN_ONLY)


@torch.no_grad()
def render_images(model: FeatureFieldModel, camera: Cameras, wanted: Wanted) -> dict[str, Tensor]:
    """Renders pictures of one camera.

    Args:
        model: The trained model.
        camera: One camera of shape (1,), in the scene frame.
        wanted: Which pictures.

    Returns:
        Pictures by name on the CPU, of shape (height, width) or (height, width, channels).
    """
    size = int(camera.height[0]), int(camera.width[0])
    images: dict[str, Tensor] = {}
    start = 0
    for bundle, band in render_bands(model, camera):
        stop = start + len(bundle.origins)
        for name, rows in _made(band, wanted).items():
            if name not in images:
                images[name] = torch.empty((*size, *rows.shape[2:]), dtype=rows.dtype)
            images[name][start:stop] = rows.cpu()
        start = stop
    return images


def _made(band: CameraOutputs, wanted: Wanted) -> Mapping[str, Tensor]:
    hidden, rgb, names = hidden_of(band), band["rgb"], wanted.outputs
    made = {
        "rgb": rgb,
        "depth": band["depth"][..., 0] * wanted.units_per_scene,
        "accumulation": band["accumulation"][..., 0],
        "hidden": hidden,
    }
    if "pca" in names:
        made["pca"] = pca_colours_from_hidden(hidden, wanted.head.weight, wanted.head.pca)
    if "features" in names:
        made["features"] = wanted.head(hidden)
    if ASKING & set(names):
        scores = all_scores(wanted.questions, hidden)  # (rows, width, questions)
        on_surface = band["accumulation"] >= LEAST_ACCUMULATION
        made |= _answers(scores, rgb, on_surface, wanted.thresholds)
    return {name: made[name] for name in names}


def _answers(
    scores: Float[Tensor, "rows width questions"],
    rgb: Float[Tensor, "rows width 3"],
    on_surface: Tensor,
    thresholds: tuple[float, ...],
) -> dict[str, Tensor]:
    """Draws scores; where a ray meets no surface, nothing is found.

    Args:
        scores: One score per pixel and question.
        rgb: The picture under the composite.
        on_surface: Where a ray meets a surface, shape (rows, width, 1).
        thresholds: From which score on each question counts as answered.
    """
    there = torch.where(on_surface, scores, -torch.inf)
    return {
        "similarity": scores,
        "mask": there >= there.new_tensor(thresholds),
        "labels": belongs(there, thresholds),
        "composite": composite(rgb, there, thresholds),
    }
