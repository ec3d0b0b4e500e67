"""What a field of real features finds in held-out photographs, beside its 2D teacher.

Photographs have annotated boxes, no masks: an answer is right where its best pixel is in the box,
and an instance or a label map is compared by the box around it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional

import f3rm
from f3rm.colours.palette import best_query_index
from f3rm.errors import HeadSpec
from f3rm.evaluation.metrics import is_localised
from f3rm.evaluation.predictions import field_scores, teacher_scores
from f3rm.language.questions import Question, all_scores, question_like
from f3rm.language.relevancy import CANONICAL_NEGATIVES, make_query, to_hidden
from f3rm.language.text_encoder import TextEncoder
from f3rm.language.threshold import RELEVANCY_FLOOR
from f3rm.scene.found import Found
from f3rm.scene.run_loading import LoadedRun
from f3rm.scene.scene import Scene
from f3rm.store.reader import FeatureStore
from tools.real.fox import Box

DOWNSCALE = 2
"""Fields are rendered at this part of the photographs' size; scores are interpolated."""
FOUND_IOU = 0.5

Scores = Float[np.ndarray, "height width"]


@dataclass(frozen=True)
class Answer:
    """The answer to a phrase in one held-out photograph.

    Attributes:
        view: The photograph's ``file_path``.
        phrase: The phrase.
        box: The annotated box.
        field: The field's relevancy.
        teacher: The 2D teacher's.
    """

    view: str
    phrase: str
    box: Box
    field: Scores
    teacher: Scores

    def hits(self) -> tuple[bool, bool]:
        """Whether the best pixel of field and teacher is in the box."""
        region = box_mask(self.box, self.field.shape)
        return is_localised(self.field, region), is_localised(self.teacher, region)


@dataclass(frozen=True)
class Projection:
    """A found instance in one held-out photograph.

    Attributes:
        view: The photograph's ``file_path``.
        mask: The pixels that show it.
        iou: IoU of the box around these with the annotated one.
    """

    view: str
    mask: Bool[np.ndarray, "height width"]
    iou: float


@dataclass(frozen=True)
class Transfer:
    """Labels carried from two clicks into another photograph.

    Attributes:
        view: The photograph's ``file_path``.
        field: The pixels that the field labels as the phrase.
        teacher: Those of the 2D teacher.
        ious: IoU of the box around the largest piece with the annotated one; field and teacher.
    """

    view: str
    field: Bool[np.ndarray, "height width"]
    teacher: Bool[np.ndarray, "height width"]
    ious: tuple[float, float]


def box_mask(box: Box, size: Sequence[int]) -> Bool[np.ndarray, "height width"]:
    """Returns the pixels inside a box."""
    mask = np.zeros(size, dtype=bool)
    mask[box[1] : box[3], box[0] : box[2]] = True
    return mask


def box_around(mask: Bool[np.ndarray, "height width"]) -> Box | None:
    """Returns the box around the largest connected piece of a mask; None where it is empty."""
    count, _, stats, _ = cv2.connectedComponentsWithStats(mask.astype(np.uint8))
    if count < 2:
        return None
    x, y, width, height, _ = stats[1 + int(stats[1:, cv2.CC_STAT_AREA].argmax())].tolist()
    return x, y, x + width, y + height


def overlap(first: Box | None, second: Box) -> float:
    """Returns the IoU of two boxes; 0 where there is none."""
    if first is None:
        return 0.0
    width = min(first[2], second[2]) - max(first[0], second[0])
    height = min(first[3], second[3]) - max(first[1], second[1])
    shared = max(width, 0) * max(height, 0)
    areas = [(box[2] - box[0]) * (box[3] - box[1]) for box in (first, second)]
    return shared / (sum(areas) - shared)


