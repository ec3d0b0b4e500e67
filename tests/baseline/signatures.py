"""The signatures of everything that the pages document, by names without modules."""

import functools
import importlib
import inspect
import re
from collections.abc import Iterator, Mapping
from dataclasses import MISSING, fields, is_dataclass
from typing import Any

from numpy.typing import DTypeLike

import f3rm
from f3rm import scene
from f3rm.errors import F3rmError
from f3rm.evaluation.report import Evaluation
from f3rm.feature_datamanager import FeatureDataManagerConfig
from f3rm.feature_field import FeatureFieldConfig
from f3rm.language.questions import QuestionOptions
from f3rm.model import FeatureFieldModelConfig
from f3rm.networks.base import NetworkConfig
from f3rm.scene.attach.heads import Attached
from f3rm.scene.found import Identified
from tests.test_public_paths import IMPORT, MODULES, PAGES

OTHERS = (
    f3rm.load,
    f3rm.Camera,
    scene.Scene,
    scene.Found,
    scene.Instance,
    scene.OrientedBox,
    scene.SurfacePoints,
    Identified,
    Attached,
    Evaluation,
    FeatureDataManagerConfig,
    FeatureFieldConfig,
    FeatureFieldModelConfig,
    NetworkConfig,
    QuestionOptions,
)
"""What no page imports by name, but documents or returns."""
MODULE_PREFIX = re.compile(r"\b(?:[A-Za-z_]\w*\.)+(?=[A-Za-z_])")
ADDRESS = re.compile(r" at 0x[0-9a-f]+")


def public_signatures() -> dict[str, Any]:
    """Lists callables with their signatures, classes with their fields and members."""
    found: dict[str, list[Any]] = {}
    for name, value in _documented():
        described = _described(value)
        # Of two things with one name, each has its signature in the list.
        found.setdefault(name, [])
        if described not in found[name]:
            found[name].append(described)
    return {name: same[0] if len(same) == 1 else same for name, same in sorted(found.items())}


def _documented() -> Iterator[tuple[str, Any]]:
    named: set[tuple[str, str]] = set()
    for page in PAGES:
        for module, names in IMPORT.findall(page.read_text(encoding="utf-8")):
            named |= {(module, name.strip()) for name in names.split(",")}
    for module in MODULES:
        named |= {
            (module, name)
            for name, value in vars(importlib.import_module(module)).items()
            if not name.startswith("_") and getattr(value, "__module__", "") == module
        }
    for module, name in sorted(named):
        yield name, getattr(importlib.import_module(module), name)
    errors = vars(importlib.import_module(F3rmError.__module__)).values()
    shared = [each for each in errors if inspect.isclass(each) and issubclass(each, F3rmError)]
    for value in (*OTHERS, *shared):
        yield value.__name__, value


def _described(value: Any) -> Any:
    if inspect.isclass(value):
        return _class(value)
    return _signature(value) if callable(value) else type(value).__name__


def _class(value: type) -> dict[str, Any]:
    """Describes what f3rm adds to a class; what it inherits from others is theirs."""
    own = [each for each in value.__mro__ if each.__module__.split(".")[0] == "f3rm"]
    described: dict[str, Any] = {}
    if issubclass(value, Exception):
        described["is"] = [each.__name__ for each in value.__mro__[1:-2]]
    annotated = {name for each in own for name in inspect.get_annotations(each)}
    if is_dataclass(value):
        described["fields"] = {
            field.name: f"{_annotation(field.type)}{_default(field)}"
            for field in fields(value)
            if field.name in annotated
        }
    elif "__required_keys__" in vars(value):  # a TypedDict
        described["fields"] = {
            name: _annotation(kind) for name, kind in inspect.get_annotations(value).items()
        }
    elif {"__init__", "__new__"} & {name for each in own for name in vars(each)}:
        described["()"] = _signature(value)
    members: Mapping[str, Any] = {
        name: member
        for each in reversed(own)
        for name, member in vars(each).items()
        if not name.startswith("_") and name not in annotated
    }
    described.update({name: _member(member) for name, member in sorted(members.items())})
    return described


def _member(member: Any) -> str:
    if isinstance(member, property):
        assert member.fget is not None
        return f"property{_signature(member.fget)}"
    if isinstance(member, functools.cached_property):
        return f"property{_signature(member.func)}"
    if isinstance(member, classmethod | staticmethod):
        return f"{type(member).__name__}{_signature(member.__func__)}"
    return _signature(member) if callable(member) else _plain(repr(member))


def _signature(value: Any) -> str:
    return _plain(str(inspect.signature(value)))


def _annotation(kind: Any) -> str:
    return _plain(inspect.formatannotation(kind))


def _default(field: Any) -> str:
    if field.default is not MISSING:
        return f" = {_plain(repr(field.default))}"
    return "" if field.default_factory is MISSING else " = <factory>"


def _plain(text: str) -> str:
    """Takes out modules and addresses."""
    text = text.replace(inspect.formatannotation(DTypeLike), "DTypeLike")  # NumPy's, by version
    return MODULE_PREFIX.sub("", ADDRESS.sub("", text)).replace("PosixPath", "Path")
