"""``--query`` and ``--like``: what a command asks a scene, in words or by examples."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from typing_extensions import Unpack

from f3rm.errors import F3rmError
from f3rm.language.active_query import shortened
from f3rm.language.questions import Question, QuestionOptions, questions_in
from f3rm.language.relevancy import Rule
from f3rm.scene.examples import Like
from f3rm.scene.frames import FrameName
from f3rm.scene.scene import Scene


def how_asked(head: str | None, rule: Rule | None, negatives: str | None = None) -> QuestionOptions:
    """Returns the options of a command as those of questions, without what is the default.

    Args:
        head: The text of ``--head``.
        rule: That of ``--rule``.
        negatives: That of ``--negatives``, phrases with semicolons.

    Raises:
        F3rmError: If a negative cannot be read.
    """
    options = QuestionOptions(head=head)
    if rule is not None:
        options["rule"] = rule
    if negatives is not None:
        options["negatives"] = [str(phrase) for phrase in questions_in(negatives)]
    return options


@dataclass(frozen=True)
class Asked:
    """What a command asks, checked as far as it can be without the run.

    Attributes:
        words: Questions in words.
        examples: Examples in place of words, by their label.
    """

    words: tuple[str, ...]
    examples: Mapping[str, Sequence[Like]]

    @classmethod
    def read(cls, query: str | None, like: str) -> "Asked":
        """Reads the two options.

        Args:
            query: The text of ``--query``; None or spaces for none.
            like: The text of ``--like``: see :func:`read_examples`.

        Raises:
            F3rmError: If both are given, or one cannot be read.
        """
        examples = read_examples(like)
        if query is None or not query.strip():
            return cls((), examples)
        if examples:
            msg = "--query and --like were both given. Ask in words, or by examples."
            raise F3rmError(msg)
        return cls(tuple(str(question) for question in questions_in(query)), {})

    def __bool__(self) -> bool:
        return bool(self.words or self.examples)

    def questions(
        self, scene: Scene, frame: FrameName = "dataset", **options: Unpack[QuestionOptions]
    ) -> list[Question]:
        """Returns the questions to a scene.

        Args:
            scene: The scene.
            frame: The frame of points among the examples.
            **options: How words are asked; of examples the head.

        Raises:
            F3rmError: If head, view, image or point cannot be used.
        """
        head = options.get("head")
        for name in ("negatives", "rule"):
            if self.examples and name in options:
                raise F3rmError(f"--{name} is how words are asked; leave it out of --like.")
        likes = [
            scene.like(*examples, name=label, head=head, frame=frame)
            for label, examples in self.examples.items()
        ]
        return likes or [scene.question(text, **options) for text in self.words]


def read_examples(text: str) -> dict[str, list[Like]]:
    """Reads examples with semicolons between them: ``fox = 0001.jpg@300,200; logo.png``.

    Each is ``VIEW@X,Y``, a pixel of a photograph; ``FILE``, an image; either with
    ``@LEFT,TOP,RIGHT,BOTTOM``, a part of it; or ``@X,Y,Z``, a point. ``NAME =`` labels it; examples
    of one label are one question.

    Returns:
        The examples by label.

    Raises:
        F3rmError: If one cannot be read, or an image does not exist.
    """
    found: dict[str, list[Like]] = {}
    pieces = [piece.strip() for piece in text.split(";") if piece.strip()]
    questions_in(["example"] * max(1, len(pieces)))  # no more than questions in words
    for piece in pieces:
        name, equals, place = piece.partition("=")
        label, place = (name.strip(), place.strip()) if equals else ("", piece)
        found.setdefault(label or shortened(place), []).append(_example(place))
    return found


def _example(text: str) -> Like:
    place, at, typed = text.rpartition("@") if "@" in text else (text, "", "")
    try:
        numbers = [float(word) for word in typed.replace(",", " ").split()]
    except ValueError:
        numbers = []
    if len(numbers) == 2 and place:
        return place, numbers
    if len(numbers) == 3 and not place:
        return [numbers]
    if at and len(numbers) != 4:
        msg = (
            "--like must be VIEW@X,Y, FILE, FILE@LEFT,TOP,RIGHT,BOTTOM or @X,Y,Z, with semicolons "
            f"between several, got {shortened(text)!r}."
        )
        raise F3rmError(msg)
    if not numbers and not os.path.isfile(place):  # noqa: PTH113 - False, not an error, for any text
        msg = f"--like: there is no image {shortened(place)!r}. A pixel of a view is VIEW@X,Y."
        raise F3rmError(msg)
    if not numbers:
        return place
    left, top, right, bottom = numbers
    if not (left < right and top < bottom):
        msg = f"--like: a crop needs left < right and top < bottom, got {shortened(text)!r}."
        raise F3rmError(msg)
    return place, numbers
