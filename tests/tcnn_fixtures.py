"""tiny-cuda-nn's stand-in, for tests in this process and for commands in another.

Nerfacto's encodings and networks run through it too where the implementation is tcnn: in another
process because Nerfstudio finds the package, in this one because its modules are told so.
"""

import importlib
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from nerfstudio.field_components import encodings, mlp

from f3rm.networks import base

STAND_IN = Path(__file__).with_name("tinycudann_standin")


def _forget() -> None:
    for name in ("tinycudann", "tinycudann.encodings", "f3rm.networks.tcnn_network"):
        sys.modules.pop(name, None)


@contextmanager
def stand_in_installed() -> Iterator[None]:
    """Makes ``import tinycudann`` find the stand-in, which runs on a CPU."""
    _forget()
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(STAND_IN))
        patch.setattr(base, "tcnn_runs_on", lambda device: True)
        for module in (encodings, mlp):
            patch.setattr(module, "TCNN_EXISTS", True)
            patch.setattr(module, "tcnn", importlib.import_module("tinycudann"))
        _forget()  # a test may want to see the import
        yield
    _forget()


@pytest.fixture
def tcnn() -> Iterator[None]:
    """tiny-cuda-nn's stand-in, for a test."""
    with stand_in_installed():
        yield


@pytest.fixture(scope="module")
def tcnn_module() -> Iterator[None]:
    """tiny-cuda-nn's stand-in, for all tests of a file."""
    with stand_in_installed():
        yield
