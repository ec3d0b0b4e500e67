"""Lifts 2D features onto Gaussians, without training or with a few steps on their hidden vectors.

Compositing is linear: a picture is ``A h``, with the weights ``A`` of :mod:`rasterizer`. A
Gaussian's hidden vector is the mean of the 2D features at the pixels that show it, weighted by how
much they do, over all photographs: ``h = A' f / A' 1``. What is hidden behind a surface has next to
no weight, and so no part in it.

The 2D features are unit vectors, so that the length of their mean tells whether the photographs
agree about a Gaussian: its reliability. They enter as coefficients ``(c, s) / |f|`` of the codec
``pca64``, ``f = B' c + (m / s) s`` with the mean feature ``m`` and a scale ``s``, so that the cost
of lifting does not depend on the number of channels, and a head without bias gives the features.

*Source:* the closed form of LUDVIG (https://arxiv.org/abs/2410.14462) and Occam's LGS
(https://arxiv.org/abs/2412.01807); refinement is SART (Andersen and Kak, 1984).
"""

import json
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor
from torch.nn import functional

from f3rm.splats.gaussians import Gaussians
from f3rm.splats.rasterizer import ImplementationChoice, Rasterizer
from f3rm.splats.views import View, sample_map
from f3rm.store.chunks import write_atomically
from f3rm.store.codec_files import read_codec
from f3rm.store.codecs import fit_codec, parse_codec
from f3rm.store.images import prefetched
from f3rm.store.progress import track
from f3rm.store.reader import FeatureStore
from f3rm.training.segments import Segments

COEFFICIENTS = 64
HIDDEN = COEFFICIENTS + 1
"""Channels of a head's hidden vector: the coefficients, and the share of the mean feature."""

_FITTED_ROWS = 1 << 14
_SAVED_EVERY = 30.0
"""Seconds: after a crash no more than this is lifted again."""
_LEAST_LENGTH = 1e-8
_LEAST_WEIGHT = 1e-6
_AHEAD = 2


@dataclass(frozen=True)
class FeatureBasis:
    """The coordinates in which features are lifted.

    Attributes:
        mean: The mean feature.
        basis: Orthonormal rows; 64, or one per channel if there are fewer.
        scale: The value that stands for the mean, of the size of the coefficients.
    """

    mean: Float[Tensor, " channels"]
    basis: Float[Tensor, "components channels"]
    scale: float

    @classmethod
    def of_store(cls, store: FeatureStore) -> "FeatureBasis":
        """Takes the basis of a cache with a ``pca`` codec; of another, fits it to a sample."""
        features = store.sample(_FITTED_ROWS, seed=0)
        codec = read_codec(store.folder, store.manifest.codec, store.channels)
        if codec.spec.name != "pca":
            wanted = parse_codec(f"pca{min(COEFFICIENTS, store.channels)}")
            codec = fit_codec(wanted, features)
        basis = codec.arrays["basis"][:COEFFICIENTS]
        scale = features.square().mean().sqrt() * features.shape[1] ** 0.5
        return cls(codec.arrays["mean"], basis, max(float(scale), _LEAST_LENGTH))

    def encode(self, features: Float[Tensor, "*cells channels"]) -> Float[Tensor, "*cells hidden"]:
        """Returns hidden vectors of features that were given the length 1."""
        codes = (features - self.mean) @ self.basis.T
        spare = (0, COEFFICIENTS - codes.shape[-1])
        share = torch.full_like(codes[..., :1], self.scale)
        hidden = torch.cat((functional.pad(codes, spare), share), dim=-1)
        lengths = features.norm(dim=-1, keepdim=True)
        return torch.where(lengths > _LEAST_LENGTH, hidden / lengths, 0.0)

    @property
    def weight(self) -> Float[Tensor, "channels hidden"]:
        """The head: features are ``weight @ hidden``."""
        spare = (0, COEFFICIENTS - len(self.basis))
        return torch.cat((functional.pad(self.basis.T, spare), self.mean[:, None] / self.scale), 1)


