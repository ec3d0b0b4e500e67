"""The words of an evaluation, and how well features fit them.

A score is LERF's relevancy: the phrase against the four canonical phrases, as typed, without a
template. Scores of the field come from hidden vectors, so its C channels are never built.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from f3rm.language.relevancy import make_query, relevancy, to_hidden
from f3rm.synthetic.truth import SceneTruth

TEMPERATURE = 0.1

_EPSILON = 1e-12


@dataclass(frozen=True)
class Label:
    """A phrase and what it is true of.

    Attributes:
        text: The phrase.
        ids: Ids of the scene's objects and surfaces that it names.
    """

    text: str
    ids: tuple[int, ...]


@dataclass(frozen=True)
class Vocabulary:
    """All phrases that an evaluation asks.

    Attributes:
        queries: The scene's queries, which are scored.
        surfaces: Names of surfaces that are no query: what else a pixel may be.
        absent: Phrases for things that the scene lacks.
    """

    queries: tuple[Label, ...]
    surfaces: tuple[Label, ...]
    absent: tuple[str, ...]

    @classmethod
    def of(cls, truth: SceneTruth) -> "Vocabulary":
        """Collects the phrases of a scene."""
        queries = tuple(Label(query.text, tuple(query.ids)) for query in truth.queries)
        asked = {query.text for query in queries}
        names = dict.fromkeys(
            thing.name
            for thing in truth.objects
            if thing.kind == "surface" and thing.name not in asked
        )
        surfaces = tuple(
            Label(name, tuple(thing.id for thing in truth.objects if thing.name == name))
            for name in names
        )
        return cls(queries, surfaces, tuple(truth.absent))

    @property
    def labels(self) -> tuple[Label, ...]:
        """Queries, then surfaces: the phrases with a truth."""
        return self.queries + self.surfaces

    @property
    def texts(self) -> tuple[str, ...]:
        """Every phrase: labels, then absent ones. Scores come in this order."""
        return tuple(label.text for label in self.labels) + self.absent

    def rivals(self, query: int) -> list[int]:
        """Returns the labels that name nothing of what a query names: it must beat them."""
        wanted = set(self.queries[query].ids)
        return [index for index, label in enumerate(self.labels) if wanted.isdisjoint(label.ids)]


class Scorer:
    """Scores features and hidden vectors against every phrase of a vocabulary.

    Args:
        texts: Embeddings of the phrases, any length.
        canonical: Embeddings of the canonical phrases, any length.
        head_weight: The head's basis W.
    """

    def __init__(
        self,
        texts: Float[Tensor, "texts channels"],
        canonical: Float[Tensor, "canonical channels"],
        head_weight: Float[Tensor, "channels hidden"],
    ) -> None:
        query = make_query(texts[:1], torch.cat((texts, canonical)), temperature=TEMPERATURE)
        self._phrases = query.negatives.to(head_weight)  # every phrase, of unit length
        self._num_texts = len(texts)
        carried = to_hidden(query, head_weight.detach())
        self._hidden_phrases = carried.embeddings[:, 1:]  # (hidden, texts + canonical)
        self._gram = carried.gram

    def from_features(
        self, features: Float[Tensor, "*batch channels"]
    ) -> Float[Tensor, "*batch texts"]:
        """Returns the relevancy of every phrase for features of any length."""
        unit = functional.normalize(features.to(self._phrases), dim=-1, eps=_EPSILON)
        return self._relevancies(unit @ self._phrases.T)

    def from_hidden(self, hidden: Float[Tensor, "*batch hidden"]) -> Float[Tensor, "*batch texts"]:
        """Returns the relevancy of every phrase for hidden vectors: of the features ``W H``."""
        hidden = hidden.to(self._gram)
        squared = (hidden @ self._gram * hidden).sum(-1, keepdim=True)
        length = squared.clamp_min(_EPSILON**2).sqrt()
        return self._relevancies(hidden @ self._hidden_phrases / length)

    def _relevancies(
        self, cosines: Float[Tensor, "*batch phrases"]
    ) -> Float[Tensor, "*batch texts"]:
        canonical = cosines[..., self._num_texts :]
        scores = [
            relevancy(torch.cat((cosines[..., i : i + 1], canonical), -1), temperature=TEMPERATURE)
            for i in range(self._num_texts)
        ]
        return torch.stack(scores, dim=-1)
