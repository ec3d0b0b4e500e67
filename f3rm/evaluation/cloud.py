"""The points of an evaluation's page: a scene's surface, what was asked and found, as JSON text.

``web/main.js`` draws them with three.js. Arrays are base64 of little-endian integers; 40,000 points
with five prompts are 2 MB.
"""

import base64
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int8, UInt8
from scipy.spatial import KDTree
from torch import Tensor
from torch.nn import functional

from f3rm.colours.palette import palette_of
from f3rm.colours.pca import pca_colours_from_hidden
from f3rm.evaluation.pictures import BOX_EDGES, HEAT
from f3rm.language.questions import Question
from f3rm.language.threshold import shown_certainty
from f3rm.scene.found import Found, Instance
from f3rm.scene.frames import FrameName
from f3rm.scene.scene import Scene

MAX_POINTS = 40_000
CHANNELS = 16
"""Principal components of the features by which the page tells what is like a clicked point."""

_SAMPLE = 1000
_BATCH = 4096
_FARTHEST_OWNER = 1.5
"""A point is part of an instance that has a point so many cells away."""


@dataclass(frozen=True)
class SceneAnswers:
    """What a scene answered to the prompts of a page.

    Attributes:
        questions: The prompts.
        found: Their instances and certainty.
        frame: The frame of the instances: metres where they are known.
        seconds: How long the answers took, those of loading and sampling included.
    """

    questions: tuple[Question, ...]
    found: tuple[Found, ...]
    frame: FrameName
    seconds: float

    @classmethod
    def of(cls, scene: Scene, prompts: Sequence[str], head: str | None) -> "SceneAnswers":
        """Asks a scene.

        Args:
            scene: The scene.
            prompts: The prompts; none where the field has no language.
            head: The head to ask; None chooses it.

        Raises:
            F3rmError: If a prompt cannot be asked.
        """
        started = time.perf_counter()
        frame: FrameName = "metres" if "metres" in scene.frames.known else "dataset"
        questions = tuple(scene.question(prompt, head=head) for prompt in prompts)
        found = tuple(scene.find(questions, frame=frame)) if questions else ()
        return cls(questions, found, frame, time.perf_counter() - started)

    @property
    def colours(self) -> list[list[int]]:
        """The colour of each prompt, RGB in [0, 255]."""
        return (palette_of([each.label for each in self.questions]) * 255).round().int().tolist()

    @property
    def verdicts(self) -> tuple[str, ...]:
        """What a legend says of each prompt: not found, or the score from which it matches."""
        return tuple(shown_certainty(each.certainty, each.threshold) for each in self.found)

    def instances(self) -> list[tuple[int, str, Instance]]:
        """Returns index of the prompt, name and instance of everything that was found."""
        return [
            (index, self._name(found, number, instance), instance)
            for index, found in enumerate(self.found)
            for number, instance in enumerate(found, start=1)
        ]

    def _name(self, found: Found, number: int, instance: Instance) -> str:
        size = " x ".join(f"{side:.2f}" for side in instance.extent)
        doubt = "" if found.certainty == "found" else f" ({found.certainty})"
        return f"{found.question} {number}{doubt}, {size} {self.unit}"

    @property
    def unit(self) -> str:
        """The unit of sizes."""
        return "m" if self.frame == "metres" else "units"


def cloud_json(scene: Scene, answers: SceneAnswers, head: str) -> str | None:
    """Returns the data of the points for ``web/main.js``; None where there is no surface.

    Args:
        scene: The scene.
        answers: Its answers.
        head: The head whose features tell what is alike.
    """
    cells = scene.cells
    if not len(cells):
        return None
    smoothed = [
        scene.surface.smoothed(question.scores(cells.hidden)) for question in answers.questions
    ]
    kept = torch.arange(len(cells))
    if len(cells) > MAX_POINTS:
        kept = torch.randperm(len(cells), generator=torch.Generator().manual_seed(0))[:MAX_POINTS]
    points, own = cells.subset(kept), scene.frames.get(answers.frame)
    positions = own.from_scene(points.positions.double()).numpy()
    module = scene.head(head)
    weight = module.weight.detach()
    hidden = points.hidden.to(weight)
    features = pca_colours_from_hidden(hidden, weight, module.pca)
    low, span = positions.min(axis=0), np.ptp(positions, axis=0) + 1e-9
    data = {
        "count": len(points),
        "low": low.tolist(),
        "span": span.tolist(),
        "positions": _packed(((positions - low) / span * 65535).round(), "<u2"),
        "colours": _packed(_bytes(points.colours), "u1"),
        "features": _packed(_bytes(features), "u1"),
        "vectors": _packed(reduced(hidden, weight), "i1"),
        "scores": [_packed(_bytes(each[kept]), "u1") for each in smoothed],
        "owners": _packed(owners(positions, answers), "u1"),
        "heat": HEAT.tolist(),
        **_described(answers),
        **_viewpoint(scene, positions, answers.frame),
    }
    return json.dumps(data).replace("<", "\\u003c")  # it is inside of a script element