class HeldOut:
    """Annotated photographs that a run holds out, rendered once.

    Args:
        config: The run's ``config.yml``.
        boxes: Boxes by ``file_path`` and phrase.
    """

    def __init__(self, config: Path, boxes: Mapping[str, Mapping[str, Box]]) -> None:
        self.scene: Scene = f3rm.load(config)
        self.boxes = {view: boxes[view] for view in self.scene.views("eval") if view in boxes}
        self.head = self.scene.head()
        assert isinstance(self.scene.run, LoadedRun)  # noqa: S101 - narrows the type
        self.store: FeatureStore = self.scene.run.stores[self.head.spec.name]
        cameras, names = self.scene.cameras("eval"), self.scene.views("eval")
        self.cameras = {
            view: cameras[names.index(view) : names.index(view) + 1] for view in self.boxes
        }
        self.sizes = {v: (int(c.height), int(c.width)) for v, c in self.cameras.items()}
        self.hidden: dict[str, Tensor] = {}
        self.renders: dict[str, Tensor] = {}
        for view, camera in self.cameras.items():
            camera.rescale_output_resolution(1 / DOWNSCALE)
            rendered = self.scene.render(camera, ("hidden", "rgb"))
            self.hidden[view], self.renders[view] = rendered["hidden"], rendered["rgb"]

    def answers(self) -> list[Answer]:
        """Scores every annotated phrase in the photographs that show it."""
        weight = self.head.weight.detach()
        encoder = TextEncoder(self.head.spec.backbone)
        negatives = encoder.encode(CANONICAL_NEGATIVES).to(weight)
        found: list[Answer] = []
        for view, boxes in self.boxes.items():
            query = make_query(encoder.encode(list(boxes)).to(weight), negatives)
            field = field_scores(self.hidden[view], to_hidden(query, weight), self.sizes[view])
            teacher = teacher_scores(self.store, self.store.index(view), query)
            for number, (phrase, box) in enumerate(boxes.items()):
                found.append(Answer(view, phrase, box, field[number], teacher[number]))
        return found

    def projections(self, found: Found, phrase: str) -> list[Projection]:
        """Projects the best instance into the photographs that show the phrase."""
        shown: list[Projection] = []
        for view, boxes in self.boxes.items():
            if phrase in boxes and len(found):
                mask = self.scene.mask(found[0], self.cameras[view]).numpy()
                mask = resized(mask, self.sizes[view])
                shown.append(Projection(view, mask, overlap(box_around(mask), boxes[phrase])))
        return shown

    def transfers(self, phrase: str) -> list[Transfer]:
        """Carries two clicks into all other photographs, as ``f3rm label`` does.

        The clicks are in the first photograph that shows the phrase: at the centre of its box, and
        at the centre of the largest disc outside of all boxes.
        """
        source = next(view for view, boxes in self.boxes.items() if phrase in boxes)
        clicks = two_clicks(self.boxes[source], phrase, self.sizes[source])
        labels = [self.scene.like((source, click)) for click in clicks]
        index = torch.full((2,), self.store.index(source))
        taught = self.store.gather(index, torch.tensor(clicks).float(), mode="bilinear").float()
        head = TeacherHead(self.head.spec, torch.eye(taught.shape[1]))
        mean = self.head.pca_mean.cpu()
        rivals = [question_like("", one[None], head, mean, is_present=True) for one in taught]
        carried: list[Transfer] = []
        for view, boxes in self.boxes.items():
            if view == source or phrase not in boxes:
                continue
            size = self.sizes[view]
            cells = self.store.feature_map(self.store.index(view)).float()
            masks = (
                resized(labelled(labels, self.hidden[view]) == 0, size),
                labelled(rivals, cells, size) == 0,
            )
            ious = [overlap(box_around(mask), boxes[phrase]) for mask in masks]
            carried.append(Transfer(view, *masks, (ious[0], ious[1])))
        return carried


def two_clicks(
    boxes: Mapping[str, Box], phrase: str, size: tuple[int, int]
) -> tuple[tuple[int, int], tuple[int, int]]:
    """Returns x, y of a click on a phrase and of one on the background."""
    x0, y0, x1, y1 = boxes[phrase]
    free = np.pad(np.ones(size, np.uint8), 1)
    for box in boxes.values():
        free[1:-1, 1:-1][box_mask(box, size)] = 0
    distance = cv2.distanceTransform(free, cv2.DIST_L2, 5)[1:-1, 1:-1]
    row, col = np.unravel_index(int(distance.argmax()), size)
    return ((x0 + x1) // 2, (y0 + y1) // 2), (int(col), int(row))


@dataclass(frozen=True)
class TeacherHead:
    """The head of features that are not composited from hidden vectors: its weight is 1."""

    spec: HeadSpec
    weight: Float[Tensor, "channels channels"]


def labelled(
    questions: Sequence[Question],
    hidden: Float[Tensor, "rows cols hidden"],
    size: tuple[int, int] | None = None,
) -> Int[np.ndarray, "height width"]:
    """Returns the best of some examples at each place, or -1; another size is interpolated."""
    scores = all_scores(questions, hidden.to(questions[0].device))
    if size is not None:
        scores = functional.interpolate(scores.permute(2, 0, 1)[None], size, mode="bilinear")[0]
        scores = scores.permute(1, 2, 0)
    return best_query_index(scores, (RELEVANCY_FLOOR,) * len(questions)).cpu().numpy()


def resized(
    mask: Bool[np.ndarray, "rows cols"], size: tuple[int, int]
) -> Bool[np.ndarray, "height width"]:
    """Returns a mask at a photograph's size."""
    return cv2.resize(mask.astype(np.uint8), size[::-1], interpolation=cv2.INTER_NEAREST) > 0
