"""f3rm's distribution: its name, its extras, and another project's distribution named f3rm.

On the package index, ``f3rm`` is the project of F3RM's authors. It also has an import package and a
method ``f3rm``, so the two cannot share an environment. Only the standard library is imported here,
because commands check this before they load anything else.
"""

import logging
import shlex
import sys
import warnings
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
    "vissl": "hydra-core>=1.3",
}
"""Extra -> the package that it installs, as in pyproject.toml."""


def how_to_install(extra: str) -> str:
    """Returns the command that installs an extra's package; f3rm itself is not reinstalled.

    Args:
        extra: A key of :data:`EXTRAS`.

    Returns:
        A clause without a final stop that starts with ``pip install``.
    """
    package = shlex.quote(EXTRAS[extra])
    return f"pip install {package} (f3rm's extra {extra!r}; see docs/install.md)"


def namesake_beside() -> str | None:
    """Returns a warning if the other project ``f3rm`` is installed beside this one, else None.

    A checkout's ``*.egg-info`` does not count, nor does a distribution ``f3rm`` alone, which has
    nothing to overwrite.
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
    """Logs the warning of :func:`namesake_beside`, if any; safe to call while plugins load."""
    message = namesake_beside()
    if message is not None:
        logger.warning("%s", message)


def silence_other_packages() -> None:
    """Silences Python warnings of other packages, as commands do; ``python -W`` shows them.

    They concern the programmers of these packages. What f3rm warns of is logged.
    """
    if not sys.warnoptions:
        warnings.filterwarnings("ignore")
        warnings.filterwarnings("default", module=r"f3rm\b")


def _installed(name: str) -> Distribution | None:
    """Returns a distribution that an installer has put here, or None."""
    found = distributions(name=name)
    return next((each for each in found if each.read_text("INSTALLER") is not None), None)
