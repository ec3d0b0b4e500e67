"""f3rm: feature fields, scenes you can ask questions.

``f3rm.load(run)`` opens a trained run; see :mod:`f3rm.scene`. It is resolved on first use, so that
importing f3rm costs nothing.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from f3rm.scene.scene import load as load

__version__ = "0.1.0"

_LAZY = {"load": "f3rm.scene.scene"}


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        msg = f"module {__name__!r} has no attribute {name!r}"
        raise AttributeError(msg)
    return getattr(importlib.import_module(_LAZY[name]), name)
