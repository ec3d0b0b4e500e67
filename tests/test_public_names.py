"""The names that packages offer: they resolve on first use, and type checkers see the same ones."""

import ast
import importlib
import math
import subprocess
import sys
from pathlib import Path

import pytest

from f3rm import lazy

ROOT = Path(__file__).parents[1]
PACKAGES = sorted(
    ".".join(path.parent.relative_to(ROOT).parts)
    for path in (ROOT / "f3rm").rglob("__init__.py")
    if "getter(" in path.read_text(encoding="utf-8")
)


def _offered(package):
    """The names for type checkers, and those that resolve, each with its module."""
    path = ROOT / package.replace(".", "/") / "__init__.py"
    tree = ast.parse(path.read_text(encoding="utf-8"))
    typed, resolved = {}, {}
    for node in tree.body:
        if isinstance(node, ast.If):
            for line in node.body:
                assert isinstance(line, ast.ImportFrom)
                typed |= {name.name: line.module for name in line.names}
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Call):
            resolved = ast.literal_eval(node.value.args[1])
    return typed, resolved


def test_the_packages_are_found():
    assert {"f3rm", "f3rm.scene", "f3rm.extract", "f3rm.backbones"} <= set(PACKAGES)


@pytest.mark.parametrize("package", PACKAGES)
def test_every_name_resolves_to_what_type_checkers_see(package):
    typed, resolved = _offered(package)
    assert typed == resolved
    module = importlib.import_module(package)
    for name, place in resolved.items():
        assert getattr(module, name) is vars(importlib.import_module(place))[name]
        # A submodule of that name would hide it once something imports the submodule.
        assert not (Path(str(module.__file__)).parent / f"{name}.py").exists()
    with pytest.raises(AttributeError, match=f"'{package}' has no attribute 'nothing'"):
        _ = module.nothing


def test_importing_f3rm_loads_nothing_heavy():
    code = (
        "import sys, f3rm, f3rm.extract, f3rm.store, f3rm.scene; "
        "print({'torch', 'nerfstudio', 'numpy'} & set(sys.modules))"
    )
    printed = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT
    ).stdout
    assert printed == "set()\n"


def test_a_missing_name_is_an_attribute_error():
    get = lazy.getter("package", {"sqrt": "math"})
    assert get("sqrt") is math.sqrt
    with pytest.raises(AttributeError, match="module 'package' has no attribute 'other'"):
        get("other")