def owners(
    positions: Float[np.ndarray, "points 3"], answers: SceneAnswers
) -> UInt8[np.ndarray, " points"]:
    """Returns which instance each point is part of, from 1 in the order of the answers; 0 for none.

    Args:
        positions: In the frame of the answers.
        answers: Which instances there are; beyond 255 none is told.
    """
    instances = [instance for _, _, instance in answers.instances()][:255]
    owner = np.zeros(len(positions), np.uint8)
    if instances:
        tree = KDTree(np.concatenate([each.points.double().numpy() for each in instances]))
        numbers = np.repeat(np.arange(len(instances)) + 1, [len(each.points) for each in instances])
        distances, nearest = tree.query(positions)
        near = distances <= _FARTHEST_OWNER * instances[0].spacing
        owner[near] = numbers[np.asarray(nearest)[near]]
    return owner


@torch.no_grad()
def reduced(
    hidden: Float[Tensor, "points hidden"], weight: Float[Tensor, "channels hidden"]
) -> Int8[np.ndarray, "points components"]:
    """Returns unit features without their mean, on their first principal components.

    The cosine of two rows is nearly that of the features without their mean.

    Args:
        hidden: Hidden vectors.
        weight: The head that maps them to features.
    """

    def features(hidden: Tensor) -> Tensor:
        return functional.normalize(hidden @ weight.T, dim=-1)

    sample = features(hidden[:: max(1, len(hidden) // _SAMPLE)])
    mean = sample.mean(dim=0)
    basis = torch.linalg.svd(sample - mean, full_matrices=False).Vh[:CHANNELS].T
    rows = torch.cat([(features(batch) - mean) @ basis for batch in hidden.split(_BATCH)])
    return (rows / rows.abs().amax().clamp_min(1e-9) * 127).round().char().cpu().numpy()


def _described(answers: SceneAnswers) -> dict[str, Any]:
    described = zip(
        answers.questions, answers.found, answers.verdicts, answers.colours, strict=True
    )
    return {
        "prompts": [
            {
                "text": question.label,
                "answer": found.verdict if found.reason else f"{question.label}: {verdict}",
                "colour": colour,
            }
            for question, found, verdict, colour in described
        ],
        "instances": [
            {
                "prompt": prompt,
                "label": name,
                "edges": instance.box.corners()[np.array(BOX_EDGES)].round(5).ravel().tolist(),
            }
            for prompt, name, instance in answers.instances()[:255]
        ],
    }


def _viewpoint(
    scene: Scene, positions: Float[np.ndarray, "points 3"], frame: FrameName
) -> dict[str, Any]:
    """Returns where the first training photograph was taken, and what its axis points at."""
    pose = scene.cameras(frame=frame).camera_to_worlds[0].double().numpy()
    eye, forward = pose[:, 3], -pose[:, 2]
    depths = (positions - eye) @ forward
    ahead = depths[depths > 0]
    target = eye + forward * (float(np.median(ahead)) if len(ahead) else 1.0)
    up = scene.frames.get(frame).up(is_level=frame == "metres")
    spacing = scene.surface.spacing / scene.frames.get(frame).scene_per_unit
    return {"eye": eye.tolist(), "target": target.tolist(), "up": up.tolist(), "spacing": spacing}


def _bytes(shares: Tensor) -> np.ndarray:
    return (shares.detach().float().cpu().clamp(0, 1) * 255).round().numpy()


def _packed(values: np.ndarray, kind: str) -> str:
    return base64.b64encode(values.astype(kind).tobytes()).decode("ascii")
