"""f3rm: feature fields, scenes you can ask questions.

``f3rm.load(run)`` opens a trained run; see :class:`f3rm.Scene`. Names are imported on first use, so
that importing f3rm costs nothing.
"""

from typing import TYPE_CHECKING

from f3rm.lazy import getter

if TYPE_CHECKING:
    from f3rm.errors import BackboneRef as BackboneRef, F3rmError as F3rmError
    from f3rm.extract.standalone import (
        extract_features_for_dataset as extract_features_for_dataset,
    )
    from f3rm.scene.boxes import OrientedBox as OrientedBox
    from f3rm.scene.camera import Camera as Camera
    from f3rm.scene.found import Found as Found, Identified as Identified, Instance as Instance
    from f3rm.scene.opening import load as load
    from f3rm.scene.scene import Scene as Scene
    from f3rm.scene.surface import SurfacePoints as SurfacePoints
    from f3rm.store.reader import FeatureStore as FeatureStore

__version__ = "0.1.0"

__getattr__ = getter(
    __name__,
    {
        "BackboneRef": "f3rm.errors",
        "Camera": "f3rm.scene.camera",
        "F3rmError": "f3rm.errors",
        "FeatureStore": "f3rm.store.reader",
        "Found": "f3rm.scene.found",
        "Identified": "f3rm.scene.found",
        "Instance": "f3rm.scene.found",
        "OrientedBox": "f3rm.scene.boxes",
        "Scene": "f3rm.scene.scene",
        "SurfacePoints": "f3rm.scene.surface",
        "extract_features_for_dataset": "f3rm.extract.standalone",
        "load": "f3rm.scene.opening",
    },
)
