"""Scores of features for a query: cosine, or LERF's pairwise relevancy against negatives.

With unit feature f, unit prompt t, unit negatives n_j and temperature tau the score is
``min_j exp(f.t / tau) / (exp(f.t / tau) + exp(f.n_j / tau))``, and plain cosine without negatives.
The viewer, a scene and the evaluation all score through this module.

With the mean m of a scene's unit features, the score is the geometric mean of that relevancy and
of the cosine of ``f - m`` and ``t - m``: what all of the scene has in common fits no phrase better
than another.

With a backbone's calibration, the score is the logistic function of how many standard deviations
the cosine is above that of features of anything, less 4.5: no phrase is a negative.
``benchmarks/presence.py`` compares these with other rules.

*Source:* LERF (Kerr et al. 2023) section 3.4. The score is the *pairwise* soft-max's minimum; a
soft-max over all phrases at once, as in f3rm, cannot pass 1/N with N negatives. Of several scales
the one with a prompt's highest score answers, as there.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal, TypedDict

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from f3rm.backbones.calibration import Calibration
from f3rm.language.text_map import TextMap

CANONICAL_NEGATIVES = ("object", "things", "stuff", "texture")
"""LERF's negatives: phrases that fit any content."""

TEMPERATURE = 0.1
"""LERF's soft-max temperature, the default."""

Rule = Literal["lerf", "scene", "backbone"]
"""``lerf`` is relevancy to the negatives; ``scene`` is also contrasted with the scene's mean;
``backbone`` compares with what the backbone's features are like in general."""

DEFAULT_RULE: Rule = "scene"
"""Of the rules that every scene has the better one in rooms, and as good on tables."""

_PRESENT = 4.5
"""Standard deviations that half of the score stands for. Of 30 phrases that photographs of a fox's
head do not show, one comes above it somewhere, and all three that they show do (CONSE)."""

_EPSILON = 1e-12
_BATCH = 1 << 14
_LEAST_DISTANCE = 1e-6
"""Squared distance of a unit feature to the mean below which it has no direction."""


class Against(TypedDict, total=False):
    """What a rule compares with beside negatives, as :func:`make_query` takes it."""

    mean: Float[Tensor, " channels"] | None
    """Mean of the scene's unit features, for the scene's own contrast."""
    calibration: Calibration | None
    """What the backbone's features are like in general."""


@dataclass(frozen=True)
class Standard:
    """Cosines that a backbone's features have to each prompt in general.

    Attributes:
        mean: Their mean.
        deviation: Their standard deviation.
    """

    mean: Float[Tensor, " prompts"]
    deviation: Float[Tensor, " prompts"]

    def scores(self, cosines: Float[Tensor, "*batch prompts"]) -> Float[Tensor, "*batch prompts"]:
        """Returns scores in (0, 1) of cosines to the prompts."""
        mean, deviation = self.mean.to(cosines), self.deviation.to(cosines)
        return torch.sigmoid((cosines - mean) / deviation - _PRESENT)


@dataclass(frozen=True)
class Contrast:
    """Prompts as seen from the mean of a scene's unit features.

    Attributes:
        directions: Unit vectors from the mean to each prompt, shape (channels, prompts); in the
            hidden space of a head, ``W^T`` of these.
        mean: The mean, or ``W^T`` of it.
        offsets: Product of the mean and each direction, in feature space.
        squared: Squared length of the mean, in feature space.
    """

    directions: Float[Tensor, "channels prompts"]
    mean: Float[Tensor, " channels"]
    offsets: Float[Tensor, " prompts"]
    squared: Float[Tensor, ""]

    def cosines(
        self, vectors: Float[Tensor, "*batch channels"], lengths: Float[Tensor, "*batch 1"]
    ) -> Float[Tensor, "*batch prompts"]:
        """Returns the cosine of each feature to each prompt, both seen from the mean.

        Args:
            vectors: Features, or hidden vectors in the space of a head.
            lengths: Lengths of the features.
        """
        along = vectors @ self.directions / lengths - self.offsets
        distance = 1 - 2 * (vectors @ self.mean)[..., None] / lengths + self.squared
        return along / distance.clamp_min(_LEAST_DISTANCE).sqrt()


@dataclass(frozen=True)
class Query:
    """Prompts and negatives, as unit vectors in a head's feature space, or in that of a language.

    Attributes:
        prompts: One embedding per prompt, shape (prompts, channels); each gets a score of its own.
        negatives: Embeddings that every prompt must beat, shape (negatives, channels); with none,
            scores are cosines.
        temperature: Soft-max temperature tau, > 0.
        contrast: The prompts as seen from the scene's mean feature; None for LERF's rule.
        text_map: Maps features into the space of the prompts; None where they are in it.
        standard: The backbone's cosines to the prompts, which then count in place of negatives.
    """

    prompts: Float[Tensor, "prompts channels"]
    negatives: Float[Tensor, "negatives channels"]
    temperature: float = TEMPERATURE
    contrast: Contrast | None = None
    text_map: TextMap | None = None
    standard: Standard | None = None

    @property
    def has_negatives(self) -> bool:
        """Whether scores are relevancies in (0, 1), not cosines."""
        return len(self.negatives) > 0 or self.standard is not None


