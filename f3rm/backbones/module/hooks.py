"""Reading modules inside a network by forward hooks, stopping when the last one has run."""

from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack, suppress
from dataclasses import dataclass

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Called:
    """How a module took part in a forward pass.

    Attributes:
        module: The module.
        shape: Of its last output.
        order: Place of its last call among all calls.
        times: How often it was called.
    """

    module: nn.Module
    shape: tuple[int, ...]
    order: int
    times: int


class _AllReadError(Exception):
    """Leaves a forward pass from within a hook."""


@torch.no_grad()
def observe(network: nn.Module, images: Tensor) -> Mapping[nn.Module, Called]:
    """Runs a network once and notes which of its modules gave one tensor.

    Args:
        network: In evaluation mode.
        images: Its input.

    Returns:
        The modules, by module.
    """
    called: dict[nn.Module, Called] = {}
    calls = 0

    def note(module: nn.Module, _: object, output: object) -> None:
        nonlocal calls
        calls += 1
        if isinstance(output, Tensor):
            times = called[module].times + 1 if module in called else 1
            called[module] = Called(module, tuple(output.shape), calls, times)

    with ExitStack() as hooks:
        for module in network.modules():
            hooks.enter_context(module.register_forward_hook(note))
        network(images)
    return called


def read_modules(
    network: nn.Module,
    images: Tensor,
    wanted: Iterable[Called],
    keep: Callable[[nn.Module, Tensor], None],
) -> None:
    """Runs a network until the last call of every wanted module.

    Args:
        network: In evaluation mode.
        images: Its input.
        wanted: What :func:`observe` noted of the modules.
        keep: Called with a module and its output; of several calls the last one counts.
    """
    left = {entry.module: entry.times for entry in wanted}

    def read(module: nn.Module, _: object, output: Tensor) -> None:
        left[module] -= 1
        keep(module, output)
        if max(left.values()) <= 0:
            raise _AllReadError

    with ExitStack() as hooks, suppress(_AllReadError):
        for module in left:
            hooks.enter_context(module.register_forward_hook(read))
        network(images)
