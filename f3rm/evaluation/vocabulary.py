"""The phrases of an evaluation, and their embeddings for one head.

A score is LERF's relevancy of a phrase against the four canonical phrases, or by another rule.
Scores of the field come from hidden vectors, so its C channels are never built.
"""

from dataclasses import dataclass

from typing_extensions import Unpack

from f3rm.language.questions import Head
from f3rm.language.relevancy import (
    CANONICAL_NEGATIVES,
    Against,
    HiddenQuery,
    Query,
    make_query,
    to_hidden,
)
from f3rm.language.text_encoder import TextEncoder
from f3rm.synthetic.truth import AbsentPrompt, SceneTruth


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
        absent: Prompts for objects that the scene lacks.
    """

    queries: tuple[Label, ...]
    surfaces: tuple[Label, ...]
    absent: tuple[AbsentPrompt, ...]

    @classmethod
    def of(cls, truth: SceneTruth) -> "Vocabulary":
        """Collects the phrases of a scene."""
        queries = tuple(Label(query.text, tuple(query.ids)) for query in truth.queries)
        asked = {query.text for query in queries}
        names = dict.fromkeys(
            found.name
            for found in truth.objects
            if found.kind == "surface" and found.name not in asked
        )
        surfaces = tuple(
            Label(name, tuple(found.id for found in truth.objects if found.name == name))
            for name in names
        )
        return cls(queries, surfaces, truth.absent)

    @property
    def labels(self) -> tuple[Label, ...]:
        """Queries, then surfaces: the phrases with a truth."""
        return self.queries + self.surfaces

    @property
    def texts(self) -> tuple[str, ...]:
        """Every phrase: labels, then absent ones. Scores come in this order."""
        return tuple(phrase.text for phrase in (*self.labels, *self.absent))

    def rivals(self, query: int) -> list[int]:
        """Returns the labels that name nothing of what a query names: it must beat them."""
        wanted = set(self.queries[query].ids)
        return [index for index, label in enumerate(self.labels) if wanted.isdisjoint(label.ids)]


@dataclass(frozen=True)
class Language:
    """The vocabulary of a scene, embedded for one head.

    Attributes:
        head: The head's name.
        truth: The scene's ground truth.
        vocabulary: Its phrases.
        query: The phrases as prompts, in the order of :attr:`Vocabulary.texts`, against LERF's
            negatives, as typed, without a template.
        hidden_query: The same in the head's hidden space.
    """

    head: str
    truth: SceneTruth
    vocabulary: Vocabulary
    query: Query
    hidden_query: HiddenQuery


def open_language(head: Head, truth: SceneTruth, **against: Unpack[Against]) -> Language:
    """Embeds a scene's phrases with a head's text tower.

    Args:
        head: A head with a text tower.
        truth: A scene with at least one query.
        **against: What phrases are compared with beside LERF's negatives.

    Raises:
        BackboneUnavailableError: If the text tower cannot be loaded.
    """
    vocabulary, weight = Vocabulary.of(truth), head.weight.detach()
    texts = vocabulary.texts
    embeddings = TextEncoder(head.spec.backbone).encode([*texts, *CANONICAL_NEGATIVES])
    prompts, negatives = embeddings.to(weight).split((len(texts), len(CANONICAL_NEGATIVES)))
    query = make_query(prompts, negatives, **against)
    return Language(head.spec.name, truth, vocabulary, query, to_hidden(query, weight))