@dataclass(frozen=True)
class Lifted:
    """Features on Gaussians.

    Attributes:
        hidden: A hidden vector per Gaussian; zero where no photograph shows it.
        reliability: Length of the mean of the unit features that it was seen with, in [0, 1]; 0
            where no photograph shows it.
        weights: Sum of its compositing weights over all pixels: about the pixels that show it.
    """

    hidden: Float[Tensor, "gaussians hidden"]
    reliability: Float[Tensor, " gaussians"]
    weights: Float[Tensor, " gaussians"]


@dataclass(frozen=True)
class Lifting:
    """How features are lifted.

    Attributes:
        implementation: What draws the splat.
        refine: Further steps on the hidden vectors, one photograph each.
        partial: File of the sums so far: an interrupted lifting goes on from there.
        key: What the sums depend on; those of another key are not used.
        show_progress: Whether bars count photographs.
        segments: Segments of the store's photographs, over which features are averaged; or None.
    """

    implementation: ImplementationChoice = "auto"
    refine: int = 0
    partial: Path | None = None
    key: str = ""
    show_progress: bool = False
    segments: Segments | None = None


def feature_picture(
    store: FeatureStore, basis: FeatureBasis, view: View, segments: Segments | None = None
) -> Float[Tensor, "height width hidden"]:
    """Returns a photograph's features, as hidden vectors at the pixels of its camera.

    Args:
        store: The features.
        basis: The coordinates of the hidden vectors.
        view: The photograph.
        segments: Segments of the store's photographs, over which features are averaged; or None.
    """
    index = store.index(view.name)
    image = store.manifest.images[index]
    rows, cols = image.valid.cells()
    codes = basis.encode(store.feature_map(index))[rows.start : rows.stop, cols.start : cols.stop]
    pixels = view.pixels()
    u, v = pixels.unbind(-1)
    affine = image.affine
    across = u * affine.scale_x + affine.offset_x - cols.start
    down = v * affine.scale_y + affine.offset_y - rows.start
    picture = sample_map(codes, torch.stack((across, down), dim=-1))
    if segments is None:
        return picture
    places = (pixels.flip(-1) + 0.5) / torch.tensor(store.image_size(index))
    return segments.averaged(index, picture, places)


def lift(
    gaussians: Gaussians,
    views: Sequence[View],
    store: FeatureStore,
    basis: FeatureBasis,
    settings: Lifting | None = None,
) -> Lifted:
    """Lifts the features of photographs onto Gaussians.

    Args:
        gaussians: The Gaussians, on the device that draws them.
        views: The photographs, all of which the store has.
        store: Their features.
        basis: The coordinates of the hidden vectors.
        settings: How; see :class:`Lifting`.

    Returns:
        The features, on the CPU.

    Raises:
        CacheError: If the sums so far cannot be written.
    """
    settings = settings or Lifting()
    sums = _summed(gaussians, views, store, basis, settings)
    weights = sums[:, HIDDEN]
    hidden = torch.where(weights[:, None] > _LEAST_WEIGHT, sums[:, :HIDDEN] / weights[:, None], 0.0)
    gram = basis.weight.double().T @ basis.weight.double()
    lengths = ((hidden.double() @ gram.to(hidden.device)) * hidden.double()).sum(dim=1)
    reliability = lengths.clamp(0, 1).sqrt().float()
    if settings.refine:
        hidden = _refined(hidden, weights, gaussians, views, store, basis, settings)
    if settings.partial is not None:
        settings.partial.unlink(missing_ok=True)
    return Lifted(hidden.cpu(), reliability.cpu(), weights.cpu())


