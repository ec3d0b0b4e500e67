"""The query state of one model: text and image encoders, embedded words, examples.

Knows no viewer element. Values are replaced as a whole, so that a render that reads while the
worker writes sees the old value or the new one.
"""

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from f3rm.errors import BackboneRef, F3rmError, HeadSpec
from f3rm.language.active_query import (
    ActiveQuery,
    DisplaySettings,
    Example,
    Words,
    active_query,
    shortened,
    unit,
)
from f3rm.language.image_encoder import ImageEncoder, parse_crop
from f3rm.language.known_words import unknown_reason, unknown_words
from f3rm.language.text_encoder import QueryText, TextEncoder
from f3rm.language.text_map import TextMap, TextMapError, head_of_language

logger = logging.getLogger(__name__)

TROUBLE = (F3rmError, OSError, RuntimeError, ValueError)
"""Errors of encoding, rendering and files; torch's lack of memory is a RuntimeError."""


@dataclass(frozen=True)
class _Answer:
    """Typed words with their embeddings, or with the reason why there are none."""

    head: str
    text: QueryText
    words: Words | None
    status: str


class QueryState:
    """The query of one model.

    Attributes:
        specs: The heads by name.
        examples: Points and images.
    """

    def __init__(self) -> None:
        self.specs: dict[str, HeadSpec] = {}
        self.examples: tuple[Example, ...] = ()
        self._text_encoders: dict[str, TextEncoder] = {}
        self._languages: dict[str, tuple[str, TextMap]] = {}
        self._scales: dict[str, tuple[str, ...]] = {}
        self._image_encoders: dict[str, ImageEncoder] = {}
        self._answer: _Answer | None = None

    def set_heads(
        self, specs: Sequence[HeadSpec], make_encoder: Callable[..., TextEncoder]
    ) -> list[str]:
        """Sets the heads; where they are the same as before, encoders are kept.

        Args:
            specs: The heads.
            make_encoder: Builds a text encoder for a backbone.

        Returns:
            Their names, those with language first.
        """
        if tuple(self.specs.values()) != tuple(specs):
            self.specs = {spec.name: spec for spec in specs}
            self._text_encoders = {s.name: make_encoder(s.backbone) for s in specs if s.has_text}
            self._scales = _scales(specs)
            together = {
                choice: make_encoder(self.specs[names[0]].backbone)
                for choice, names in self._scales.items()
            }
            self._text_encoders = {**together, **self._text_encoders}
            self._image_encoders = {spec.name: ImageEncoder(spec) for spec in specs}
            self._languages = {}
            self._answer = None
        return self._choices

    def set_languages(
        self, languages: Sequence[TextMap], make_encoder: Callable[..., TextEncoder]
    ) -> list[str]:
        """Offers heads in other languages than their own, as choices beside the heads.

        Args:
            languages: The languages of the run; those that fit no head are left out.
            make_encoder: Builds a text encoder for a backbone.

        Returns:
            All choices, those with language first.
        """
        for language in languages:
            try:
                head = head_of_language(language, self.specs)
            except TextMapError as error:
                logger.warning("%s", error)
                continue
            choice = f"{head} in {language.name}"
            self._languages[choice] = (head, language)
            self._text_encoders[choice] = make_encoder(language.text)
        return self._choices

    @property
    def _choices(self) -> list[str]:
        return [
            *self._text_encoders,
            *(name for name in self.specs if name not in self._text_encoders),
        ]

    def head_of(self, choice: str) -> str:
        """Returns the head of a choice: of several scales the first, which answers examples."""
        if choice in self._languages:
            return self._languages[choice][0]
        return self._scales.get(choice, (choice,))[0]

    def active_query(
        self, head: str, mean: Tensor | None, settings: DisplaySettings, *, is_negative: bool
    ) -> ActiveQuery | None:
        """Returns the query of a head; None where nothing is asked.

        Args:
            head: The head's name, or a head in a language, or several scales.
            mean: The mean of all unit features; None where it is not known.
            settings: How scores are computed and shown.
            is_negative: Whether the mean is a negative of every example.
        """
        choice, head = head, self.head_of(head)
        spec, answer = self.specs.get(head), self._answer
        if spec is None:
            return None
        fitting = [
            example
            for example in self.examples
            if head in example.features and len(example.features[head]) == spec.channels
        ]
        words = answer.words if answer is not None and answer.head == choice else None
        mean = None if mean is None else mean.detach().float().cpu()
        scales = self._scales.get(choice, ())
        return active_query(head, words, fitting, mean, settings, scales, is_negative=is_negative)

    def encode(self, head: str, text: QueryText, say: Callable[[str], None]) -> str:
        """Embeds typed words for a head; never raises.

        Args:
            head: The head's name, or a head in a language, or several scales.
            text: The words; the last ones are not embedded again.
            say: Receives a status before slow work.

        Returns:
            The status to show.
        """
        if self._answer is None or (self._answer.head, self._answer.text) != (head, text):
            try:
                words = self._embed(head, text, say)
                self._answer = _Answer(head, text, words, self._describe(head, text, words))
            except TROUBLE as error:
                logger.warning("The query %r cannot be answered: %s", text.positives, error)
                self._answer = _Answer(head, text, None, str(error))
        return self._answer.status or self._describe_examples()

    def _embed(self, head: str, text: QueryText, say: Callable[[str], None]) -> Words | None:
        positives, negatives = text.phrases
        encoder = self._text_encoders.get(head)
        if not positives or encoder is None:
            return None
        say("Encoding ..." if encoder.is_loaded else "Loading the text encoder ...")
        embeddings = encoder.encode([*positives, *negatives])
        count, known = len(positives), encoder.known_words()
        are_known = tuple(not unknown_words([phrase], known) for phrase in positives)
        text_map = self._languages[head][1] if head in self._languages else None
        prompts, others = embeddings.split((count, len(negatives)))
        calibration = encoder.calibration()
        return Words(text, tuple(positives), prompts, others, are_known, text_map, calibration)

    def _describe(self, head: str, text: QueryText, words: Words | None) -> str:
        if words is not None:
            left_out = f" (without {text.num_left_out} more)" if text.num_left_out else ""
            shown = f"Showing: {shortened(', '.join(words.labels))}{left_out}"
            known = self._text_encoders[head].known_words()
            unknown = unknown_reason(head.upper(), words.labels, known)
            return f"{unknown}. {shown}" if unknown else shown
        if not text.phrases[0] or head in self._text_encoders:
            return ""
        others = f", or ask the features {', '.join(self._text_encoders)}"
        return (
            f"The features {head!r} have no language: click a point in the view"
            f"{others if self._text_encoders else ''}."
        )

    def _describe_examples(self) -> str:
        labels = ", ".join(example.label for example in self.examples if example.is_positive)
        return f"Showing: {shortened(labels)}" if labels else ""

    def add_point(self, features: Mapping[str, Tensor], *, is_positive: bool) -> str:
        """Adds a point of the scene as an example; returns its label.

        Args:
            features: Its feature by head.
            is_positive: Whether it is searched for; if not, it is a negative.
        """
        number = sum(example.label.startswith("point ") for example in self.examples) + 1
        label = f"point {number}"
        self._add(label, features, is_positive=is_positive)
        return label

    def add_image(self, head: str, path: Path, crop: str, *, is_positive: bool) -> str:
        """Adds an image as an example for one head; returns its label.

        Args:
            head: The head's name.
            path: The image file.
            crop: Left, top, right and bottom in pixels; empty for the whole image.
            is_positive: Whether it is searched for; if not, it is a negative.

        Raises:
            F3rmError: If there is no such head, or image or encoder cannot be used.
        """
        if head not in self._image_encoders:
            msg = f"The field has no features {head!r}; it has {', '.join(self.specs) or 'none'}."
            raise F3rmError(msg)
        feature = self._image_encoders[head].encode(path, parse_crop(crop))
        self._add(path.name, {head: feature}, is_positive=is_positive)
        return path.name

    def _add(self, label: str, features: Mapping[str, Tensor], *, is_positive: bool) -> None:
        units = {name: unit(feature) for name, feature in features.items()}
        self.examples = (*self.examples, Example(label, is_positive, units))


def _scales(specs: Sequence[HeadSpec]) -> dict[str, tuple[str, ...]]:
    """Returns the names of heads that distil one model with texts at several scales, by choice."""
    models: dict[BackboneRef, list[str]] = {}
    for spec in specs:
        if spec.has_text:
            models.setdefault(spec.backbone, []).append(spec.name)
    return {f"best of {', '.join(n)}": tuple(n) for n in models.values() if len(n) > 1}
