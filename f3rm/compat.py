"""Lets Nerfstudio 1.1.5 run on today's torch, and offline, without patching its files.

- Its exponential decay puts NumPy floats into checkpoints, which ``torch.load`` refuses since 2.6
  (nerfstudio#3683). :class:`FloatExponentialDecaySchedulerConfig` writes Python floats;
  :func:`allow_nerfstudio_checkpoints` lets older checkpoints load.
- Its Adam does not offer torch's fused implementation; :class:`FusedAdamOptimizerConfig` does.
- Nerfacto fetches LPIPS weights at construction. :func:`lazy_lpips` defers that to the first use.
- Its commands show any error as a traceback; :func:`show_messages_alone` makes f3rm's errors end
  them with the message.
- Its ``eval_setup`` searches checkpoints where the run was trained, and tells nobody which file it
  opens; :func:`config_being_opened` finds out, so that a copied run finds its own.
"""

import contextlib
import importlib
import inspect
import logging
import sys
from collections.abc import Callable, Generator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import SupportsFloat

import numpy as np
import torch
from nerfstudio.engine.optimizers import AdamOptimizerConfig
from nerfstudio.engine.schedulers import (
    ExponentialDecayScheduler,
    ExponentialDecaySchedulerConfig,
)
from torch import Tensor, nn
from torch.optim import Optimizer, lr_scheduler

from f3rm.errors import F3rmError

logger = logging.getLogger(__name__)

_LPIPS_MODULE = "torchmetrics.image.lpip"
_LPIPS = "LearnedPerceptualImagePatchSimilarity"


class FloatExponentialDecayScheduler(ExponentialDecayScheduler):
    """Nerfstudio's exponential decay with Python floats as its values."""

    def get_scheduler(self, optimizer: Optimizer, lr_init: float) -> lr_scheduler.LRScheduler:
        """Returns the parent's schedule with Python floats."""
        scheduler = super().get_scheduler(optimizer, lr_init)
        if not isinstance(scheduler, lr_scheduler.LambdaLR):
            return scheduler
        return lr_scheduler.LambdaLR(
            optimizer, lr_lambda=[_as_float(decay) for decay in scheduler.lr_lambdas]
        )


@dataclass
class FloatExponentialDecaySchedulerConfig(ExponentialDecaySchedulerConfig):
    """Configuration of :class:`FloatExponentialDecayScheduler`."""

    _target: type = field(default_factory=lambda: FloatExponentialDecayScheduler)


@dataclass
class FusedAdamOptimizerConfig(AdamOptimizerConfig):
    """Adam in one pass over memory; the same update up to rounding.

    Measured on two CPU cores with 20 million parameters: 9 ms in place of 134 ms.
    """

    fused: bool = True
    """Whether to use torch's fused implementation; it runs on CPU and CUDA."""


def _as_float(decay: Callable[[int], SupportsFloat]) -> Callable[[int], float]:
    return lambda step: float(decay(step))


def allow_nerfstudio_checkpoints() -> None:
    """Allows the NumPy scalars of Nerfstudio's own checkpoints under ``weights_only``.

    The allow-list names the scalar's constructor, ``np.dtype`` and the float64 dtype, none of which
    can run code from the file.
    """
    try:
        multiarray = importlib.import_module("numpy._core.multiarray")  # since NumPy 2
    except ImportError:
        multiarray = importlib.import_module("numpy.core.multiarray")
    torch.serialization.add_safe_globals(
        [
            (multiarray.scalar, "numpy.core.multiarray.scalar"),
            (multiarray.scalar, "numpy._core.multiarray.scalar"),
            np.dtype,
            type(np.dtype("float64")),
        ]
    )


def is_nerfstudio_command() -> bool:
    """Tells whether this process is one of Nerfstudio's commands (``ns-*``)."""
    return Path(sys.argv[0]).name.startswith("ns-")


def show_messages_alone() -> None:
    """Makes Nerfstudio's commands (``ns-*``) end with the message of an error of f3rm's, alone.

    Elsewhere, and for every other error, Python's traceback stays.
    """
    if not is_nerfstudio_command():
        return
    usual = sys.excepthook

    def show(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        if isinstance(error, F3rmError):
            sys.stderr.write(f"{error}\n")
        else:
            usual(kind, error, trace)

    sys.excepthook = show


def config_being_opened() -> Path | None:
    """Returns the ``config.yml`` that Nerfstudio's ``eval_setup``, a caller, opens; None without.

    It is the function's argument ``config_path``.
    """
    for caller in inspect.stack(context=0):
        where = caller.frame.f_globals.get("__name__")
        if caller.function == "eval_setup" and where == "nerfstudio.utils.eval_utils":
            return Path(caller.frame.f_locals["config_path"])
    return None


class LazyLpips:
    """LPIPS that fetches its weights on first use, and returns NaN where they are not available.

    Not a module on purpose: the weights stay out of the run's checkpoint.
    """

    def __init__(self, *args: object, **kwargs: object) -> None:
        self._arguments = (args, kwargs)

    def __call__(self, predicted: Tensor, target: Tensor) -> Tensor:
        """Returns the distance of two image batches of shape (batch, 3, height, width)."""
        if self._metric is None:
            return torch.full((), float("nan"))
        return self._metric.to(predicted.device)(predicted, target)

    @cached_property
    def _metric(self) -> nn.Module | None:
        return self._build()

    def _build(self) -> nn.Module | None:
        args, kwargs = self._arguments
        try:
            return getattr(importlib.import_module(_LPIPS_MODULE), _LPIPS)(*args, **kwargs)
        except OSError as error:  # URLError is one
            logger.warning("LPIPS weights cannot be fetched (%s); lpips is left out.", error)
            return None


@contextlib.contextmanager
def lazy_lpips() -> Generator[None]:
    """Makes Nerfacto build :class:`LazyLpips` in place of LPIPS, for the duration of the block."""
    module = importlib.import_module(_LPIPS_MODULE)
    original = getattr(module, _LPIPS)
    # Nerfacto imports the class inside populate_modules, so that replacing it here is enough.
    setattr(module, _LPIPS, LazyLpips)
    try:
        yield
    finally:
        setattr(module, _LPIPS, original)
