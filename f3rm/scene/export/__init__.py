"""Writes points, features, meshes and boxes of a scene to files.

Names are resolved on first use.
"""

from typing import TYPE_CHECKING

from f3rm.lazy import getter

if TYPE_CHECKING:
    from f3rm.scene.export.features import (
        FeaturePoints as FeaturePoints,
        export_features as export_features,
        read_features as read_features,
    )
    from f3rm.scene.export.files import ExportError as ExportError
    from f3rm.scene.export.labels import export_labels as export_labels
    from f3rm.scene.export.mesh import Meshing as Meshing, export_mesh as export_mesh
    from f3rm.scene.export.objects import (
        export_boxes as export_boxes,
        export_object as export_object,
    )
    from f3rm.scene.export.packing import export_packed as export_packed
    from f3rm.scene.export.points import (
        Look as Look,
        Sampling as Sampling,
        export_points as export_points,
    )
    from f3rm.scene.export.splats import export_splat as export_splat

__getattr__ = getter(
    __name__,
    {
        "ExportError": "f3rm.scene.export.files",
        "FeaturePoints": "f3rm.scene.export.features",
        "Look": "f3rm.scene.export.points",
        "Meshing": "f3rm.scene.export.mesh",
        "Sampling": "f3rm.scene.export.points",
        "export_boxes": "f3rm.scene.export.objects",
        "export_features": "f3rm.scene.export.features",
        "export_labels": "f3rm.scene.export.labels",
        "export_mesh": "f3rm.scene.export.mesh",
        "export_object": "f3rm.scene.export.objects",
        "export_packed": "f3rm.scene.export.packing",
        "export_points": "f3rm.scene.export.points",
        "export_splat": "f3rm.scene.export.splats",
        "read_features": "f3rm.scene.export.features",
    },
)
