"""What makes f3rm-lite quick on a CPU: its step, and a hash grid, with and without numba.

``python benchmarks/lite.py --json`` prints one JSON object; ratios of medians, in turn:

- ``lite_speedup``: a whole training step of f3rm-lite in torch alone over the same with hash grids
  in machine code (the extra ``fast``). Nerfstudio's own encodings are in both.
- ``render_speedup``: the same for a rendered batch of rays with features.
- ``chunk_speedup``: a render of all rays of f3rm-lite's chunk in chunks of 1,024 over one chunk,
  in machine code.
- ``grid_speedup_forward``, ``grid_speedup_training``: Nerfstudio's hash encoding at Nerfacto's
  sizes, torch over machine code, without and with the backward pass.
"""

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import cast
from unittest import mock

import torch
from command import make_parser, show
from measuring import Call, machine, medians
from nerfstudio.field_components.encodings import HashEncoding
from nerfstudio.models.nerfacto import NerfactoModelConfig
from step import build_model, rays, whole_step
from torch import nn

from f3rm.f3rm_config import f3rm_lite_method
from f3rm.networks import fast
from f3rm.networks.nerfacto_fast import use_fast_encodings

_CHANNELS = [128]
_SMALL_CHUNK = 1 << 10


@contextmanager
def torch_alone() -> Iterator[None]:
    """Leaves machine code out, as where numba is not installed."""
    with mock.patch.object(fast, "_is_installed", return_value=False):
        yield


def _slow(call: Call) -> Call:
    def run() -> None:
        with torch_alone():
            call()

    return run


def measure(num_rays: int, points: int, repeats: int) -> dict[str, object]:
    """Measures every figure; see the module's docstring."""
    device = torch.device("cpu")
    result: dict[str, object] = {"rays": num_rays, "repeats": repeats, **machine(device)}
    method = f3rm_lite_method.config
    config = cast("NerfactoModelConfig", copy.deepcopy(method.pipeline.model))
    model = build_model(config, _CHANNELS, device)
    step = whole_step(model, method.optimizers, _CHANNELS, num_rays)
    seconds = medians({"torch": _slow(step), "numba": step}, repeats, device)
    result["lite_speedup"] = round(seconds["torch"] / seconds["numba"], 2)
    result["lite_seconds"] = {name: round(value, 4) for name, value in seconds.items()}

    @torch.no_grad()
    def render(count: int = num_rays) -> None:
        model.eval()(rays(count, device))

    def render_in_small_chunks() -> None:
        for _ in range(chunk // _SMALL_CHUNK):
            render(_SMALL_CHUNK)

    seconds = medians({"torch": _slow(render), "numba": render}, repeats, device)
    result["render_speedup"] = round(seconds["torch"] / seconds["numba"], 2)
    chunk = config.eval_num_rays_per_chunk
    calls: dict[str, Call] = {"small": render_in_small_chunks, "whole": lambda: render(chunk)}
    seconds = medians(calls, repeats, device)
    result["chunk_speedup"] = round(seconds["small"] / seconds["whole"], 2)
    encoding = HashEncoding(max_res=2048, log2_hashmap_size=19, implementation="torch")
    use_fast_encodings(nn.ModuleList([encoding]))
    positions = torch.rand(points, 3)

    def train() -> None:
        encoding(positions).sum().backward()

    for name, call in (
        ("forward", torch.no_grad()(lambda: encoding(positions))),
        ("training", train),
    ):
        seconds = medians({"torch": _slow(call), "numba": call}, repeats, device)
        result[f"grid_speedup_{name}"] = round(seconds["torch"] / seconds["numba"], 2)
    return result


def main() -> None:
    """Parses the command line, measures and prints."""
    parser = make_parser(__doc__)
    parser.add_argument("--rays", type=int, default=1024, help="rays per step")
    parser.add_argument("--points", type=int, default=1 << 15, help="points of the hash grid alone")
    parser.add_argument("--repeats", type=int, default=9, help="timed calls of each kind")
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    show(measure(given.rays, given.points, given.repeats), as_json=given.json)


if __name__ == "__main__":
    main()
