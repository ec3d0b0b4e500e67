"""Scores of features for a query: cosine, or LERF's pairwise relevancy against negatives.

With unit feature f, unit prompt t, unit negatives n_j and temperature tau the score is
``min_j exp(f.t / tau) / (exp(f.t / tau) + exp(f.n_j / tau))``, and plain cosine without negatives.
The viewer, a scene and the evaluation all score through this module.

*Source:* LERF (Kerr et al. 2023) section 3.4. The score is the *pairwise* soft-max's minimum; a
soft-max over all phrases at once, as in f3rm, cannot pass 1/N with N negatives.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

CANONICAL_NEGATIVES = ("object", "things", "stuff", "texture")
"""LERF's negatives: phrases that fit any content."""

TEMPERATURE = 0.1
"""LERF's soft-max temperature, the default."""

_EPSILON = 1e-12


@dataclass(frozen=True)
class Query:
    """Prompts and negatives, as unit vectors in a head's feature space.

    Attributes:
        prompts: One embedding per prompt, shape (prompts, channels); each gets a score of its own.
        negatives: Embeddings that every prompt must beat, shape (negatives, channels); with none,
            scores are cosines.
        temperature: Soft-max temperature tau, > 0.
    """

    prompts: Float[Tensor, "prompts channels"]
    negatives: Float[Tensor, "negatives channels"]
    temperature: float = TEMPERATURE

    @property
    def has_negatives(self) -> bool:
        """Whether scores are relevancies in (0, 1), not cosines."""
        return len(self.negatives) > 0


@dataclass(frozen=True)
class HiddenQuery:
    """A :class:`Query` in the hidden space of one head, for scores without the C channels.

    Attributes:
        prompts: ``W^T t`` of every prompt, shape (hidden, prompts).
        negatives: ``W^T n`` of every negative, shape (hidden, negatives).
        gram: ``W^T W``, shape (hidden, hidden), so that ``|W H|^2 = H^T G H``.
        temperature: Soft-max temperature tau.
    """

    prompts: Float[Tensor, "hidden prompts"]
    negatives: Float[Tensor, "hidden negatives"]
    gram: Float[Tensor, "hidden hidden"]
    temperature: float


def make_query(
    prompts: Float[Tensor, "prompts channels"],
    negatives: Float[Tensor, "negatives channels"] | None = None,
    *,
    temperature: float = TEMPERATURE,
) -> Query:
    """Normalises embeddings into a query.

    Args:
        prompts: One or more embeddings of any length; see :func:`averaged` to make several one.
        negatives: Embeddings of any length; None for plain cosines.
        temperature: Soft-max temperature, > 0.

    Raises:
        ValueError: If there is no prompt or the temperature is not positive.
    """
    if len(prompts) == 0:
        raise ValueError("A query must have at least one embedding to look for. Type a text first.")
    if temperature <= 0:
        msg = f"temperature must be positive, got {temperature}. The usual value is 0.1."
        raise ValueError(msg)
    if negatives is None:
        negatives = prompts.new_zeros((0, prompts.shape[-1]))
    return Query(
        prompts=functional.normalize(prompts, dim=-1),
        negatives=functional.normalize(negatives, dim=-1),
        temperature=temperature,
    )


def averaged(prompts: Float[Tensor, "prompts channels"]) -> Float[Tensor, "1 channels"]:
    """Averages the directions of several embeddings; their lengths do not matter."""
    return functional.normalize(prompts, dim=-1).mean(0, keepdim=True)


def relevancy(
    prompts: Float[Tensor, "*batch prompts"],
    negatives: Float[Tensor, "*batch negatives"],
    *,
    temperature: float,
) -> Float[Tensor, "*batch prompts"]:
    """Turns cosines into scores.

    Args:
        prompts: Cosine of the feature to each prompt.
        negatives: Its cosine to each negative.
        temperature: Soft-max temperature.

    Returns:
        The smallest pairwise soft-max of each prompt, in (0, 1); its cosine without negatives.
    """
    if negatives.shape[-1] == 0:
        return prompts
    # The smallest of the pairwise soft-maxes is the one against the strongest negative.
    strongest = negatives.amax(-1, keepdim=True)
    return torch.sigmoid((prompts - strongest) / temperature)


def similarity(
    features: Float[Tensor, "*batch channels"], query: Query
) -> Float[Tensor, "*batch prompts"]:
    """Scores features of any length against every prompt, from the C channels."""
    units = functional.normalize(features, dim=-1, eps=_EPSILON)
    return relevancy(
        units @ query.prompts.T, units @ query.negatives.T, temperature=query.temperature
    )


def to_hidden(query: Query, head_weight: Float[Tensor, "channels hidden"]) -> HiddenQuery:
    """Carries a query into the hidden space of the head ``f = W H``, in the head's dtype."""
    return HiddenQuery(
        prompts=head_weight.T @ query.prompts.to(head_weight).T,
        negatives=head_weight.T @ query.negatives.to(head_weight).T,
        gram=head_weight.T @ head_weight,
        temperature=query.temperature,
    )


def similarity_from_hidden(
    hidden: Float[Tensor, "*batch hidden"], query: HiddenQuery
) -> Float[Tensor, "*batch prompts"]:
    """Scores composited hidden vectors: :func:`similarity` of ``W H`` without building it."""
    squared = (hidden @ query.gram * hidden).sum(-1, keepdim=True)
    length = squared.clamp_min(_EPSILON**2).sqrt()
    return relevancy(
        hidden @ query.prompts / length,
        hidden @ query.negatives / length,
        temperature=query.temperature,
    )
