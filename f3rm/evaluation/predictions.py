"""Score maps and feature cosines of whole views, of the field and of its 2D teacher.

A view is rendered once, as hidden vectors, from which all numbers and pictures are computed. The C
feature channels exist for a few rows at a time.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Float32
from nerfstudio.cameras.cameras import Cameras
from nerfstudio.models.nerfacto import NerfactoModel
from torch import Tensor
from torch.nn import functional

from f3rm.camera_render import CameraOutputs, FeatureTargets
from f3rm.feature_datamanager import FeatureLookup
from f3rm.feature_field import FeatureHead
from f3rm.language.relevancy import AnyQuery, Query, similarity, similarity_from_hidden
from f3rm.scene.casting import hidden_of
from f3rm.scene.source import Source
from f3rm.store.geometry import Size
from f3rm.store.reader import FeatureStore

_CHUNK_PIXELS = 1 << 14
_MEAN_PIXELS = 1 << 14


@dataclass(frozen=True)
class FeatureCosines:
    """Mean cosine to the teacher's features over the pixels of a view.

    Attributes:
        rendered: Of the field's features.
        constant: Of one vector for every pixel, the mean training feature.
    """

    rendered: float
    constant: float


def render_view(source: Source, camera: Cameras) -> CameraOutputs:
    """Renders colours and hidden vectors of a camera of shape (1,)."""
    bands = [band for _, band in source.bands(camera)]
    whole = CameraOutputs({name: torch.cat([band[name] for band in bands]) for name in ("rgb",)})
    whole.hidden = torch.cat([hidden_of(band) for band in bands])
    return whole


@torch.no_grad()
def psnr(model: NerfactoModel, rendered: CameraOutputs | dict[str, Tensor], image: Tensor) -> float:
    """Returns Nerfacto's own PSNR of a view, in dB.

    Args:
        model: The model, which knows the background colour that the photograph is blended with.
        rendered: The view's outputs.
        image: The photograph in [0, 1], shape (height, width, 3 or 4).
    """
    truth = model.renderer_rgb.blend_background(image.to(model.device))
    return float(model.psnr(truth.to(rendered["rgb"]), rendered["rgb"]))


@torch.no_grad()
def field_scores(
    hidden: Float[Tensor, "rendered_height rendered_width hidden"],
    query: AnyQuery,
    file_size: Size,
) -> Float32[np.ndarray, "texts height width"]:
    """Returns the field's relevancy of every text at the photograph's pixels.

    If the view was rendered at another size, scores are interpolated, never masks.

    Args:
        hidden: The rendered hidden vectors.
        query: The phrases, in the head's hidden space.
        file_size: Height and width of the photograph's file.
    """
    hidden = hidden.to(query.prompts)
    rows = [
        similarity_from_hidden(hidden[start:stop], query)
        for start, stop in _row_chunks(hidden.shape)
    ]
    scores = torch.cat(rows).permute(2, 0, 1)  # (texts, height, width)
    if scores.shape[1:] != torch.Size(file_size):
        scores = functional.interpolate(
            scores[None], size=file_size, mode="bilinear", align_corners=False
        )[0]
    return scores.contiguous().float().cpu().numpy()


@torch.no_grad()
def teacher_scores(
    store: FeatureStore, index: int, query: Query
) -> Float32[np.ndarray, "texts height width"]:
    """Returns the 2D teacher's relevancy of every text at the photograph's pixels.

    The cached *features* are blended bilinearly at each pixel, then scored.

    Args:
        store: The teacher's features.
        index: The photograph's index in the store.
        query: The phrases.
    """
    height, width = store.image_size(index)
    rows: list[Tensor] = []
    for start, stop in _row_chunks((height, width)):
        y, x = torch.meshgrid(torch.arange(start, stop), torch.arange(width), indexing="ij")
        xy = torch.stack((x, y), dim=-1).reshape(-1, 2).float()
        features = store.gather(torch.full((len(xy),), index), xy, mode="bilinear")
        scores = similarity(features.to(query.prompts), query)
        rows.append(scores.view(stop - start, width, -1).cpu())
    return torch.cat(rows).permute(2, 0, 1).contiguous().float().numpy()


@torch.no_grad()
def feature_cosines(
    head: FeatureHead,
    hidden: Float[Tensor, "height width hidden"],
    targets: FeatureTargets,
    mean: Float[Tensor, " channels"],
) -> FeatureCosines:
    """Compares a rendered view with the teacher's features, at the size that is trained on.

    Args:
        head: The head to compare.
        hidden: The rendered hidden vectors.
        targets: The teacher's features of this view.
        mean: The mean training feature.
    """
    rendered, constant = 0.0, 0.0
    for start, stop in _row_chunks(hidden.shape):
        target = targets.rows(head.spec.name, start, stop).to(head.weight)
        features = head(hidden[start:stop].to(head.weight))
        rendered += float(functional.cosine_similarity(features, target, dim=-1).sum())
        constant += float(functional.cosine_similarity(target, mean.to(target), dim=-1).sum())
    pixels = hidden.shape[0] * hidden.shape[1]
    return FeatureCosines(rendered / pixels, constant / pixels)


def mean_training_feature(lookup: FeatureLookup, name: str, seed: int) -> Tensor:
    """Returns the mean feature (channels) of random pixels of the training photographs.

    Args:
        lookup: The training photographs' features.
        name: The head's name.
        seed: Seed of the draw.
    """
    rng = np.random.default_rng([seed, 1])
    images = rng.integers(len(lookup.sizes), size=_MEAN_PIXELS)
    sizes = lookup.sizes.numpy()[images]
    yx = (rng.random((_MEAN_PIXELS, 2)) * sizes).astype(np.int64)
    indices = torch.from_numpy(np.concatenate((images[:, None], yx), axis=1))
    return lookup.features(name, indices).mean(dim=0)


def _row_chunks(size: tuple[int, ...]) -> Iterator[tuple[int, int]]:
    step = max(1, _CHUNK_PIXELS // size[1])
    for start in range(0, size[0], step):
        yield start, min(start + step, size[0])
