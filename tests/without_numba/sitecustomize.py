"""On PYTHONPATH, hides numba from a process and from those it starts, as where it is missing."""

import sys
from typing import Any, cast

cast("dict[str, Any]", sys.modules)["numba"] = None
