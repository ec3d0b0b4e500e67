"""The ``f3rm`` command; commands that are also scripts of other systems are named here.

Names are resolved on first use.
"""

from typing import TYPE_CHECKING

from f3rm.lazy import getter

if TYPE_CHECKING:
    from f3rm.scripts.command import run_command as run_command
    from f3rm.scripts.systems.image2rep import Image2Rep as Image2Rep
    from f3rm.scripts.systems.nsd import Nsd as Nsd
    from f3rm.scripts.systems.vissl import RunDistributedEngines as RunDistributedEngines

__getattr__ = getter(
    __name__,
    {
        "Image2Rep": "f3rm.scripts.systems.image2rep",
        "Nsd": "f3rm.scripts.systems.nsd",
        "RunDistributedEngines": "f3rm.scripts.systems.vissl",
        "run_command": "f3rm.scripts.command",
    },
)
