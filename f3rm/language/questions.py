"""Questions in words or by examples, embedded once; scored on hidden vectors."""

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol, TypedDict, get_args, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from f3rm.errors import F3rmError, HeadSpec
from f3rm.language.expressions import (
    Either,
    Expression,
    Phrase,
    combined,
    parse,
    phrases_of,
    split_questions,
    wholes_of,
)
from f3rm.language.known_words import rivals_of, unknown_reason
from f3rm.language.relevancy import (
    CANONICAL_NEGATIVES,
    DEFAULT_RULE,
    TEMPERATURE,
    Against,
    HiddenQuery,
    Rule,
    make_query,
    mean_unit_feature,
    similarity_from_hidden,
    to_hidden,
)
from f3rm.language.text_encoder import TextEncoder

logger = logging.getLogger(__name__)

PROMPT_TEMPLATES = ("{}", "a {}", "a photo of a {}", "a close-up photo of a {}", "a {} in a room")
"""Sentences that a phrase may be put into; their embeddings are averaged."""

AS_IT_STANDS = ("{}",)

MOST_QUESTIONS = 255
"""Questions of one call: a picture of labels has a byte per pixel, and one value is for none."""


@runtime_checkable
class Head(Protocol):
    """A feature head, as far as a question needs it."""

    @property
    def spec(self) -> HeadSpec:
        """Name, channels and backbone."""
        ...

    @property
    def weight(self) -> Float[Tensor, "channels hidden"]:
        """The linear map from hidden vectors to features."""
        ...


class QuestionOptions(TypedDict, total=False):
    """How words are asked; every key may be left out."""

    head: str | None
    """The feature head; without it the first that has a text tower."""
    negatives: Sequence[str]
    """Phrases that prompts must beat; without it LERF's four, empty for plain cosines."""
    temperature: float
    """Soft-max temperature of the relevancy, > 0; 0.1 without it."""
    templates: Sequence[str]
    """Sentences with ``{}`` that phrases are put into; without it phrases are used as typed."""
    rule: Rule
    """``lerf``, relevancy to the negatives; ``scene``, contrasted with the scene's mean too; or
    ``backbone``, standard deviations above what the backbone gives anywhere. Without it ``scene``;
    plain cosines without negatives."""


class LanguageError(F3rmError):
    """A field, or the head that is asked, has no text tower."""


@dataclass(frozen=True)
class Question:
    """A question, ready to be scored.

    Attributes:
        label: The question as text.
        expression: The parsed question.
        query: Its phrases, in their order, in the head's hidden space.
        thresholds: Score threshold for the left side of every ``object > part``.
        unknown: Which of its words the text tower does not know, as a sentence; empty for none.
        rivals: Phrases that contradict it, where the tower knows few words and it is one phrase.
        rival_query: These in the head's hidden space; None where there are none.
        is_present: Whether it is known to be in the scene, as an example from there is.
    """

    label: str
    expression: Expression
    query: HiddenQuery
    thresholds: Mapping[Expression, float] = field(default_factory=dict[Expression, float])
    unknown: str = ""
    rivals: tuple[str, ...] = ()
    rival_query: HiddenQuery | None = None
    is_present: bool = False

    @property
    def compares(self) -> bool:
        """Whether scores are relevancies in [0, 1], not plain cosines."""
        return self.query.has_negatives

    @property
    def device(self) -> torch.device:
        """The device that hidden vectors must be on."""
        return self.query.gram.device

    def scores(self, hidden: Float[Tensor, "*batch hidden"]) -> Float[Tensor, "*batch"]:
        """Scores hidden vectors, composited or at points."""
        return self.score_of(self.expression, hidden)

    def score_of(
        self, expression: Expression, hidden: Float[Tensor, "*batch hidden"]
    ) -> Float[Tensor, "*batch"]:
        """Scores hidden vectors against a part of the question."""
        columns = similarity_from_hidden(hidden, self.query).unbind(-1)
        scores = dict(zip(phrases_of(self.expression), columns, strict=True))
        return combined(expression, scores.__getitem__, self.thresholds.__getitem__)

    def with_thresholds(
        self, choose: Callable[[Tensor], float], hidden: Callable[[], Tensor]
    ) -> "Question":
        """Sets the score threshold for the left side of every ``object > part``.

        Args:
            choose: From scores to a threshold.
            hidden: Returns hidden vectors of the whole scene, shape (points, hidden); called where
                there is such a side.
        """
        question = self
        for whole in wholes_of(self.expression):  # innermost first: outer ones need its threshold
            chosen = choose(question.score_of(whole, hidden().to(self.device)))
            question = replace(question, thresholds={**question.thresholds, whole: chosen})
        return question