def _summed(
    gaussians: Gaussians,
    views: Sequence[View],
    store: FeatureStore,
    basis: FeatureBasis,
    settings: Lifting,
) -> Float[Tensor, "gaussians sums"]:
    """Returns ``A' (f, 1)``, summed over all photographs."""
    sums, done = _resumed(len(gaussians), settings)
    sums, saved = sums.to(gaussians.means), time.monotonic()
    pictures = _pictures(views[done:], store, basis, settings)
    shown = track(pictures, total=len(views) - done, label="lifting", show=settings.show_progress)
    try:
        for view, picture in shown:
            ones = torch.ones(*picture.shape[:2], 1)
            drawing = Rasterizer(gaussians, view.camera, implementation=settings.implementation)
            sums += drawing.adjoint(torch.cat((picture, ones), dim=-1))
            done += 1
            if done < len(views) and time.monotonic() > saved + _SAVED_EVERY:
                _save(sums, done, settings)
                saved = time.monotonic()
    finally:
        if 0 < done < len(views):  # interrupted
            _save(sums, done, settings)
    return sums


def _pictures(
    views: Sequence[View], store: FeatureStore, basis: FeatureBasis, settings: Lifting
) -> Iterator[tuple[View, Tensor]]:
    """Yields photographs with their features, which a thread reads ahead."""

    def read(view: View) -> Tensor:
        return feature_picture(store, basis, view, settings.segments)

    pictures = prefetched(read, views, ahead=_AHEAD)
    return zip(views, pictures, strict=True)


def _refined(
    hidden: Float[Tensor, "gaussians hidden"],
    weights: Float[Tensor, " gaussians"],
    gaussians: Gaussians,
    views: Sequence[View],
    store: FeatureStore,
    basis: FeatureBasis,
    settings: Lifting,
) -> Float[Tensor, "gaussians hidden"]:
    """Moves hidden vectors so that their pictures come nearer to the photographs' features.

    A step is ``h += r A' (a f - A h) / max(A' 1, mean over views of A' 1)`` for one photograph,
    where ``a`` is its accumulation: what a photograph hardly shows, it hardly moves. The relaxation
    ``r`` falls from 1 to 1/2 in the first round of the photographs, then to 1/3 and so on, or else
    the last photographs would count more than the first.
    """
    random = np.random.default_rng(0)
    rounds = -(-settings.refine // len(views))
    order = np.concatenate([random.permutation(len(views)) for _ in range(rounds)])
    chosen = [views[number] for number in order[: settings.refine]]
    usual = weights[:, None] / len(views)
    pictures = _pictures(chosen, store, basis, settings)
    shown = track(
        pictures, total=len(chosen), label="refining", show=settings.show_progress, unit="steps"
    )
    for step, (view, picture) in enumerate(shown):
        drawing = Rasterizer(gaussians, view.camera, implementation=settings.implementation)
        accumulation = drawing.accumulation[..., None]
        missing = accumulation * picture.to(accumulation) - drawing.composite(hidden)
        moved = drawing.adjoint(torch.cat((missing, torch.ones_like(accumulation)), dim=-1))
        size = torch.maximum(moved[:, HIDDEN:], usual).clamp_min(_LEAST_WEIGHT)
        hidden = hidden + moved[:, :HIDDEN] / (size * (1 + step / len(views)))
    return hidden


def _save(sums: Tensor, done: int, settings: Lifting) -> None:
    if settings.partial is not None:
        note = {"f3rm": json.dumps({"key": settings.key, "done": done})}
        content = save({"sums": sums.cpu().contiguous()}, metadata=note)
        write_atomically(settings.partial, lambda stream: stream.write(content))


def _resumed(count: int, settings: Lifting) -> tuple[Float[Tensor, "gaussians sums"], int]:
    """Returns the sums of an interrupted lifting, and over how many photographs they go."""
    empty = torch.zeros(count, HIDDEN + 1)
    if settings.partial is None or not settings.partial.is_file():
        return empty, 0
    try:
        with safe_open(settings.partial, "pt") as stored:
            note = json.loads((stored.metadata() or {})["f3rm"])
            sums = stored.get_tensor("sums")
        if note["key"] != settings.key or sums.shape != empty.shape:
            return empty, 0
        return sums.float(), int(note["done"])
    except (OSError, SafetensorError, ValueError, KeyError, TypeError):
        return empty, 0  # a damaged file of sums costs time only
