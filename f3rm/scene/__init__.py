"""A trained run, asked from Python.

What users need stands here and is resolved on first use; the modules are the parts:

- :mod:`~f3rm.scene.scene`: :func:`load` and :class:`Scene`, all questions in one place.
- :mod:`~f3rm.scene.run_loading` and :mod:`~f3rm.scene.run_config`: configuration, data, checkpoint.
- :mod:`~f3rm.scene.metres`, :mod:`~f3rm.scene.frames` and :mod:`~f3rm.scene.file_camera`: frames,
  cameras by the pixels of their files.
- :mod:`~f3rm.scene.questions`: words -> scores of hidden vectors.
- :mod:`~f3rm.scene.points`: the field at points, and which points lie in the scene.
- :mod:`~f3rm.scene.surface`: points on surfaces.
- :mod:`~f3rm.scene.find`, :mod:`~f3rm.scene.found` and :mod:`~f3rm.scene.boxes`: instances, what
  is known of them, their boxes.
- :mod:`~f3rm.scene.images`: pictures, a few rows at a time.
- :mod:`~f3rm.scene.paths`, :mod:`~f3rm.scene.drawing` and :mod:`~f3rm.scene.writing`: cameras of a
  video, colours and legends, files.
- :mod:`~f3rm.scene.export_points`, :mod:`~f3rm.scene.export_features`,
  :mod:`~f3rm.scene.export_objects` and :mod:`~f3rm.scene.export_mesh`: what other programs open.
- :mod:`~f3rm.scene.attach`: further heads for a trained run.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from f3rm.scene.boxes import OrientedBox as OrientedBox
    from f3rm.scene.found import Found as Found, Instance as Instance
    from f3rm.scene.frames import FrameName as FrameName
    from f3rm.scene.questions import PROMPT_TEMPLATES as PROMPT_TEMPLATES
    from f3rm.scene.scene import Scene as Scene, load as load
    from f3rm.scene.surface import SurfacePoints as SurfacePoints

_LAZY = {
    "Found": "f3rm.scene.found",
    "FrameName": "f3rm.scene.frames",
    "Instance": "f3rm.scene.found",
    "OrientedBox": "f3rm.scene.boxes",
    "PROMPT_TEMPLATES": "f3rm.scene.questions",
    "Scene": "f3rm.scene.scene",
    "SurfacePoints": "f3rm.scene.surface",
    "load": "f3rm.scene.scene",
}


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        msg = f"module {__name__!r} has no attribute {name!r}"
        raise AttributeError(msg)
    return getattr(importlib.import_module(_LAZY[name]), name)
