"""What answers a query, as points and as oriented boxes."""

import json
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from scipy.spatial import KDTree
from torch import Tensor

from f3rm.errors import StrPath, as_path
from f3rm.language.questions import questions_in
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
from f3rm.scene.surface import SurfacePoints
from f3rm.store.progress import track

BOX_SUFFIXES = (".json",)
REACH = 1.5
"""A place belongs to an instance if it lies so many cells from one of its points."""


def found_instances(
    scene: Scene, query: str, *, head: str | None, threshold: float | None, frame: FrameName
) -> Found:
    """Finds what answers a query, for files that cannot be empty.

    Raises:
        ExportError: If there is nothing; the message says why.
        F3rmError: If query, head or frame cannot be used.
    """
    found = scene.find(query, threshold=threshold, head=head, frame=frame)
    if not found.instances:
        msg = (
            f"export: the scene must show what is asked, but {query!r} has no answer: "
            f"{found.reason} Ask otherwise, or give a lower --threshold."
        )
        raise ExportError(msg)
    return found


def export_object(
    scene: Scene,
    file: StrPath,
    sampling: Sampling,
    look: Look,
    *,
    query: str,
    threshold: float | None = None,
) -> Found:
    """Writes the points that answer a query as PLY.

    Properties beside the colours: ``similarity``, the score, and ``instance``, counted from 0 with
    the best first.

    Args:
        scene: The scene.
        file: Where to.
        sampling: From which points.
        look: Their colours.
        query: What is asked.
        threshold: From which score on a place answers; None to choose it by the scene.

    Returns:
        What was found.

    Raises:
        ExportError: If there is nothing, or the file cannot be written.
        F3rmError: If query, head or frame cannot be used.
    """
    file = as_path(file)
    place = check_file(file, CLOUD_SUFFIXES, what="an object's points")
    found = found_instances(scene, query, head=look.head, threshold=threshold, frame=sampling.frame)
    every = surface(scene, sampling)
    owner = nearest_instance(found.instances, every.positions)
    mine = torch.from_numpy(owner >= 0)
    points = SurfacePoints(
        every.positions[mine], every.colours[mine], every.hidden[mine], every.counts[mine]
    )
    scores = scores_of(points, scene.question(found.question, head=look.head))
    colours = point_colours(points, look.colour, scene.head(look.head), scores)
    scalars = {"similarity": scores.numpy(), "instance": owner[owner >= 0].astype(np.int32)}
    write_cloud(place, points.positions.numpy(), colours, scalars)
    return found


def nearest_instance(
    instances: Sequence[Instance], positions: Float[Tensor, "points 3"], *, reach: float = REACH
) -> Int[np.ndarray, " points"]:
    """Returns which instance each position belongs to, -1 for none.

    Args:
        instances: At least one.
        positions: Positions in their frame.
        reach: How many cells from a point of an instance still belong to it.
    """
    parts = [instance.points.double().numpy() for instance in instances]
    owners = np.repeat(np.arange(len(parts)), [len(part) for part in parts])
    _, nearest = KDTree(np.concatenate(parts)).query(
        positions.double().numpy(), distance_upper_bound=reach * instances[0].spacing
    )
    return np.append(owners, -1)[nearest]


def export_boxes(
    scene: Scene,
    file: StrPath,
    *,
    query: str | Sequence[str],
    head: str | None = None,
    threshold: float | None = None,
    frame: FrameName = "dataset",
    show_progress: bool = False,
) -> list[Found]:
    """Writes an oriented box for every instance of every query as JSON; no instance is an answer.

    Args:
        scene: The scene.
        file: Where to.
        query: What is asked: a list of questions, or one text with semicolons between them.
        head: The feature head that is asked; None for the first that has a text tower.
        threshold: From which score on a place answers; None to choose it by the scene.
        frame: The frame of the boxes.
        show_progress: Whether a bar counts queries.

    Returns:
        What was found, by query.

    Raises:
        ExportError: If the file's ending does not fit, or it cannot be written.
        F3rmError: If query, head or frame cannot be used.
    """
    file = as_path(file)
    place = check_file(file, BOX_SUFFIXES, what="boxes")
    asked = questions_in(query)
    bar = track(asked, total=len(asked), label="objects", show=show_progress, unit="queries")
    answers = [scene.find(text, threshold=threshold, head=head, frame=frame) for text in bar]
    content = {
        "run": str(scene.run.config_path),
        "data": str(scene.run.data),
        "frame": frame,
        "metres_per_unit": metres_per_unit(scene, frame),
        "queries": [_plain(found) for found in answers],
    }
    text = json.dumps(content, indent=2, allow_nan=False) + "\n"
    write_file(place, lambda stream: stream.write(text.encode()))
    return answers


def metres_per_unit(scene: Scene, frame: FrameName) -> float | None:
    """Returns the length of a frame's unit in metres; None where the dataset does not say."""
    if "metres" not in scene.frames.known:
        return None
    return scene.frames.get(frame).scene_per_unit / scene.frames.get("metres").scene_per_unit


def _plain(found: Found) -> dict[str, Any]:
    return {
        "query": found.question,
        "threshold": found.threshold if math.isfinite(found.threshold) else None,
        "best_score": found.best_score,
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
