"""Questions in words or by examples, embedded once; scored on hidden vectors."""

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, TypedDict, cast, get_args

import torch
from jaxtyping import Float
from torch import Tensor
from typing_extensions import Unpack

from f3rm.errors import F3rmError, StrPath, check_number
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
from f3rm.language.heads import (
    Head,
    LanguageError,
    choose_head,
    language_of,
    query_of,
    scales_of,
    translated,
)
from f3rm.language.known_words import rivals_of, unknown_reason
from f3rm.language.relevancy import (
    CANONICAL_NEGATIVES,
    DEFAULT_RULE,
    TEMPERATURE,
    Against,
    AnyQuery,
    Rule,
    best_scales,
    mean_unit_feature,
    similarity_from_hidden,
)
from f3rm.language.text_encoder import TextEncoder, embed_phrases
from f3rm.language.text_map import TextMap, language_files, load_language
from f3rm.language.threshold import found_from

logger = logging.getLogger(__name__)

PROMPT_TEMPLATES = ("{}", "a {}", "a photo of a {}", "a close-up photo of a {}", "a {} in a room")
"""Sentences that a phrase may be put into; their embeddings are averaged."""

AS_IT_STANDS = ("{}",)

MOST_QUESTIONS = 255
"""Questions of one call: a picture of labels has a byte per pixel, and one value is for none."""


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
    """How scores are made: see :data:`f3rm.language.relevancy.Rule`. Without it ``scene``; plain
    cosines without negatives."""


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
    query: AnyQuery
    thresholds: Mapping[Expression, float] = field(default_factory=dict[Expression, float])
    unknown: str = ""
    rivals: tuple[str, ...] = ()
    rival_query: AnyQuery | None = None
    is_present: bool = False

    @property
    def compares(self) -> bool:
        """Whether scores are relevancies in [0, 1], not plain cosines."""
        return self.query.has_negatives

    @property
    def device(self) -> torch.device:
        """The device that hidden vectors must be on."""
        return self.query.prompts.device

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
        folder: The run's folder, which may have languages; None where there is none.

    Attributes:
        language: The language that one of the heads is asked in; None for their own text towers.
    """

    def __init__(
        self,
        heads: Mapping[str, Head],
        surface: Callable[[], Tensor] | None = None,
        folder: Path | None = None,
    ) -> None:
        self._own_heads, self._surface, self._folder = heads, surface, folder
        self._warned: set[str] = set()
        self.speak(None)

    def speak(self, language: StrPath | TextMap | None) -> None:
        """Chooses a language by its name or file; None for the heads' own text towers.

        Raises:
            TextMapError: If there is no such language, or it fits no head.
            BackboneUnavailableError: If its file is not readable.
        """
        if language is not None and not isinstance(language, TextMap):
            specs = {name: head.spec for name, head in self._own_heads.items()}
            files = {} if self._folder is None else language_files(self._folder, specs)
            language = load_language(language, files)
        self._heads = translated(self._own_heads, language)
        self.language = language
        self._means: dict[str, Tensor] = {}
        self._encoders: dict[str, TextEncoder] = {}

    def warn_of_unknown(self, question: Question) -> None:
        """Logs, once, that the text tower does not know words of a question."""
        if question.unknown and question.unknown not in self._warned:
            self._warned.add(question.unknown)
            logger.warning("%s", question.unknown)

    def asked(self, text: str | Question, **options: Unpack[QuestionOptions]) -> Question:
        """Returns a question with thresholds for its parts; see :meth:`ask` for words.

        Raises:
            F3rmError: As :meth:`ask` raises it.
        """
        if isinstance(text, Question):
            return text
        if not isinstance(cast("object", text), str):
            raise F3rmError(f"A question must be a phrase or from Scene.like, got {text!r}.")
        asked = self.ask(text, **options)
        if self._surface is None:
            return asked
        return asked.with_thresholds(partial(found_from, compares=True), self._surface)

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
        check_number("temperature", temperature, above=0)
        if isinstance(negatives, str):
            raise F3rmError(f"negatives must be a list of phrases, got {negatives!r}.")
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
        rule = rule or (DEFAULT_RULE if negatives and self._surface is not None else "lerf")
        heads, encoder = scales_of(self._heads, spec, head), self._encoder(spec.name)
        others = embed_phrases(encoder, negatives, templates) if negatives else None
        against = [self.against(rule, each.spec.name) for each in heads]

        def hidden_query(phrases: Sequence[str]) -> AnyQuery:
            prompts = embed_phrases(encoder, phrases, templates)
            scales = [
                query_of(each, prompts, others, temperature=temperature, **beside)
                for each, beside in zip(heads, against, strict=True)
            ]
            return best_scales(scales, self._surface)

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
            weight, language = self._heads[head].weight.detach(), language_of(self._heads[head])
            self._means[head] = mean_unit_feature(self._surface(), weight, language)
        return {"mean": self._means[head]}


class Askable:
    """What is asked in words, in the heads' own languages or in another one.

    Attributes:
        questioner: Turns the words into questions.
    """

    questioner: Questioner

    @property
    def language(self) -> TextMap | None:
        """The language that words are asked in; None for the heads' own text towers.

        It can be set to the name of a language of the run, or to the path of its file; see
        :mod:`f3rm.language.text_map`. Questions that were asked before keep theirs.
        """
        return self.questioner.language

    @language.setter
    def language(self, wanted: StrPath | TextMap | None) -> None:
        self.questioner.speak(wanted)

    def question(self, text: str | Question, **options: Unpack[QuestionOptions]) -> Question:
        """Parses a question and embeds its phrases; one that is embedded is returned as it is.

        Raises:
            LanguageError: If the field or the head has no text tower.
            ExpressionError: If the question cannot be parsed.
            F3rmError: If options cannot be used.
        """
        asked = self.questioner.asked(text, **options)
        self.questioner.warn_of_unknown(asked)  # its scores say nothing
        return asked


def questions_in(query: Query) -> list[str | Question]:
    """Returns the questions of a text with semicolons between them, or of a list.

    Raises:
        F3rmError: If there is none, there are too many, or one cannot be parsed.
    """
    asked: list[Any] = [query] if isinstance(query, Question) else []
    if not isinstance(query, Question):
        try:
            asked = [*(split_questions(query) if isinstance(query, str) else query)]
        except TypeError:
            asked = [query]
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
        elif not isinstance(question, Question):
            raise F3rmError(f"A query must be a phrase, or a list of these, got {query!r}.")
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
    phrases = [Phrase(f"{label} {number + 1}") for number in range(len(examples))]
    return Question(
        label=label,
        expression=Either(tuple(phrases)) if len(phrases) > 1 else phrases[0],
        query=query_of(head, examples, background[None], temperature=temperature),
        is_present=is_present,
    )


def all_scores(
    questions: Sequence[Question], hidden: Float[Tensor, "*batch hidden"]
) -> Float[Tensor, "*batch questions"]:
    """Scores hidden vectors against several questions."""
    return torch.stack([question.scores(hidden) for question in questions], dim=-1)
