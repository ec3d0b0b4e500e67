"""Similarity of features to a query: cosine, or LERF's pairwise relevancy against negatives.

With unit feature f, unit positive t, unit negatives n_j and temperature tau the score is
``min_j exp(f.t / tau) / (exp(f.t / tau) + exp(f.n_j / tau))``, and plain cosine without negatives.

*Source:* LERF (Kerr et al. 2023) section 3.4. The score is the *pairwise* soft-max's minimum; a
soft-max over all phrases at once, as in f3rm, cannot pass 1/N with N negatives.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

CANONICAL_NEGATIVES = ("object", "things", "stuff", "texture")
"""LERF's negatives, which stand for whatever else there may be."""

_EPSILON = 1e-12


@dataclass(frozen=True)
class Query:
    """What is asked, as embeddings in a head's feature space.

    Attributes:
        positive: Unit vector of what is looked for, shape (channels,).
        negatives: Unit vectors that the positive must beat, shape (negatives, channels); may be
            empty, then the score is the cosine.
        temperature: Soft-max temperature tau, > 0.
    """

    positive: Float[Tensor, " channels"]
    negatives: Float[Tensor, "negatives channels"]
    temperature: float = 0.1


@dataclass(frozen=True)
class HiddenQuery:
    """A :class:`Query` carried over to the hidden space of one head.

    Attributes:
        embeddings: ``W^T [t, n_1, ...]``, shape (hidden, 1 + negatives).
        gram: ``W^T W``, shape (hidden, hidden), so that ``|W H|^2 = H^T G H``.
        temperature: Soft-max temperature tau.
    """

    embeddings: Float[Tensor, "hidden phrases"]
    gram: Float[Tensor, "hidden hidden"]
    temperature: float


def make_query(
    positives: Float[Tensor, "positives channels"],
    negatives: Float[Tensor, "negatives channels"] | None = None,
    *,
    temperature: float = 0.1,
) -> Query:
    """Averages several positives into one query and normalises everything.

    Args:
        positives: One or more embeddings of what is looked for, any length.
        negatives: Embeddings of what it must be told from, any length; None for none.
        temperature: Soft-max temperature, > 0.

    Raises:
        ValueError: If there is no positive or the temperature is not positive.
    """
    if len(positives) == 0:
        msg = "make_query: positives must hold at least one embedding, got none. Type a text first."
        raise ValueError(msg)
    if temperature <= 0:
        msg = (
            f"make_query: temperature must be positive, got {temperature}. The usual value is 0.1."
        )
        raise ValueError(msg)
    mean = functional.normalize(positives, dim=-1).mean(0)
    if negatives is None:
        negatives = positives.new_zeros((0, positives.shape[-1]))
    return Query(
        positive=functional.normalize(mean, dim=0),
        negatives=functional.normalize(negatives, dim=-1),
        temperature=temperature,
    )


def relevancy(
    cosines: Float[Tensor, "*batch phrases"], *, temperature: float
) -> Float[Tensor, "*batch"]:
    """Turns cosines to (positive, negative_1, ...) into one score.

    Args:
        cosines: The positive's cosine first, then one per negative.
        temperature: Soft-max temperature.

    Returns:
        The smallest pairwise soft-max, in (0, 1); the positive's cosine if there is no negative.
    """
    positive = cosines[..., 0]
    if cosines.shape[-1] == 1:
        return positive
    strongest = cosines[..., 1:].amax(-1)
    return torch.sigmoid((positive - strongest) / temperature)


def similarity(features: Float[Tensor, "*batch channels"], query: Query) -> Float[Tensor, "*batch"]:
    """Scores features against a query, from the C channels; features need not be unit vectors."""
    phrases = torch.cat((query.positive[None], query.negatives))
    cosines = functional.normalize(features, dim=-1, eps=_EPSILON) @ phrases.T
    return relevancy(cosines, temperature=query.temperature)


def to_hidden(query: Query, head_weight: Float[Tensor, "channels hidden"]) -> HiddenQuery:
    """Carries a query into the hidden space of the head ``f = W H``."""
    phrases = torch.cat((query.positive[None], query.negatives)).to(head_weight)
    return HiddenQuery(
        embeddings=head_weight.T @ phrases.T,
        gram=head_weight.T @ head_weight,
        temperature=query.temperature,
    )


def similarity_from_hidden(
    hidden: Float[Tensor, "*batch hidden"], query: HiddenQuery
) -> Float[Tensor, "*batch"]:
    """Scores composited hidden vectors: :func:`similarity` of ``W H`` without building it."""
    return similarities_from_hidden(hidden, [query])[..., 0]


def similarities_from_hidden(
    hidden: Float[Tensor, "*batch hidden"], queries: Sequence[HiddenQuery]
) -> Float[Tensor, "*batch queries"]:
    """Scores composited hidden vectors against several queries of one head.

    The features' lengths, which are most of the work, are computed once for all.

    Args:
        hidden: Composited hidden vectors.
        queries: At least one.
    """
    squared = (hidden @ queries[0].gram * hidden).sum(-1, keepdim=True)
    length = squared.clamp_min(_EPSILON**2).sqrt()
    scores = [
        relevancy(hidden @ query.embeddings / length, temperature=query.temperature)
        for query in queries
    ]
    return torch.stack(scores, dim=-1)
