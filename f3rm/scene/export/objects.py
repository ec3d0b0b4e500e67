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
from f3rm.store.progress import track

BOX_SUFFIXES = (".json",)
REACH = 1.5
"""A position within this many cells of an instance's point belongs to the instance."""


def found_instances(
    scene: Scene, query: str, *, head: str | None, threshold: float | None, frame: FrameName
) -> Found:
    """Finds the instances of a query, for files that cannot be empty.

    Raises:
        ExportError: If there are none; the message says why.
        F3rmError: If query, head or frame cannot be used.
    """
    found = scene.find(query, threshold=threshold, head=head, frame=frame)
    if not found.instances:
        msg = f"Nothing to export: {found.reason}. Use other words, or give a lower --threshold."
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
    """Writes the points of a query's instances as PLY.

    Properties beside the colours: ``similarity``, the score, and ``instance``, counted from 0 with
    the best first.

    Args:
        scene: The scene.
        file: The file.
        sampling: Number, spacing and frame of the surface points to choose from.
        look: Their colours.
        query: The query.
        threshold: The least score of a matching point; None to choose it from the scene's scores.

    Returns:
        The instances.

    Raises:
        ExportError: If there are none, or the file cannot be written.
        F3rmError: If query, head or frame cannot be used.
    """
    path = check_file(as_path(file), CLOUD_SUFFIXES, what="an object's points")
    found = found_instances(scene, query, head=look.head, threshold=threshold, frame=sampling.frame)
    points = surface(scene, sampling)
    owner = nearest_instance(found.instances, points.positions)
    points = points.subset(torch.from_numpy(owner >= 0))
    scores = scores_of(points, scene.question(found.question, head=look.head))
    colours = point_colours(points, look.colour, scene.head(look.head), scores)
    scalars = {"similarity": scores.numpy(), "instance": owner[owner >= 0].astype(np.int32)}
    write_cloud(path, points.positions.numpy(), colours, scalars)
    return found


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
    query: str | Sequence[str],
    head: str | None = None,
    threshold: float | None = None,
    frame: FrameName = "dataset",
    show_progress: bool = False,
) -> list[Found]:
    """Writes an oriented box for every instance of every query as JSON, with the reason for none.

    Args:
        scene: The scene.
        file: The file.
        query: A list of queries, or one text with semicolons between them.
        head: The feature head to query; None for the first that has a text tower.
        threshold: The least score of a matching point; None to choose it from the scene's scores.
        frame: The frame of the boxes.
        show_progress: Whether a bar counts queries.

    Returns:
        The instances of each query.

    Raises:
        ExportError: If the file's ending does not fit, or it cannot be written.
        F3rmError: If query, head or frame cannot be used.
    """
    path = check_file(as_path(file), BOX_SUFFIXES, what="boxes")
    asked = questions_in(query)
    bar = track(asked, total=len(asked), label="objects", show=show_progress, unit="queries")
    answers = [scene.find(text, threshold=threshold, head=head, frame=frame) for text in bar]
    content = {
        "run": str(scene.run.config_path),
        "data": str(scene.run.data),
        "frame": frame,
        "metres_per_unit": metres_per_unit(scene, frame),
        "queries": [_to_dict(found) for found in answers],
    }
    text = json.dumps(content, indent=2, allow_nan=False) + "\n"
    write_file(path, lambda stream: stream.write(text.encode()))
    return answers


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