Query = str | Question | Sequence[str | Question]
"""A question, several as a text with semicolons between them, or a list."""


class Questioner:
    """Turns text into questions to the heads of one field; text towers load when first needed.

    Args:
        heads: The heads by name.
        surface: Returns hidden vectors of the whole scene, shape (points, hidden), which the rule
            ``scene`` contrasts with; None where no scene is known.
    """

    def __init__(
        self, heads: Mapping[str, Head], surface: Callable[[], Tensor] | None = None
    ) -> None:
        self._heads = heads
        self._surface = surface
        self._means: dict[str, Tensor] = {}
        self._encoders: dict[str, TextEncoder] = {}
        self._warned: set[str] = set()

    def warn_of_unknown(self, question: Question) -> None:
        """Logs, once, that the text tower does not know words of a question."""
        if question.unknown and question.unknown not in self._warned:
            self._warned.add(question.unknown)
            logger.warning("%s", question.unknown)

    def ask(
        self,
        text: str,
        *,
        head: str | None = None,
        negatives: Sequence[str] = CANONICAL_NEGATIVES,
        temperature: float = TEMPERATURE,
        templates: Sequence[str] = AS_IT_STANDS,
        rule: str | None = None,
    ) -> Question:
        """Parses and embeds one question; see :class:`QuestionOptions` and :func:`parse`.

        Raises:
            LanguageError: If the field or the head has no text tower.
            ExpressionError: If the question cannot be parsed.
            F3rmError: If there is no such head or rule, a template has no ``{}``, or cosines would
                be combined.
            BackboneUnavailableError: If the text tower cannot be loaded.
        """
        spec = choose_head(self._heads, head)
        if spec is None:
            msg = (
                f"{text!r} cannot be asked: none of the heads {list(self._heads)} has a text "
                "tower. Ask with an example (like=, --like), or train with a feature type that has "
                "one, such as CLIP."
            )
            raise LanguageError(msg)
        expression = parse(text)
        if not (negatives or isinstance(expression, Phrase)):
            msg = (
                f"negatives must not be empty where and, or, not or > is used, got {text!r}: "
                "cosines have no common scale. Leave negatives out for the canonical ones."
            )
            raise F3rmError(msg)
        weight = self._heads[spec.name].weight.detach()
        if rule is None:
            rule = DEFAULT_RULE if negatives and self._surface is not None else "lerf"
        against, encoder = self.against(rule, spec.name), self._encoder(spec.name)
        others = _embed(encoder, negatives, templates).to(weight) if negatives else None

        def hidden_query(phrases: Sequence[str]) -> HiddenQuery:
            prompts = _embed(encoder, phrases, templates).to(weight)
            query = make_query(prompts, others, temperature=temperature, **against)
            return to_hidden(query, weight)

        phrases, known = phrases_of(expression), encoder.known_words()
        rivals = rivals_of(phrases[0], known) if isinstance(expression, Phrase) else ()
        return Question(
            label=str(expression),
            expression=expression,
            query=hidden_query(phrases),
            unknown=unknown_reason(spec.name.upper(), phrases, known),
            rivals=rivals,
            rival_query=hidden_query(rivals) if rivals else None,
        )

    def _encoder(self, head: str) -> TextEncoder:
        backbone = self._heads[head].spec.backbone
        return self._encoders.setdefault(head, TextEncoder(backbone))

    def against(self, rule: str, head: str) -> Against:
        """Returns what a rule compares a head's features with beside negatives.

        Raises:
            F3rmError: If there is no such rule, or what it needs is not known.
            BackboneUnavailableError: If the text tower cannot be loaded.
        """
        if rule not in get_args(Rule):
            msg = f"rule must be one of {', '.join(get_args(Rule))}, got {rule!r}."
            raise F3rmError(msg)
        if rule == "lerf":
            return {}
        if rule == "backbone":
            calibration = self._encoder(head).calibration()
            if calibration is None:
                msg = (
                    f"The rule 'backbone' needs a calibration, and {head!r} has none beside its "
                    "weights. docs/backbones.md shows how to make one; or use lerf or scene."
                )
                raise F3rmError(msg)
            return {"calibration": calibration}
        if self._surface is None:
            raise F3rmError("rule='scene' must be asked of a scene: open it with f3rm.load.")
        if head not in self._means:
            weight = self._heads[head].weight.detach()
            self._means[head] = mean_unit_feature(self._surface(), weight)
        return {"mean": self._means[head]}