@dataclass(frozen=True)
class HiddenQuery:
    """A :class:`Query` in the hidden space of one head, for scores without the C channels.

    Attributes:
        prompts: ``W^T t`` of every prompt, shape (hidden, prompts).
        negatives: ``W^T n`` of every negative, shape (hidden, negatives).
        gram: ``W^T W``, shape (hidden, hidden), so that ``|W H|^2 = H^T G H``.
        temperature: Soft-max temperature tau.
        contrast: That of the query; None for LERF's rule.
        decode: From hidden vectors to those of a language whose map is not linear; prompts,
            negatives and contrast are in its space then, and ``gram`` is None.
        standard: That of the query.
    """

    prompts: Float[Tensor, "hidden prompts"]
    negatives: Float[Tensor, "hidden negatives"]
    gram: Float[Tensor, "hidden hidden"] | None
    temperature: float
    contrast: Contrast | None = None
    decode: Callable[[Tensor], Tensor] | None = None
    standard: Standard | None = None

    @property
    def has_negatives(self) -> bool:
        """Whether scores are relevancies in [0, 1], not cosines."""
        return self.negatives.shape[-1] > 0 or self.standard is not None


@dataclass(frozen=True)
class ScaledQuery:
    """A query to the heads of several scales: each prompt is answered by one of them.

    Attributes:
        scales: The query in the hidden space of each head.
        chosen: Of each prompt, the index of its head in :attr:`scales`.
    """

    scales: tuple[HiddenQuery, ...]
    chosen: tuple[int, ...]

    @property
    def prompts(self) -> Tensor:
        """The prompts at the first scale."""
        return self.scales[0].prompts

    @property
    def has_negatives(self) -> bool:
        """Whether scores are relevancies in [0, 1], not cosines."""
        return self.scales[0].has_negatives


AnyQuery = HiddenQuery | ScaledQuery
"""A query to one head, or to the heads of several scales."""


def make_query(
    prompts: Float[Tensor, "prompts channels"],
    negatives: Float[Tensor, "negatives channels"] | None = None,
    *,
    temperature: float = TEMPERATURE,
    mean: Float[Tensor, " channels"] | None = None,
    text_map: TextMap | None = None,
    calibration: Calibration | None = None,
) -> Query:
    """Normalises embeddings into a query.

    Args:
        prompts: One or more embeddings of any length; see :func:`averaged` to make several one.
        negatives: Embeddings of any length; None for plain cosines.
        temperature: Soft-max temperature, > 0.
        mean: Mean of the scene's unit features, for the scene's own contrast; None for LERF's rule.
        text_map: Maps features into the space of the embeddings; None where they are in it.
        calibration: The backbone's, to compare with it alone; None for the other rules.

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
    prompts = functional.normalize(prompts, dim=-1)
    return Query(
        prompts=prompts,
        negatives=functional.normalize(negatives, dim=-1),
        temperature=temperature,
        contrast=None if mean is None else _contrast(prompts, mean),
        text_map=text_map,
        standard=None if calibration is None else Standard(*calibration.cosines(prompts)),
    )


def _contrast(
    prompts: Float[Tensor, "prompts channels"], mean: Float[Tensor, " channels"]
) -> Contrast:
    directions = functional.normalize(prompts - mean, dim=-1).T
    return Contrast(directions, mean, mean @ directions, mean @ mean)


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
    vectors = features if query.text_map is None else query.text_map(features)
    units = functional.normalize(vectors, dim=-1, eps=_EPSILON)
    if query.standard is not None:
        return query.standard.scores(units @ query.prompts.T)
    scores = relevancy(
        units @ query.prompts.T, units @ query.negatives.T, temperature=query.temperature
    )
    return _contrasted(scores, query, units, torch.ones_like(units[..., :1]))


def _contrasted(
    scores: Float[Tensor, "*batch prompts"],
    query: Query | HiddenQuery,
    vectors: Float[Tensor, "*batch channels"],
    lengths: Float[Tensor, "*batch 1"],
) -> Float[Tensor, "*batch prompts"]:
    """Contrasts relevancies with the scene's mean; without negatives that is the whole score."""
    if query.contrast is None:
        return scores
    cosines = query.contrast.cosines(vectors, lengths)
    if not query.has_negatives:
        return cosines
    return (scores * cosines.clamp_min(0)).sqrt()


