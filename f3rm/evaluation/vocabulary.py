"""The phrases of an evaluation, and their embeddings for one head.

A score is LERF's relevancy of a phrase against the four canonical phrases, or by another rule.
Scores of the field come from hidden vectors, so its C channels are never built.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch import Tensor

from f3rm.language.heads import Head, language_of, query_of
from f3rm.language.relevancy import (
    CANONICAL_NEGATIVES,
    Against,
    AnyQuery,
    Query,
    ScaledQuery,
    best_scales,
    make_query,
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
    """The vocabulary of a scene, embedded for one head, or for the heads of several scales.

    Attributes:
        truth: The scene's ground truth.
        vocabulary: Its phrases.
        heads: The head that answers each phrase, in the order of :attr:`Vocabulary.texts`.
        query: The phrases as prompts, in this order, against LERF's negatives, as typed, without a
            template.
        hidden_query: The same in the hidden space of the heads.
    """

    truth: SceneTruth
    vocabulary: Vocabulary
    heads: tuple[str, ...]
    query: Query
    hidden_query: AnyQuery


@dataclass(frozen=True)
class Speaker:
    """What answers: a head with a text tower, or the heads of several scales.

    Attributes:
        heads: The heads, at least one.
        surface: Returns hidden vectors of the whole scene, by which scales are chosen; None takes
            the first.
        against: From a head's name to what phrases are compared with beside LERF's negatives; None
            for nothing.
    """

    heads: tuple[Head, ...]
    surface: Callable[[], Tensor] | None = None
    against: Callable[[str], Against] | None = None

    def embedded(self, texts: Sequence[str]) -> tuple[Query, AnyQuery]:
        """Embeds phrases against LERF's negatives, as typed: for features, and for hidden vectors.

        Raises:
            BackboneUnavailableError: If the text tower cannot be loaded.
        """
        first = self.heads[0]
        encoder = TextEncoder(first.spec.backbone)
        vectors = encoder.encode([*texts, *CANONICAL_NEGATIVES]).to(first.weight.detach())
        prompts, negatives = vectors.split((len(texts), len(CANONICAL_NEGATIVES)))
        nothing: Against = {}
        against = self.against or (lambda _: nothing)
        beside = [against(head.spec.name) for head in self.heads]
        scales = [
            query_of(head, prompts, negatives, **rule)
            for head, rule in zip(self.heads, beside, strict=True)
        ]
        query = make_query(prompts, negatives, text_map=language_of(first), **beside[0])
        return query, best_scales(scales, self.surface)


def open_language(speaker: Speaker, truth: SceneTruth) -> Language:
    """Embeds a scene's phrases.

    Args:
        speaker: What answers them.
        truth: A scene with at least one query.

    Raises:
        BackboneUnavailableError: If the text tower cannot be loaded.
    """
    vocabulary = Vocabulary.of(truth)
    query, hidden_query = speaker.embedded(vocabulary.texts)
    chosen = [0] * len(query.prompts)
    if isinstance(hidden_query, ScaledQuery):
        chosen = hidden_query.chosen
    heads = tuple(speaker.heads[index].spec.name for index in chosen)
    return Language(truth, vocabulary, heads, query, hidden_query)