def _embed(
    encoder: TextEncoder, phrases: Sequence[str], templates: Sequence[str]
) -> Float[Tensor, "phrases channels"]:
    """Embeds phrases, each as the mean over the templates."""
    if isinstance(templates, str) or not templates or any("{}" not in t for t in templates):
        msg = (
            f"templates must be sentences with {{}} in them, got {templates!r}. For "
            "example f3rm.scene.PROMPT_TEMPLATES."
        )
        raise F3rmError(msg)
    sentences = [t.replace("{}", phrase) for phrase in phrases for t in templates]
    embeddings = encoder.encode(sentences).view(len(phrases), len(templates), -1)
    return embeddings.mean(dim=1)  # of unit vectors; make_query normalises


def choose_head(heads: Mapping[str, Head], wanted: str | None) -> HeadSpec | None:
    """Returns the wanted head, or the first that has a text tower, or None where none has.

    Args:
        heads: The heads by name.
        wanted: Name of a head, or None.

    Raises:
        F3rmError: If the wanted head does not exist or has no text tower.
    """
    with_text = [head.spec for head in heads.values() if head.spec.has_text]
    if wanted is None:
        return with_text[0] if with_text else None
    if wanted not in heads:
        msg = f"There is no head {wanted!r}; this field has {', '.join(heads) or 'none'}."
        raise F3rmError(msg)
    spec = heads[wanted].spec
    if not spec.has_text:
        names = ", ".join(repr(other.name) for other in with_text) or "none of this run"
        msg = f"The head {wanted!r} has no text tower. Heads that have one: {names}."
        raise LanguageError(msg)
    return spec


def questions_in(query: Query) -> list[str | Question]:
    """Returns the questions of a text with semicolons between them, or of a list.

    Raises:
        F3rmError: If there is none, there are too many, or one cannot be parsed.
    """
    asked: list[str | Question] = [query] if isinstance(query, Question) else []
    if not isinstance(query, Question):
        asked = [*(split_questions(query) if isinstance(query, str) else query)]
    if not asked:
        msg = f"A query must hold at least one phrase, got {query!r}. Say what to look for."
        raise F3rmError(msg)
    if len(asked) > MOST_QUESTIONS:
        msg = (
            f"A query may hold {MOST_QUESTIONS} questions, got {len(asked)}. Ask them in several "
            "calls."
        )
        raise F3rmError(msg)
    for question in asked:
        if isinstance(question, str):
            parse(question)
    return asked


def question_like(
    label: str,
    examples: Float[Tensor, "examples channels"],
    head: Head,
    background: Float[Tensor, " channels"],
    *,
    temperature: float = TEMPERATURE,
    is_present: bool,
) -> Question:
    """Makes a question of the features of examples: what is as near as possible to one of them.

    Args:
        label: Its name.
        examples: At least one feature.
        head: Their head.
        background: The negative: the mean feature of all that the head was trained on.
        temperature: Soft-max temperature of the relevancy.
        is_present: Whether the examples are from the scene.
    """
    weight = head.weight.detach()
    query = make_query(examples.to(weight), background.to(weight)[None], temperature=temperature)
    phrases = [Phrase(f"{label} {number + 1}") for number in range(len(examples))]
    return Question(
        label=label,
        expression=Either(tuple(phrases)) if len(phrases) > 1 else phrases[0],
        query=to_hidden(query, weight),
        is_present=is_present,
    )


def all_scores(
    questions: Sequence[Question], hidden: Float[Tensor, "*batch hidden"]
) -> Float[Tensor, "*batch questions"]:
    """Scores hidden vectors against several questions."""
    return torch.stack([question.scores(hidden) for question in questions], dim=-1)
