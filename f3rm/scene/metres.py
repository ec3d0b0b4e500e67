"""The scale of a dataset in metres: ``metres_from_dataset`` in its ``scene.json``.

Apart from :mod:`f3rm.scene.frames`, because generated scenes need it without Nerfstudio.
"""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float64

from f3rm.errors import DatasetError

SCENE_FILE = "scene.json"
METRES_KEY = "metres_from_dataset"

_AFFINE_ROW = (0.0, 0.0, 0.0, 1.0)


def read_metres(folder: Path) -> Float64[np.ndarray, "4 4"] | None:
    """Returns the map from the frame of transforms.json to metres; None where none is known.

    Args:
        folder: The dataset's folder.

    Raises:
        DatasetError: If ``scene.json`` exists and cannot be read.
    """
    path = folder / SCENE_FILE
    if not path.is_file():
        return None
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        return affine_map(content[METRES_KEY]) if METRES_KEY in content else None
    # The file may be anybody's: deep nesting is a RecursionError, a number for an object a
    # TypeError.
    except (OSError, TypeError, ValueError, RecursionError) as error:
        msg = (
            f"{str(path)!r} must be JSON whose {METRES_KEY} is an affine map, got: {error}. Repair "
            "the file, or move it away to go on without metres."
        )
        raise DatasetError(msg) from error


def affine_map(rows: Any) -> Float64[np.ndarray, "4 4"]:
    """Checks the rows of an invertible affine map.

    Args:
        rows: Four rows of four numbers, as JSON has them.

    Raises:
        ValueError: If the numbers are no such map.
        TypeError: If ``rows`` cannot be iterated.
    """
    matrix = np.array([[finite_number(value) for value in row] for row in rows], dtype=np.float64)
    is_affine = matrix.shape == (4, 4) and tuple(matrix[3].tolist()) == _AFFINE_ROW
    if not is_affine or abs(np.linalg.det(matrix)) < 1e-12:
        msg = f"{METRES_KEY} is no invertible affine map: {matrix.tolist()}"
        raise ValueError(msg)
    return matrix


def finite_number(value: object) -> float:
    """Checks one number of a JSON file.

    Raises:
        ValueError: If it is none, or not finite.
    """
    # To Python true is a number, in JSON it is not.
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        msg = f"{value!r} is no finite number"
        raise ValueError(msg)
    return float(value)
