"""Writes points, features, meshes and boxes of a scene to files.

Names are resolved on first use.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from f3rm.scene.export.features import (
        FeaturePoints as FeaturePoints,
        export_features as export_features,
        read_features as read_features,
    )
    from f3rm.scene.export.files import ExportError as ExportError
    from f3rm.scene.export.mesh import Meshing as Meshing, export_mesh as export_mesh
    from f3rm.scene.export.objects import (
        export_boxes as export_boxes,
        export_object as export_object,
    )
    from f3rm.scene.export.points import (
        Look as Look,
        Sampling as Sampling,
        export_points as export_points,
    )

_LAZY = {
    "ExportError": "files",
    "FeaturePoints": "features",
    "Look": "points",
    "Meshing": "mesh",
    "Sampling": "points",
    "export_boxes": "objects",
    "export_features": "features",
    "export_mesh": "mesh",
    "export_object": "objects",
    "export_points": "points",
    "read_features": "features",
}


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        msg = f"module {__name__!r} has no attribute {name!r}"
        raise AttributeError(msg)
    return getattr(importlib.import_module(f"{__name__}.{_LAZY[name]}"), name)
