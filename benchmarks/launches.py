"""Counts what a training step dispatches: on a large GPU, launches decide how long a step takes.

``python benchmarks/launches.py --json`` prints one JSON object. A step is forward, metrics, losses,
backward and Adam, on the CPU with the machine code for hash grids, which dispatches nothing of its
own; each count has *dispatched* operations and *kernels*, those that are no views of a tensor:

- ``nerfacto_as_is``: plain Nerfacto's step, with nothing but its hash grids replaced.
- ``nerfacto``: the same with all that f3rm replaces in it, bit by bit.
- ``adds_C``: what f3rm adds to it, with heads of C channels.
- each with ``_autocast``: in mixed precision, whose casts count.
"""

import torch
from command import make_parser, show
from nerfstudio.field_components.encodings import HashEncoding
from nerfstudio.models.nerfacto import NerfactoModelConfig
from step import build_model, whole_step
from torch.utils._python_dispatch import TorchDispatchMode
from typing_extensions import override

from f3rm.f3rm_config import f3rm_method
from f3rm.model import FeatureFieldModelConfig
from f3rm.networks.nerfacto_fast import use_fast_encodings

HEADS = ("768", "768+384")
_RAYS = 32
_NO_KERNEL = frozenset(("alias", "detach", "_reshape_alias", "_unsafe_view"))
"""Operations that return memory as it is, beside those whose schema says that they are views."""


class Counter(TorchDispatchMode):
    """Counts operations that reach a backend, in this thread.

    Attributes:
        dispatched: All of them.
        kernels: Those that compute or copy.
    """

    def __init__(self) -> None:
        super().__init__()
        self.dispatched = self.kernels = 0

    @override
    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func._schema.name.partition("::")[2]  # noqa: SLF001 - there is no public name
        self.dispatched += 1
        self.kernels += not (func.is_view or name in _NO_KERNEL)
        return func(*args, **(kwargs or {}))


def count(heads: str, *, autocast: bool = False, as_is: bool = False) -> Counter:
    """Counts a step; sizes of tables change nothing, so they are small.

    Args:
        heads: Channels of the heads, joined by +; empty for Nerfacto.
        autocast: Whether it computes in mixed precision.
        as_is: Whether only hash grids are replaced.
    """
    channels = [int(each) for each in heads.split("+") if each]
    config = FeatureFieldModelConfig if channels else NerfactoModelConfig
    model = build_model(
        config(implementation="torch", log2_hashmap_size=12), channels, torch.device("cpu")
    )
    for part in (
        [each for each in model.modules() if isinstance(each, HashEncoding)] if as_is else [model]
    ):
        use_fast_encodings(part)
    step = whole_step(model, f3rm_method.config.optimizers, channels, _RAYS, autocast=autocast)
    step()  # makes Adam's state
    with Counter() as counter:
        step()
    return counter


def measure() -> dict[str, object]:
    """Counts every figure; see the module's docstring."""
    result: dict[str, object] = {}
    for suffix, autocast in (("", False), ("_autocast", True)):
        plain = count("", autocast=autocast)
        result[f"nerfacto{suffix}"] = (plain.dispatched, plain.kernels)
        untouched = count("", autocast=autocast, as_is=True)
        result[f"nerfacto_as_is{suffix}"] = (untouched.dispatched, untouched.kernels)
        for heads in HEADS:
            ours = count(heads, autocast=autocast)
            added = (ours.dispatched - plain.dispatched, ours.kernels - plain.kernels)
            result[f"adds_{heads}{suffix}"] = added
    return result


def main() -> None:
    """Parses the command line, counts and prints."""
    given = make_parser(__doc__).parse_args()
    torch.set_num_threads(given.threads)
    show(measure(), as_json=given.json)


if __name__ == "__main__":
    main()
