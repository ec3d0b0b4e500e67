"""Adds feature heads to a trained run. Names are resolved on first use."""

from typing import TYPE_CHECKING

from f3rm.lazy import getter

if TYPE_CHECKING:
    from f3rm.scene.attach.heads import Attached as Attached, attach as attach
    from f3rm.scene.attach.recipe import AttachSettings as AttachSettings

__getattr__ = getter(
    __name__,
    {
        "AttachSettings": "f3rm.scene.attach.recipe",
        "Attached": "f3rm.scene.attach.heads",
        "attach": "f3rm.scene.attach.heads",
    },
)
