"""A trained run, opened for queries from Python. Names are resolved on first use."""

from typing import TYPE_CHECKING

from f3rm.lazy import getter

if TYPE_CHECKING:
    from f3rm.language.questions import PROMPT_TEMPLATES as PROMPT_TEMPLATES
    from f3rm.language.text_map import TextMap as TextMap
    from f3rm.scene.boxes import OrientedBox as OrientedBox
    from f3rm.scene.found import Found as Found, Identified as Identified, Instance as Instance
    from f3rm.scene.frames import FrameName as FrameName
    from f3rm.scene.scene import Scene as Scene, load as load
    from f3rm.scene.surface import SurfacePoints as SurfacePoints

__getattr__ = getter(
    __name__,
    {
        "Found": "f3rm.scene.found",
        "FrameName": "f3rm.scene.frames",
        "Identified": "f3rm.scene.found",
        "Instance": "f3rm.scene.found",
        "OrientedBox": "f3rm.scene.boxes",
        "PROMPT_TEMPLATES": "f3rm.language.questions",
        "Scene": "f3rm.scene.scene",
        "SurfacePoints": "f3rm.scene.surface",
        "TextMap": "f3rm.language.text_map",
        "load": "f3rm.scene.scene",
    },
)
