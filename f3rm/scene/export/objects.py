"""The instances of a query as files: points, and oriented boxes."""

import json
import math
from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float, Int
from scipy.spatial import KDTree
from torch import Tensor

from f3rm.errors import StrPath, as_path
from f3rm.language.questions import Query, questions_in
from f3rm.scene.export.files import (
    CLOUD_SUFFIXES,
    ExportError,
    check_file,
    write_cloud,
    write_file,
)
from f3rm.scene.export.points import Look, Sampling, point_colours, scores_of, surface
from f3rm.scene.found import Found, Instance
from f3rm.scene.frames import FrameName
from f3rm.scene.scene import Scene

BOX_SUFFIXES = (".json",)
REACH = 1.5
"""A position within this many cells of an instance's point belongs to the instance."""


def found_instances(
    scene: Scene,
    query: Query,
    *,
    head: str | None,
    threshold: float | None,
    compete: bool,
    frame: FrameName,
) -> tuple[list[Found], list[Instance]]:
    """Finds the instances of all questions of a query, for files that cannot be empty.

    Raises:
        ExportError: If there are none; the message says why.
        F3rmError: If query, head or frame cannot be used.
    """
    answers = scene.find(
        questions_in(query), threshold=threshold, compete=compete, head=head, frame=frame
    )
    instances = [instance for found in answers for instance in found]
    if not instances:
        reasons = "; ".join(found.reason for found in answers)
        msg = f"Nothing to export: {reasons}. Use other words, or give a lower --threshold."
        raise ExportError(msg)
    return answers, instances


def export_object(
    scene: Scene,
    file: StrPath,
    sampling: Sampling,
    look: Look,
    *,
    query: Query,
    threshold: float | None = None,
    compete: bool = True,
) -> list[Found]:
    """Writes the points of a query's instances as PLY.

    Properties beside the colours: ``similarity``, the highest score of any question; ``question``
    and ``instance``, counted from 0; of a question the best instance is first.

    Args:
        scene: The scene.
        file: The file.
        sampling: Number, spacing and frame of the surface points to choose from.
        look: Their colours.
        query: The query.
        threshold: The least score of a matching point; None to choose it from the scene's scores.
        compete: Whether a place that matches several questions belongs to the best one only.

    Returns:
        The answer to each question.

    Raises:
        ExportError: If there are no instances, or the file cannot be written.
        F3rmError: If query, head or frame cannot be used.
    """
    path = check_file(as_path(file), CLOUD_SUFFIXES, what="an object's points")
    asked = [scene.question(each, head=look.head) for each in questions_in(query)]
    answers, instances = found_instances(
        scene,
        asked,
        head=look.head,
        threshold=threshold,
        compete=compete,
        frame=sampling.frame,
    )
    points = surface(scene, sampling)
    owner = nearest_instance(instances, points.positions)
    points = points.subset(torch.from_numpy(owner >= 0))
    scores = scores_of(points, asked)
    colours = point_colours(points, look.colour, scene.head(look.head), scores)
    numbers = np.repeat(np.arange(len(answers)), [len(found) for found in answers])
    scalars = {
        "similarity": scores.numpy(),
        "question": numbers[owner[owner >= 0]].astype(np.int32),
        "instance": owner[owner >= 0].astype(np.int32),
    }
    write_cloud(path, points.positions.numpy(), colours, scalars)
    return answers


def nearest_instance(
    instances: Sequence[Instance], positions: Float[Tensor, "points 3"], *, reach: float = REACH
) -> Int[np.ndarray, " points"]:
    """Returns the index of each position's instance, -1 for none.

    Args:
        instances: At least one.
        positions: Positions in the instances' frame.
        reach: Largest distance from an instance's point, in cells.
    """
    parts = [instance.points.double().numpy() for instance in instances]
    owners = np.repeat(np.arange(len(parts)), [len(part) for part in parts])
    _, nearest = KDTree(np.concatenate(parts)).query(
        positions.double().numpy(), distance_upper_bound=reach * instances[0].spacing
    )
    return np.append(owners, -1)[nearest]  # SciPy's index for "none" is the number of points


def export_boxes(
    scene: Scene,
    file: StrPath,
    *,
    query: Query,
    head: str | None = None,
    threshold: float | None = None,
    compete: bool = True,
    frame: FrameName = "dataset",
) -> list[Found]:
    """Writes an oriented box for every instance of every query as JSON, with the reason for none.

    Args:
        scene: The scene.
        file: The file.
        query: A list of queries, or one text with semicolons between them.
        head: The feature head to query; None for the first that has a text tower.
        threshold: The least score of a matching point; None to choose it from the scene's scores.
        compete: Whether a place that matches several queries belongs to the best one only.
        frame: The frame of the boxes.

    Returns:
        The instances of each query.

    Raises:
        ExportError: If the file's ending does not fit, or it cannot be written.
        F3rmError: If query, head or frame cannot be used.
    """
    path = check_file(as_path(file), BOX_SUFFIXES, what="boxes")
    answers = scene.find(
        questions_in(query), threshold=threshold, compete=compete, head=head, frame=frame
    )
    text = boxes_as_json(scene, answers, frame)
    write_file(path, lambda stream: stream.write(text.encode()))
    return answers


def boxes_as_json(scene: Scene, answers: Sequence[Found], frame: FrameName) -> str:
    """Returns answers of a scene as JSON: the frame, and of each the instances or the reason."""
    content = {
        "run": str(scene.run.config_path),
        "data": str(scene.run.data),
        "frame": frame,
        "metres_per_unit": metres_per_unit(scene, frame),
        "queries": [_to_dict(found) for found in answers],
    }
    return json.dumps(content, indent=2, allow_nan=False) + "\n"


def metres_per_unit(scene: Scene, frame: FrameName) -> float | None:
    """Returns the length of a frame's unit in metres; None where the dataset does not say."""
    if "metres" not in scene.frames.known:
        return None
    return scene.frames.get(frame).scene_per_unit / scene.frames.get("metres").scene_per_unit


def _to_dict(found: Found) -> dict[str, object]:
    return {
        "query": found.question,
        "threshold": found.threshold if math.isfinite(found.threshold) else None,  # JSON has no inf
        "best_score": found.best_score,
        "certainty": found.certainty,
        "reason": found.reason,
        "instances": [
            {
                **instance.to_dict(),
                "yaw": instance.box.yaw,
                "corners": instance.box.corners().tolist(),
            }
            for instance in found.instances
        ],
    }
