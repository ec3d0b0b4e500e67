"""Public names of a package that are imported on first use, so that the package itself stays light.

*Source:* PEP 562, module ``__getattr__``.
"""

import importlib
from collections.abc import Callable, Mapping


def getter(package: str, modules: Mapping[str, str]) -> Callable[[str], object]:
    """Returns the ``__getattr__`` of a package.

    Args:
        package: The package's ``__name__``.
        modules: The module of each public name.
    """

    def get(name: str) -> object:
        if name not in modules:
            msg = f"module {package!r} has no attribute {name!r}"
            raise AttributeError(msg)
        return getattr(importlib.import_module(modules[name]), name)

    return get
