"""tiny-cuda-nn's stand-in, for tests in this process and for commands in another.

In this process Nerfacto's own encodings stay in torch, because Nerfstudio looked for tiny-cuda-nn
before: only the feature field runs through the stand-in. In a command both do.
"""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import nerfstudio.utils.external as _looked_for_it_first  # noqa: F401
import pytest

from f3rm.networks import base

STAND_IN = Path(__file__).with_name("tinycudann_standin")


def _forget() -> None:
    for name in ("tinycudann", "f3rm.networks.tcnn_network"):
        sys.modules.pop(name, None)


@contextmanager
def stand_in_installed() -> Iterator[None]:
    """Makes ``import tinycudann`` find the stand-in, which runs on a CPU."""
    _forget()
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(STAND_IN))
        patch.setattr(base, "tcnn_runs_on", lambda device: True)
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
