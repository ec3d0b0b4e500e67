"""The one import of Open3D, which comes with Nerfstudio.

It is imported when it is first needed: that takes a second, and on Linux it needs system libraries
(libusb, libEGL) that small containers lack.
"""

import importlib
from types import ModuleType

from f3rm.errors import F3rmError


class Open3dError(F3rmError):
    """Open3D cannot be used on this machine."""


def require_open3d(purpose: str, *, error: type[F3rmError] = Open3dError) -> ModuleType:
    """Imports Open3D.

    Args:
        purpose: Who needs it, as the subject of a sentence: ``"Open3D, which renders scenes"``.
        error: The class of error to raise.

    Raises:
        F3rmError: Of the class ``error``, if it cannot be imported.
    """
    try:
        return importlib.import_module("open3d")
    except ImportError as cause:
        msg = (
            f"{purpose}, cannot be imported: {cause}. If a system library is missing, install it "
            "(Debian and Ubuntu: apt-get install libusb-1.0-0 libegl1 libgl1 libgomp1); if Open3D "
            "is, pip install open3d."
        )
        raise error(msg) from cause
