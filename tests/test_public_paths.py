"""Public callables take a string wherever they take a path."""

import importlib
import inspect
import re
import typing
from pathlib import Path

import numpy as np
import pytest

from f3rm.errors import F3rmError
from f3rm.extract.standalone import feature_loader
from f3rm.recipes.vissl import load_features
from f3rm.store.items import dataset_root, read_items
from tests.scene_fixtures import write_dataset

DOCS = Path(__file__).parents[1] / "docs"
PAGES = [*sorted(DOCS.glob("*.md")), DOCS.parent / "README.md"]
IMPORT = re.compile(r"^from (f3rm[\w.]*) import \(?([\w, ]+)\)?$", re.M)
MODULES = (  # those whose names docs/toolkit.md's table of systems uses without importing them
    "f3rm.extract.standalone",
    "f3rm.extract.maintenance",
    "f3rm.extract.tables.exports",
    "f3rm.recipes.nsd",
    "f3rm.extract.tables.run",
    "f3rm.store.spec",
    "f3rm.extract.tables.tables",
    "f3rm.recipes.vissl",
    "f3rm.extract.tables.probe",
    "f3rm.evaluation.evaluate",
    "f3rm.synthetic.scenes",
)


def _documented():
    """Every function, and every public method of a class, that a page imports or a module has."""
    named = {("f3rm", "load")}
    for page in PAGES:
        for module, names in IMPORT.findall(page.read_text(encoding="utf-8")):
            named |= {(module, name.strip()) for name in names.split(",")}
    for module in MODULES:
        inside = vars(importlib.import_module(module)).items()
        named |= {
            (module, name)
            for name, value in inside
            if not name.startswith("_") and getattr(value, "__module__", "") == module
        }
    found = {}
    for module, name in sorted(named):
        value = getattr(importlib.import_module(module), name)
        if inspect.isclass(value):
            methods = inspect.getmembers(value, callable)
            found |= {
                f"{module}.{name}.{key}": method
                for key, method in methods
                if not key.startswith("_") and key in vars(value)
            }
        elif callable(value):
            found[f"{module}.{name}"] = value
    return found


def _kinds(annotation):
    return [annotation, *typing.get_args(annotation)]


CALLABLES = _documented()


def test_no_documented_callable_takes_paths_alone():
    narrow = []
    for name, function in CALLABLES.items():
        for parameter in inspect.signature(function).parameters.values():
            kinds = _kinds(parameter.annotation)
            if Path in kinds and str not in kinds:
                narrow.append(f"{name}({parameter.name})")
    assert len(CALLABLES) > 40
    assert narrow == []


def _needs_only_paths(function):
    parameters = [
        p
        for p in inspect.signature(function).parameters.values()
        if p.default is p.empty and p.kind is not p.VAR_KEYWORD
    ]
    takes_text = all(str in _kinds(p.annotation) for p in parameters)
    return takes_text and any("PathLike" in str(p.annotation) for p in parameters)


@pytest.mark.parametrize("name", [n for n, f in CALLABLES.items() if _needs_only_paths(f)])
def test_a_string_is_as_good_as_a_path(name, tmp_path):
    """With only paths given, a call fails alike for both kinds, by our own error or Python's."""
    function = CALLABLES[name]
    parameters = inspect.signature(function).parameters.values()
    required = [p for p in parameters if p.default is p.empty and p.kind is not p.VAR_KEYWORD]
    outcomes = []
    for kind in (str, Path):
        given = {
            p.name: kind(tmp_path / p.name) if "PathLike" in str(p.annotation) else "train"
            for p in required
        }
        try:
            function(**given)
            outcomes.append("done")
        except (F3rmError, OSError) as error:
            outcomes.append(f"{type(error).__name__}: {error}")
    assert outcomes[0] == outcomes[1]


def test_entries_that_crashed_on_strings_work(tmp_path):
    data = write_dataset(tmp_path / "scene", {"a.png": (20, 24)})
    assert dataset_root(str(data)) == dataset_root(data)
    assert read_items(str(data)) == read_items(data)
    for ending, array in (("features", np.ones((2, 3))), ("inds", np.arange(2))):
        np.save(tmp_path / f"rank0_chunk0_train_res4_{ending}.npy", array)
    assert load_features(str(tmp_path), "train", "res4")["features"].shape == (2, 3)
    with pytest.raises(F3rmError):
        feature_loader(str(tmp_path / "nothing"))