def to_hidden(query: Query, head_weight: Float[Tensor, "channels hidden"]) -> HiddenQuery:
    """Carries a query into the hidden space of the head ``f = W H``, in the head's dtype."""
    language = query.text_map
    if language is not None and language.matrix is None:
        return HiddenQuery(
            prompts=query.prompts.to(head_weight).T,
            negatives=query.negatives.to(head_weight).T,
            gram=None,
            temperature=query.temperature,
            contrast=query.contrast,
            standard=query.standard,
            decode=lambda hidden: language(hidden @ head_weight.T),
        )
    if language is not None and language.matrix is not None:
        head_weight = language.matrix.to(head_weight) @ head_weight
    contrast = query.contrast
    if contrast is not None:
        contrast = Contrast(
            directions=head_weight.T @ contrast.directions.to(head_weight),
            mean=head_weight.T @ contrast.mean.to(head_weight),
            offsets=contrast.offsets.to(head_weight),
            squared=contrast.squared.to(head_weight),
        )
    return HiddenQuery(
        prompts=head_weight.T @ query.prompts.to(head_weight).T,
        negatives=head_weight.T @ query.negatives.to(head_weight).T,
        gram=head_weight.T @ head_weight,
        temperature=query.temperature,
        contrast=contrast,
        standard=query.standard,
    )


def best_scales(
    scales: Sequence[HiddenQuery], hidden: Callable[[], Float[Tensor, "*batch hidden"]] | None
) -> AnyQuery:
    """Lets each prompt be answered by the head with its highest score, as LERF does per picture.

    Args:
        scales: The same query in the hidden space of one or several heads.
        hidden: Returns the hidden vectors that are compared, where there are several heads; None
            takes the first.
    """
    if len(scales) == 1 or hidden is None:
        return scales[0]
    vectors = hidden().to(scales[0].prompts)
    scores = [similarity_from_hidden(vectors, each).flatten(0, -2) for each in scales]
    highest = [each.amax(0) if len(each) else each.new_zeros(each.shape[1]) for each in scores]
    best = torch.stack(highest).argmax(0)  # (prompts)
    return ScaledQuery(tuple(scales), tuple(int(index) for index in best))


def similarity_from_hidden(
    hidden: Float[Tensor, "*batch hidden"], query: AnyQuery
) -> Float[Tensor, "*batch prompts"]:
    """Scores composited hidden vectors: :func:`similarity` of ``W H`` without building it."""
    if isinstance(query, ScaledQuery):
        used = {scale: query.scales[scale] for scale in query.chosen}
        every = {scale: similarity_from_hidden(hidden, each) for scale, each in used.items()}
        columns = [every[scale][..., prompt] for prompt, scale in enumerate(query.chosen)]
        return torch.stack(columns, dim=-1)
    if query.decode is not None:  # its vectors have many channels: a batch of them at a time
        decoded = replace(query, decode=None)
        rows = hidden.reshape(-1, hidden.shape[-1])
        starts = range(0, max(len(rows), 1), _BATCH)
        vectors = (query.decode(rows[start : start + _BATCH]) for start in starts)
        scores = torch.cat([similarity_from_hidden(each, decoded) for each in vectors])
        return scores.view(*hidden.shape[:-1], query.prompts.shape[-1])
    weighted = hidden if query.gram is None else hidden @ query.gram
    squared = (weighted * hidden).sum(-1, keepdim=True)
    length = squared.clamp_min(_EPSILON**2).sqrt()
    if query.standard is not None:
        return query.standard.scores(hidden @ query.prompts / length)
    scores = relevancy(
        hidden @ query.prompts / length,
        hidden @ query.negatives / length,
        temperature=query.temperature,
    )
    return _contrasted(scores, query, hidden, length)


def mean_unit_feature(
    hidden: Float[Tensor, "points hidden"],
    head_weight: Float[Tensor, "channels hidden"],
    text_map: TextMap | None = None,
) -> Float[Tensor, " text_channels"]:
    """Returns the mean of the unit features of hidden vectors, a batch of features at a time.

    Args:
        hidden: The hidden vectors.
        head_weight: The weight of their head.
        text_map: Maps features into the space of the mean; None for the features themselves.
    """
    sums: list[Tensor] = []
    for start in range(0, max(len(hidden), 1), _BATCH):
        features = hidden[start : start + _BATCH].to(head_weight) @ head_weight.T
        vectors = features if text_map is None else text_map(features)
        sums.append(functional.normalize(vectors, dim=-1, eps=_EPSILON).sum(0))
    return torch.stack(sums).sum(0) / max(len(hidden), 1)
