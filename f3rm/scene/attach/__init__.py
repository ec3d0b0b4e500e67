"""Adds feature heads to a trained run. Names are resolved on first use."""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from f3rm.scene.attach.heads import Attached as Attached, attach as attach
    from f3rm.scene.attach.recipe import AttachSettings as AttachSettings

_LAZY = {"AttachSettings": "recipe", "Attached": "heads", "attach": "heads"}


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        msg = f"module {__name__!r} has no attribute {name!r}"
        raise AttributeError(msg)
    return getattr(importlib.import_module(f"{__name__}.{_LAZY[name]}"), name)
