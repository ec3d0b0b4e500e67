"""Imports optional packages on demand; the error of a missing one names the extra to install."""

import importlib
from types import ModuleType

from f3rm.distribution import how_to_install
from f3rm.errors import F3rmError


class MissingExtraError(F3rmError):
    """An optional package is needed and cannot be imported."""


def require(
    module: str, *, extra: str, purpose: str, error: type[F3rmError] = MissingExtraError
) -> ModuleType:
    """Imports an optional package when it is needed.

    Args:
        module: The module, e.g. ``"sklearn.neighbors"``.
        extra: The extra of f3rm that installs it.
        purpose: Subject of the message, e.g. ``"A probe"``.
        error: Class of the error to raise.

    Raises:
        F3rmError: Of the class ``error``, if the package is missing or does not import here.
    """
    try:
        return importlib.import_module(module)
    except ImportError as cause:
        package = module.partition(".")[0]
        msg = (
            f"{purpose} needs the package {package}, which is missing or unusable here ({cause}). "
            f"Install it: {how_to_install(extra)}."
        )
        raise error(msg) from cause
