"""Adds feature heads to a trained run or a splat. Names are resolved on first use."""

from typing import TYPE_CHECKING

from f3rm.lazy import getter

if TYPE_CHECKING:
    from f3rm.scene.attach.heads import Attached as Attached, attach as attach
    from f3rm.scene.attach.recipe import AttachSettings as AttachSettings
    from f3rm.scene.attach.splats import (
        AttachedToSplat as AttachedToSplat,
        LiftSettings as LiftSettings,
        attach_to_splat as attach_to_splat,
    )

__getattr__ = getter(
    __name__,
    {
        "AttachSettings": "f3rm.scene.attach.recipe",
        "Attached": "f3rm.scene.attach.heads",
        "AttachedToSplat": "f3rm.scene.attach.splats",
        "LiftSettings": "f3rm.scene.attach.splats",
        "attach": "f3rm.scene.attach.heads",
        "attach_to_splat": "f3rm.scene.attach.splats",
    },
)
