"""Questions to a scene as the page shows them: colours of its Gaussians, a legend, and boxes."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal, get_args

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from f3rm.colours.palette import coloured, composite, palette
from f3rm.colours.pca import pca_colours_from_hidden
from f3rm.errors import F3rmError
from f3rm.language.questions import Question, all_scores, questions_in
from f3rm.language.threshold import shown_certainty
from f3rm.scene.export.objects import metres_per_unit
from f3rm.scene.found import Found, Instance
from f3rm.scene.frames import FrameName
from f3rm.scene.scene import Scene
from f3rm.view.shown import PAGE, ShownSplat
from f3rm.viewer.elements import escaped
from f3rm.viewer.pictures import legend_entry

Colouring = Literal["photographs", "answer", "score", "PCA", "reliability"]

_BATCH = 1 << 14
"""Gaussians scored at a time: their temporary values stay in a processor's cache."""


@dataclass(frozen=True)
class ShownBox:
    """A found instance on the page.

    Attributes:
        corners: The corners of its box, in the order of ``OrientedBox.corners``, in the page's
            frame.
        label: Its name, number and size.
        colour: RGB in [0, 255].
    """

    corners: Float[np.ndarray, "8 3"]
    label: str
    colour: tuple[int, ...]


@dataclass(frozen=True)
class Answer:
    """The answer to one or several questions.

    Attributes:
        questions: The questions.
        scores: Their scores of each Gaussian, on the CPU.
        thresholds: Least score of a match, by question; infinity where nothing matches.
        found: The instances and the certainty, by question; empty until they are searched for.
    """

    questions: tuple[Question, ...]
    scores: Float[Tensor, "gaussians questions"]
    thresholds: tuple[float, ...]
    found: tuple[Found, ...] = ()

    @property
    def colours(self) -> list[tuple[int, ...]]:
        """The colour of each question, RGB in [0, 255]."""
        return [
            tuple(colour) for colour in (palette(len(self.questions)) * 255).round().int().tolist()
        ]

    @property
    def legend(self) -> str:
        """Markdown: which colour is which question, how certain each answer is, and why."""
        certainties = [""] * len(self.questions)
        if self.found:
            certainties = [shown_certainty(each.certainty, each.threshold) for each in self.found]
        lines = [
            legend_entry(number, question.label, shown, colour)
            for number, (question, shown, colour) in enumerate(
                zip(self.questions, certainties, self.colours, strict=True), start=1
            )
        ]
        reasons = [escaped(each.verdict) for each in self.found if each.reason]
        return "  \n".join([*lines, *reasons])


class Asking:
    """Asks one scene, and colours its Gaussians.

    Args:
        scene: The scene.
        splat: Its Gaussians.
    """

    def __init__(self, scene: Scene, splat: ShownSplat) -> None:
        self.scene, self.splat = scene, splat
        self.frame: FrameName = "metres" if "metres" in scene.frames.known else "dataset"
        self._unit = "m" if metres_per_unit(scene, self.frame) == 1 else "units"
        self._featureless = (splat.hidden == 0).all(dim=1).cpu()
        self._points = 0

    @property
    def heads(self) -> tuple[str, ...]:
        """Names of the feature heads, those that have a text tower first."""
        return tuple(
            sorted(self.scene.heads, key=lambda name: not self.scene.head(name).spec.has_text)
        )

    @property
    def colourings(self) -> tuple[Colouring, ...]:
        """What colours can mean; a field has no reliability."""
        return tuple(
            each for each in get_args(Colouring) if each != "reliability" or self.splat.reliability
        )

    def ask(self, text: str, head: str) -> Answer:
        """Answers questions in words, with semicolons between several.

        Raises:
            LanguageError: If the head has no text tower.
            F3rmError: If they cannot be parsed or embedded.
        """
        return self._answer([self.scene.question(each, head=head) for each in questions_in(text)])

    def ask_like(self, origin: Sequence[float], direction: Sequence[float], head: str) -> Answer:
        """Answers what is like the place that a ray of the page hits.

        Args:
            origin: Where the ray starts, in the page's frame.
            direction: Where it goes.
            head: The feature head.

        Raises:
            F3rmError: If it hits nothing, or nothing that a photograph shows.
        """
        point = self.splat.surface_at(origin, direction)
        if point is None:
            raise F3rmError("There is no surface where you clicked. Click on the splat.")
        asked = self.scene.like(
            point[None], name=f"point {self._points + 1}", head=head, frame="nerfstudio"
        )
        self._points += 1
        return self._answer([asked])

    @torch.no_grad()
    def _answer(self, questions: Sequence[Question]) -> Answer:
        scores = torch.cat([
            all_scores(questions, batch.to(questions[0].device)).float().cpu()
            for batch in self.splat.hidden.split(_BATCH)
        ])  # fmt: skip
        scores[self._featureless] = 0
        thresholds = tuple(self.scene.threshold(question) for question in questions)
        return Answer(tuple(questions), scores, thresholds)

    def find(self, answer: Answer) -> Answer:
        """Returns an answer with its instances, its certainty and its final thresholds."""
        found = self.scene.find(answer.questions, frame=self.frame)
        thresholds = tuple(each.threshold for each in found)
        return replace(answer, found=tuple(found), thresholds=thresholds)

    @torch.no_grad()
    def colours(
        self, colouring: Colouring, head: str, answer: Answer | None
    ) -> Float[np.ndarray, "gaussians 3"]:
        """Returns the Gaussians' colours, RGB in [0, 1].

        Args:
            colouring: What they mean; without an answer its colours are those of the photographs.
            head: The head of PCA and reliability.
            answer: What is shown by ``answer`` and ``score``.
        """
        if colouring == "PCA":
            module = self.scene.head(head)
            weight = module.weight.detach()
            shown = pca_colours_from_hidden(self.splat.hidden.to(weight), weight, module.pca)
        elif colouring == "reliability":
            shown = coloured(self.splat.reliability[head], 0.0, 1.0)
        elif answer is None or colouring == "photographs":
            shown = self.splat.colours
        elif colouring == "score":
            shown = coloured(answer.scores.amax(dim=1), 0.0, 1.0)
        else:
            shown = composite(self.splat.colours, answer.scores, answer.thresholds)
        return shown.float().cpu().numpy()

    def boxes(self, answer: Answer) -> list[ShownBox]:
        """Returns the boxes of an answer's instances, named and with their size."""
        return [
            self._box(found, number, instance, colour)
            for found, colour in zip(answer.found, answer.colours, strict=False)
            for number, instance in enumerate(found, start=1)
        ]

    def _box(
        self, found: Found, number: int, instance: Instance, colour: tuple[int, ...]
    ) -> ShownBox:
        own = self.scene.frames.get(instance.frame)
        corners = PAGE.from_scene(own.to_scene(torch.from_numpy(instance.box.corners())))
        size = " x ".join(f"{side:.2f}" for side in instance.extent)
        doubt = "" if found.certainty == "found" else f" ({found.certainty})"
        label = f"{found.question} {number}{doubt}: {size} {self._unit}"
        return ShownBox(corners.numpy(), label, colour)
