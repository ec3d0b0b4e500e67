"""PCA colours of features: one basis and one range, fitted once, so that frames do not flicker."""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

_OVERSAMPLING = 8
_ITERATIONS = 4


@dataclass(frozen=True)
class PcaBasis:
    """An affine map from C channels to RGB.

    Attributes:
        mean: Mean feature, shape (channels,).
        components: Principal directions as columns, shape (channels, 3).
        low: Projection that becomes 0, per component, shape (3,).
        high: Projection that becomes 1, per component, shape (3,).
    """

    mean: Float[Tensor, " channels"]
    components: Float[Tensor, "channels 3"]
    low: Float[Tensor, " 3"]
    high: Float[Tensor, " 3"]


def fit_pca(
    features: Float[Tensor, "samples channels"],
    *,
    quantiles: tuple[float, float] = (0.01, 0.99),
) -> PcaBasis:
    """Fits three principal components and the range that becomes [0, 1].

    Deterministic: the randomised solver has a generator of its own, so that no other random state
    is read or changed, on any device; each component's largest entry is positive.

    Args:
        features: A sample of feature vectors; at least three.
        quantiles: Quantiles of the sample that become 0 and 1 in each colour, so that outliers do
            not wash out the rest.

    Raises:
        ValueError: If there are fewer than three samples or channels.
    """
    if min(features.shape) < 3:
        got = tuple(features.shape)
        msg = f"A PCA needs features of at least 3 rows and channels, got {got}."
        raise ValueError(msg)
    features = features.float()
    mean = features.mean(0)
    directions = _principal_directions(features - mean, min(3 + _OVERSAMPLING, *features.shape))
    components = directions[:, :3]  # (channels, 3)
    largest = components.abs().argmax(0)
    # A component's sign is arbitrary; fixed, so that colours do not flip between fits.
    components = components * components[largest, torch.arange(3)].sign()
    projected = (features - mean) @ components  # (samples, 3)
    bounds = torch.quantile(projected, projected.new_tensor(quantiles), dim=0)
    return PcaBasis(mean=mean, components=components, low=bounds[0], high=bounds[1])


def _principal_directions(
    centred: Float[Tensor, "samples channels"], rank: int
) -> Float[Tensor, "channels rank"]:
    """Returns the leading right singular vectors, by subspace iteration from a random start.

    ``torch.pca_lowrank`` is the same algorithm, but draws from the global generator, and seeding
    that seeds the generators of every GPU too.

    *Source:* Halko, Martinsson and Tropp 2011, algorithms 4.4 and 5.1.
    """
    samples, channels = centred.shape
    tall = centred if samples >= channels else centred.T  # the random start has the shorter side
    generator = torch.Generator().manual_seed(0)
    start = torch.randn(tall.shape[1], rank, generator=generator)
    basis = torch.linalg.qr(tall @ start.to(tall)).Q  # (longer, rank)
    for _ in range(_ITERATIONS):
        across = torch.linalg.qr(tall.T @ basis).Q  # (shorter, rank)
        basis = torch.linalg.qr(tall @ across).Q
    left, _, right = torch.linalg.svd(basis.T @ tall, full_matrices=False)
    return right.T if samples >= channels else basis @ left


def _to_range(projected: Tensor, basis: PcaBasis) -> Tensor:
    span = (basis.high - basis.low).clamp_min(1e-6)
    return ((projected - basis.low) / span).clamp(0, 1)


def pca_colours(
    features: Float[Tensor, "*batch channels"], basis: PcaBasis
) -> Float[Tensor, "*batch 3"]:
    """Colours features with a fitted basis, in [0, 1]."""
    return _to_range((features - basis.mean) @ basis.components, basis)


def pca_colours_from_hidden(
    hidden: Float[Tensor, "*batch hidden"],
    head_weight: Float[Tensor, "channels hidden"],
    basis: PcaBasis,
) -> Float[Tensor, "*batch 3"]:
    """Colours composited hidden vectors: :func:`pca_colours` of ``W H`` without building it."""
    projection = head_weight.T @ basis.components  # (hidden, 3)
    return _to_range(hidden @ projection - basis.mean @ basis.components, basis)
