"""What is asked of a scene: words, examples, and how their scores are shown.

These are values: a render takes one :class:`Asked` and is not disturbed by what is typed meanwhile.
Words and examples are told from negatives of their own kind, and are never averaged with each
other: an image's features are nearer to any other image's than to any text's.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from f3rm.language.relevancy import Query, make_query
from f3rm.language.text_encoder import QueryText

ScoreKind = Literal["relevancy", "cosine"]
Several = Literal["averaged", "each alone"]

MOST_QUERIES = 8
"""Queries that are told apart by colour."""

_LONGEST_LABEL = 40


@dataclass(frozen=True)
class Words:
    """A typed query, embedded.

    Attributes:
        text: What was typed.
        labels: Its positive phrases.
        positives: Their embeddings, shape (positives, channels).
        negatives: Embeddings of the negative phrases, shape (negatives, channels).
    """

    text: QueryText
    labels: tuple[str, ...]
    positives: Float[Tensor, "positives channels"]
    negatives: Float[Tensor, "negatives channels"]


@dataclass(frozen=True)
class Example:
    """A point that was clicked, or an image.

    Attributes:
        label: What it is called in the legend.
        is_positive: Whether it is looked for, or told from what is.
        features: Its feature by head, each of shape (channels,).
    """

    label: str
    is_positive: bool
    features: Mapping[str, Float[Tensor, " _"]]


@dataclass(frozen=True)
class Look:
    """How scores are computed and shown.

    Attributes:
        several: Whether positives are averaged or asked one by one.
        score: Relevancy against the negatives, or the plain cosine.
        temperature: Soft-max temperature of the relevancy, > 0.
        threshold: From which score on something counts as found; None to choose it by the picture.
        low: The score that gets the first colour of the scale.
        high: The score that gets the last one.
        coloured: Whether ``similarity`` is a coloured picture, or the bare scores.
    """

    several: Several = "averaged"
    score: ScoreKind = "relevancy"
    temperature: float = 0.1
    threshold: float | None = None
    low: float = 0.0
    high: float = 1.0
    coloured: bool = False


@dataclass(frozen=True)
class Asked:
    """Queries to one head, ready to be scored.

    Attributes:
        head: The head's name.
        labels: What each query is called, at most :data:`MOST_QUERIES`.
        queries: The queries.
        is_present: Whether each is known to be in the scene, as an example is and a word is not.
        look: How they are shown.
    """

    head: str
    labels: tuple[str, ...]
    queries: tuple[Query, ...]
    is_present: tuple[bool, ...]
    look: Look


def ask(
    head: str,
    words: Words | None,
    examples: Sequence[Example],
    background: Float[Tensor, " channels"] | None,
    look: Look,
) -> Asked | None:
    """Puts together what is asked of a head; None where nothing is.

    Args:
        head: The head's name.
        words: The typed query, or None.
        examples: Points and images; those without a feature of this head are left out.
        background: What positive examples are told from beside negative ones, usually the mean of
            all features; None for nothing.
        look: How it is shown.
    """
    known = [example for example in examples if head in example.features]
    positives = [example for example in known if example.is_positive]
    negatives = [example.features[head] for example in known if not example.is_positive]
    if background is not None:
        negatives.append(background)
    queries: list[tuple[str, Query]] = []
    num_words = 0
    if words is not None:
        queries += _queries(words.labels, words.positives, words.negatives, look)
        num_words = len(queries)
    if positives:
        vectors = torch.stack([example.features[head] for example in positives])
        others = torch.stack(negatives) if negatives else vectors.new_zeros((0, vectors.shape[-1]))
        queries += _queries([example.label for example in positives], vectors, others, look)
    if not queries:
        return None
    shown = queries[:MOST_QUERIES]
    return Asked(
        head=head,
        labels=tuple(label for label, _ in shown),
        queries=tuple(query for _, query in shown),
        is_present=tuple(index >= num_words for index in range(len(shown))),
        look=look,
    )


def _queries(
    labels: Sequence[str],
    positives: Float[Tensor, "positives channels"],
    negatives: Float[Tensor, "negatives channels"],
    look: Look,
) -> list[tuple[str, Query]]:
    if look.score == "cosine":
        negatives = negatives[:0]
    if look.several == "averaged":
        query = make_query(positives, negatives, temperature=look.temperature)
        return [(shortened(" + ".join(labels)), query)]
    return [
        (shortened(label), make_query(positive[None], negatives, temperature=look.temperature))
        for label, positive in zip(labels, positives, strict=True)
    ]


def shortened(text: str) -> str:
    """Returns at most 40 signs of a text."""
    return text if len(text) <= _LONGEST_LABEL else f"{text[: _LONGEST_LABEL - 1]}…"


def unit(feature: Float[Tensor, " channels"]) -> Float[Tensor, " channels"]:
    """Returns a feature at length one, on the CPU in full precision."""
    return functional.normalize(feature.detach().float().cpu(), dim=0)
