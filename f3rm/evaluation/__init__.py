"""Protocols and metrics on generated scenes, beside the 2D teacher.

Names are resolved on first use.
"""

from typing import TYPE_CHECKING

from f3rm.lazy import getter

if TYPE_CHECKING:
    from f3rm.evaluation.evaluate import evaluate_run as evaluate_run

__getattr__ = getter(
    __name__,
    {
        "evaluate_run": "f3rm.evaluation.evaluate",
    },
)
