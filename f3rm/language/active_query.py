"""The query of one head with the settings of its display: words, clicked points, example images.

All are values: a render takes one :class:`ActiveQuery` and is not disturbed by later typing. Words
and examples are compared with negatives of their own kind and are never averaged with each other:
an image's features are nearer to any other image's than to any text's.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional
from typing_extensions import Unpack

from f3rm.backbones.calibration import Calibration
from f3rm.language.relevancy import (
    Against,
    Query,
    Rule,
    averaged,
    best_scales,
    make_query,
    similarity_from_hidden,
    to_hidden,
)
from f3rm.language.text_encoder import QueryText
from f3rm.language.text_map import TextMap

ScoreKind = Literal["relevancy", "cosine"]
Several = Literal["averaged", "each alone"]

MOST_PROMPTS = 8
"""Prompts that are told apart by colour."""

_LONGEST_LABEL = 40


@dataclass(frozen=True)
class Words:
    """A typed query, embedded.

    Attributes:
        text: The typed text.
        labels: Its positive phrases.
        positives: Their embeddings, shape (positives, channels).
        negatives: Embeddings of the negative phrases, shape (negatives, channels).
        are_known: Whether the text tower knows all words of each positive phrase.
        text_map: The language that they are asked in; None for the head's own text tower.
        calibration: That of the backbone, where it has one.
    """

    text: QueryText
    labels: tuple[str, ...]
    positives: Float[Tensor, "positives channels"]
    negatives: Float[Tensor, "negatives channels"]
    are_known: tuple[bool, ...]
    text_map: TextMap | None = None
    calibration: Calibration | None = None


@dataclass(frozen=True)
class Example:
    """A clicked point or an image.

    Attributes:
        label: Its name in the legend.
        is_positive: Whether it is searched for; if not, it is a negative.
        features: Its feature by head, each of shape (channels,).
    """

    label: str
    is_positive: bool
    features: Mapping[str, Float[Tensor, " _"]]


@dataclass(frozen=True)
class DisplaySettings:
    """How scores are computed and shown.

    Attributes:
        several: Whether positives are averaged into one prompt or are prompts of their own.
        score: Relevancy against the negatives, or the plain cosine.
        rule: How words are scored; by ``lerf`` where what another rule needs is not known.
        temperature: Soft-max temperature of the relevancy, > 0.
        threshold: Score from which a pixel is found; None chooses it per picture.
        low: Score at the blue end of the colour scale.
        high: Score at its red end.
        coloured: Whether ``similarity`` is a coloured picture, or the bare scores.
    """

    several: Several = "averaged"
    score: ScoreKind = "relevancy"
    rule: Rule = "lerf"
    temperature: float = 0.1
    threshold: float | None = None
    low: float = 0.0
    high: float = 1.0
    coloured: bool = False


@dataclass(frozen=True)
class ActiveQuery:
    """The prompts to one head, ready to be scored.

    Attributes:
        head: The head's name.
        labels: The label of each prompt, at most :data:`MOST_PROMPTS`.
        queries: The prompts in the order of the labels; words and examples apart.
        is_present: Whether each prompt is known to be in the scene: examples are, words may not be.
        is_known: Whether the text tower knows all words of each prompt; true of examples.
        settings: How scores are computed and shown.
        scales: Heads of several scales, of which the best one answers each prompt in words; empty
            where the head alone answers.
    """

    head: str
    labels: tuple[str, ...]
    queries: tuple[Query, ...]
    is_present: tuple[bool, ...]
    is_known: tuple[bool, ...]
    settings: DisplaySettings
    scales: tuple[str, ...] = ()

    @property
    def compares(self) -> tuple[bool, ...]:
        """Whether each prompt's score is a relevancy, not a cosine."""
        return tuple(query.has_negatives for query in self.queries for _ in query.prompts)

    def scores(
        self,
        hidden: Float[Tensor, "*batch hidden"],
        weights: Mapping[str, Float[Tensor, "channels _"]],
    ) -> Float[Tensor, "*batch prompts"]:
        """Scores composited hidden vectors for every prompt, without the C feature channels.

        Args:
            hidden: The hidden vectors of a picture, by which scales are chosen.
            weights: The weights of the heads by name.
        """
        scores: list[Tensor] = []
        for query, is_words in zip(self.queries, self._are_words, strict=True):
            heads = self.scales if is_words and self.scales else (self.head,)
            scales = [to_hidden(query, weights[head]) for head in heads]
            scores.append(similarity_from_hidden(hidden, best_scales(scales, lambda: hidden)))
        return torch.cat(scores, dim=-1)

    @property
    def _are_words(self) -> tuple[bool, ...]:
        """Whether each query is in words: examples come last, and are known to be there."""
        starts = [0]
        for query in self.queries[:-1]:
            starts.append(starts[-1] + len(query.prompts))
        return tuple(not self.is_present[start] for start in starts)


