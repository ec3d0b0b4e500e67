"""From words to scores: phrases are embedded once, questions are scored on hidden vectors."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TypedDict

import torch
from jaxtyping import Float
from torch import Tensor

from f3rm.errors import F3rmError, HeadSpec
from f3rm.language.expressions import (
    Expression,
    Phrase,
    combined,
    parse,
    phrases_of,
    split_questions,
    things_of,
)
from f3rm.language.relevancy import (
    CANONICAL_NEGATIVES,
    HiddenQuery,
    make_query,
    similarities_from_hidden,
    to_hidden,
)
from f3rm.language.text_encoder import TextEncoder
from f3rm.model import FeatureFieldModel

PROMPT_TEMPLATES = ("{}", "a {}", "a photo of a {}", "a close-up photo of a {}", "a {} in a room")
"""Sentences that a phrase may be put into; their embeddings are averaged."""

AS_IT_STANDS = ("{}",)


class QuestionOptions(TypedDict, total=False):
    """How words are asked; every key may be left out."""

    head: str | None
    """The feature head; without it the first that has a text tower."""
    negatives: Sequence[str]
    """Phrases that the asked one is told from; without it LERF's four, empty for plain cosines."""
    temperature: float
    """Soft-max temperature of the relevancy, > 0; 0.1 without it."""
    templates: Sequence[str]
    """Sentences with ``{}`` that phrases are put into; without it they are used as they stand."""


class LanguageError(F3rmError):
    """A field, or the head that is asked, has no language."""


@dataclass(frozen=True)
class Question:
    """A question, ready to be scored.

    Attributes:
        label: What it is called.
        expression: What is asked.
        queries: Its phrases in the head's hidden space.
        compares: Whether scores are relevancies in [0, 1], not plain cosines.
        thresholds: From which score on something counts as a thing whose part is asked for.
    """

    label: str
    expression: Expression
    queries: Mapping[str, HiddenQuery]
    compares: bool
    thresholds: Mapping[Expression, float] = field(default_factory=dict)

    @property
    def device(self) -> torch.device:
        """Where hidden vectors must be to be scored."""
        return next(iter(self.queries.values())).gram.device

    def scores(self, hidden: Float[Tensor, "*batch hidden"]) -> Float[Tensor, "*batch"]:
        """Scores hidden vectors, composited or at points."""
        return self.score_of(self.expression, hidden)

    def score_of(
        self, expression: Expression, hidden: Float[Tensor, "*batch hidden"]
    ) -> Float[Tensor, "*batch"]:
        """Scores hidden vectors against a piece of the question."""
        phrases = phrases_of(expression)
        asked = [self.queries[phrase] for phrase in phrases]
        columns = similarities_from_hidden(hidden, asked).unbind(-1)
        scores = dict(zip(phrases, columns, strict=True))
        return combined(expression, scores.__getitem__, self.thresholds.__getitem__)

    def with_thresholds(self, choose: Callable[[Tensor], float], hidden: Tensor) -> "Question":
        """Chooses from which score on something counts as a thing whose part is asked for.

        Args:
            choose: From scores to a threshold.
            hidden: Hidden vectors of the whole scene, shape (points, hidden).
        """
        question = self
        for thing in things_of(self.expression):
            chosen = choose(question.score_of(thing, hidden))
            question = replace(question, thresholds={**question.thresholds, thing: chosen})
        return question


class Questioner:
    """Turns words into questions to one model; text towers load when first needed.

    Args:
        model: The trained model.
    """

    def __init__(self, model: FeatureFieldModel) -> None:
        self._model = model
        self._encoders: dict[str, TextEncoder] = {}

    def ask(
        self,
        text: str,
        *,
        head: str | None = None,
        negatives: Sequence[str] = CANONICAL_NEGATIVES,
        temperature: float = 0.1,
        templates: Sequence[str] = AS_IT_STANDS,
    ) -> Question:
        """Reads and embeds one question; see :class:`QuestionOptions` and :func:`parse`.

        Raises:
            LanguageError: If the field or the head has no text tower.
            ExpressionError: If the question cannot be read.
            F3rmError: If there is no such head, a template has no ``{}``, or cosines would be
                combined.
            BackboneUnavailableError: If the text tower cannot be loaded.
        """
        spec = choose_head(self._model, head)
        if spec is None:
            msg = (
                f"ask: the field must have language to be asked {text!r}, got the heads "
                f"{list(self._model.heads)}. Train with a feature type that has it, such as CLIP."
            )
            raise LanguageError(msg)
        expression = parse(text)
        if not (negatives or isinstance(expression, Phrase)):
            msg = (
                f"ask: negatives must not be empty where and, or, not or > is used, got {text!r}: "
                "cosines have no common scale. Leave negatives out for the canonical ones."
            )
            raise F3rmError(msg)
        weight = self._model.feature_field.head(spec.name).weight.detach()
        others = self._embed(spec, negatives, templates).to(weight) if negatives else None
        queries: dict[str, HiddenQuery] = {}
        for phrase in phrases_of(expression):
            own = self._embed(spec, [phrase], templates).to(weight)
            query = make_query(own, others, temperature=temperature)
            queries[phrase] = to_hidden(query, weight)
        return Question(str(expression), expression, queries, compares=others is not None)

    def _embed(
        self, spec: HeadSpec, phrases: Sequence[str], templates: Sequence[str]
    ) -> Float[Tensor, "phrases channels"]:
        if isinstance(templates, str) or not templates or any("{}" not in t for t in templates):
            msg = (
                f"ask: templates must be sentences with {{}} in them, got {templates!r}. For "
                "example f3rm.scene.PROMPT_TEMPLATES."
            )
            raise F3rmError(msg)
        encoder = self._encoders.setdefault(spec.name, TextEncoder(spec.backbone))
        sentences = [t.replace("{}", phrase) for phrase in phrases for t in templates]
        embeddings = encoder.encode(sentences).unflatten(0, (len(phrases), len(templates)))
        return embeddings.mean(dim=1)  # of unit vectors; make_query normalises


def choose_head(model: FeatureFieldModel, wanted: str | None) -> HeadSpec | None:
    """Returns the wanted head, or the first that has a text tower, or None where none has.

    Args:
        model: The trained model.
        wanted: Name of a head, or None.

    Raises:
        F3rmError: If the wanted head does not exist or has no text tower.
    """
    speaking = [spec for spec in model.feature_field.specs if spec.has_text]
    if wanted is None:
        return speaking[0] if speaking else None
    spec = model.feature_field.head(wanted).spec
    if not spec.has_text:
        names = ", ".join(repr(other.name) for other in speaking) or "none of this run"
        msg = (
            f"choose_head: head must have a text tower, got {wanted!r}. Those that have one: "
            f"{names}."
        )
        raise LanguageError(msg)
    return spec


def questions_in(query: str | Sequence[str]) -> list[str]:
    """Returns the questions of a text with semicolons between them, or of a list.

    Raises:
        F3rmError: If there is none.
    """
    texts = split_questions(query) if isinstance(query, str) else list(query)
    if not texts:
        msg = f"questions_in: query must hold at least one phrase, got {query!r}. Say what to seek."
        raise F3rmError(msg)
    return texts


def all_scores(
    questions: Sequence[Question], hidden: Float[Tensor, "*batch hidden"]
) -> Float[Tensor, "*batch questions"]:
    """Scores hidden vectors against several questions."""
    return torch.stack([question.scores(hidden) for question in questions], dim=-1)
