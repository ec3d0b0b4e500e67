"""The distribution that f3rm is installed from: its name, its extras, and its namesake.

On the package index ``f3rm`` is the project of F3RM's authors. It has the import package and the
method ``f3rm`` too, so the two cannot share an environment. Only the standard library is imported
here: commands ask before they load anything else.
"""

import logging
import shlex
from collections.abc import Mapping
from importlib.metadata import Distribution, distributions

logger = logging.getLogger(__name__)

DISTRIBUTION = "f3rm-fields"
NAMESAKE = "f3rm"

EXTRAS: Mapping[str, str] = {
    "fast": "numba>=0.60",
    "ray": "ray>=2.40",
    "probe": "scikit-learn",
    "vae": "diffusers>=0.35",
    "video": "av",
}
"""Extra -> the package that it installs, as in pyproject.toml."""


def how_to_install(extra: str) -> str:
    """Returns the command that installs an extra's package, wherever f3rm was installed from.

    Args:
        extra: A key of :data:`EXTRAS`.

    Returns:
        A clause without a final stop that starts with ``pip install``.
    """
    package = shlex.quote(EXTRAS[extra])
    return f"pip install {package} (f3rm's extra {extra!r}; see docs/install.md)"


def namesake_beside() -> str | None:
    """Says what to do about the other ``f3rm`` that is installed beside this one, if there is one.

    A checkout's ``*.egg-info`` does not count, nor does a distribution ``f3rm`` alone: there is
    nothing that it could be mixed with.

    Returns:
        A sentence for the user, or None where nothing is mixed.
    """
    namesake = _installed(NAMESAKE)
    if namesake is None or _installed(DISTRIBUTION) is None:
        return None
    return (
        f"Two distributions bring the Python package f3rm: {DISTRIBUTION} and {NAMESAKE} (in "
        f"{str(namesake.locate_file(''))!r}), another project. Their files overwrite each other, "
        f"so that ns-train f3rm may run either. Run: pip uninstall --yes {NAMESAKE} "
        f"{DISTRIBUTION}; then install {DISTRIBUTION} again (docs/install.md)."
    )


def warn_of_namesake() -> None:
    """Logs what :func:`namesake_beside` says; never raises, so that a plugin may call it."""
    message = namesake_beside()
    if message is not None:
        logger.warning("%s", message)


def _installed(name: str) -> Distribution | None:
    """Finds a distribution that an installer put here."""
    found = distributions(name=name)
    return next((each for each in found if each.read_text("INSTALLER") is not None), None)
