"""Reads modules inside a network by forward hooks, and stops when the last one has run."""

from collections.abc import Callable, Mapping
from contextlib import ExitStack, suppress
from dataclasses import dataclass

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Called:
    """A module's part in a forward pass.

    Attributes:
        shape: Of its last output.
        order: Number of its last call among all calls.
        times: How often it was called.
    """

    shape: tuple[int, ...]
    order: int
    times: int


class _AllReadError(Exception):
    """Leaves a forward pass from within a hook."""


@torch.no_grad()
def observe(network: nn.Module, images: Tensor) -> Mapping[nn.Module, Called]:
    """Runs a network in evaluation mode once, and records the modules that return one tensor."""
    called: dict[nn.Module, Called] = {}
    calls = 0

    def record(module: nn.Module, _: object, output: object) -> None:
        nonlocal calls
        calls += 1
        if isinstance(output, Tensor):
            times = called[module].times + 1 if module in called else 1
            called[module] = Called(tuple(output.shape), calls, times)

    with ExitStack() as hooks:
        for module in network.modules():
            hooks.enter_context(module.register_forward_hook(record))
        network(images)
    return called


def read_modules(
    network: nn.Module,
    images: Tensor,
    times: Mapping[nn.Module, int],
    keep: Callable[[nn.Module, Tensor], None],
) -> None:
    """Runs a network until the last call of every wanted module.

    Args:
        network: In evaluation mode.
        images: Its input.
        times: The modules, and how often each is called in a forward pass.
        keep: Called with a module and its output; of several calls the last one counts.
    """
    left = dict(times)

    def read(module: nn.Module, _: object, output: Tensor) -> None:
        left[module] -= 1
        keep(module, output)
        if max(left.values()) <= 0:
            raise _AllReadError  # torch has no other way to stop a forward pass

    with ExitStack() as hooks, suppress(_AllReadError):
        for module in left:
            hooks.enter_context(module.register_forward_hook(read))
        network(images)