def active_query(
    head: str,
    words: Words | None,
    examples: Sequence[Example],
    mean: Float[Tensor, " channels"] | None,
    settings: DisplaySettings,
    scales: tuple[str, ...] = (),
    *,
    is_negative: bool = True,
) -> ActiveQuery | None:
    """Joins words and examples into the query of a head; None where there is no positive.

    Args:
        head: The head's name.
        words: The typed query, or None.
        examples: Points and images; those without a feature of this head are left out.
        mean: The mean of all unit features, which the rule ``scene`` contrasts words with.
        settings: How scores are computed and shown.
        scales: Heads of several scales that answer words together; empty for the head alone.
        is_negative: Whether the mean is a further negative of positive examples.
    """
    fitting = [example for example in examples if head in example.features]
    positives = [example for example in fitting if example.is_positive]
    negatives = [example.features[head] for example in fitting if not example.is_positive]
    if mean is not None and is_negative:
        negatives.append(mean)
    labels: list[str] = []
    queries: list[Query] = []
    num_words = 0
    known: tuple[bool, ...] = ()
    if words is not None:
        labels, query = _query_of_words(words, mean, settings)
        queries, num_words = [query], len(labels)
        together = settings.several == "averaged"
        known = (all(words.are_known),) if together else words.are_known[:num_words]
    if positives and num_words < MOST_PROMPTS:
        vectors = torch.stack([example.features[head] for example in positives])
        others = torch.stack(negatives) if negatives else vectors.new_zeros((0, vectors.shape[-1]))
        names, query = _query(
            [example.label for example in positives],
            vectors,
            others,
            settings,
            most=MOST_PROMPTS - num_words,
        )
        labels, queries = labels + names, [*queries, query]
    if not queries:
        return None
    present = tuple(index >= num_words for index in range(len(labels)))
    known += (True,) * (len(labels) - num_words)
    return ActiveQuery(head, tuple(labels), tuple(queries), present, known, settings, scales)


def _query_of_words(
    words: Words, mean: Float[Tensor, " channels"] | None, settings: DisplaySettings
) -> tuple[list[str], Query]:
    against: Against = {}
    if settings.rule == "scene" and words.text_map is None:
        # In a language the mean of what it maps would count; that of the features does not give it.
        against = {"mean": mean}
    if settings.rule == "backbone":
        against = {"calibration": words.calibration}
    labels, positives, negatives = words.labels, words.positives, words.negatives
    return _query(labels, positives, negatives, settings, text_map=words.text_map, **against)


def _query(
    labels: Sequence[str],
    positives: Float[Tensor, "positives channels"],
    negatives: Float[Tensor, "negatives channels"],
    settings: DisplaySettings,
    *,
    most: int = MOST_PROMPTS,
    text_map: TextMap | None = None,
    **against: Unpack[Against],
) -> tuple[list[str], Query]:
    """Returns the labels and the query of at most so many prompts."""
    if settings.score == "cosine":
        negatives = negatives[:0]
    if settings.several == "averaged":
        labels, positives = [" + ".join(labels)], averaged(positives)
    query = make_query(
        positives[:most],
        negatives,
        temperature=settings.temperature,
        text_map=text_map,
        **against,
    )
    return [shortened(label) for label in labels[:most]], query


def shortened(text: str) -> str:
    """Returns at most 40 characters of a text."""
    return text if len(text) <= _LONGEST_LABEL else f"{text[: _LONGEST_LABEL - 1]}…"


def unit(feature: Float[Tensor, " channels"]) -> Float[Tensor, " channels"]:
    """Returns a feature at length one, on the CPU in full precision."""
    return functional.normalize(feature.detach().float().cpu(), dim=0)
