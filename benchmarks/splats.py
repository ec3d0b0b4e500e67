"""Drawing a splat and lifting features onto it, on a fixed workload.

``python benchmarks/splats.py --json`` prints one JSON object. The scene is 200,000 random Gaussians
in front of a camera of 480 x 360 pixels, of about 60 contributions per pixel (``contributions``).
Seconds are those that all threads compute, so divide them by the number of cores:

- ``lifting_65``: one view's share of lifting a head, 65 channels, with the projection.
- ``score_image``: one channel drawn, with the projection: the picture of a query's scores.
- ``hidden_image``: 65 channels drawn.
- ``features_768``, ``features_5120``: a view's feature map of that many channels, 27 x 36 cells, to
  the 65 channels of its pixels. ``width_ratio``: a view lifted with the wider teacher over one with
  the other; lifting itself does not know the width.
- ``twin_ratio``: the readable twin over machine code for the score image of a tenth of the scene;
  null where numba is not installed, and then all figures are the twin's.
- ``wall_lifting_65``, ``wall_score_image``: the same on the clock, with the given threads; whatever
  else the machine does counts.
"""

import importlib.util
import time
from functools import partial

import torch
from command import make_parser, show
from measuring import machine, medians

from f3rm.splats.gaussians import Gaussians
from f3rm.splats.lifting import COEFFICIENTS, HIDDEN, FeatureBasis
from f3rm.splats.projection import PinholeCamera, project
from f3rm.splats.rasterizer import ImplementationChoice, Rasterizer
from f3rm.splats.torch_rasterizer import TorchRasterizer
from f3rm.splats.views import sample_map

SIZE = (360, 480)
GRID = (27, 36)
SCALE = 0.0119
"""Mean standard deviation of a Gaussian: gives about 60 contributions per pixel."""
CPU = torch.device("cpu")


def random_scene(count: int) -> Gaussians:
    """Returns Gaussians of many shapes that fill the camera's view, from 2 to 6 units away."""
    random = torch.Generator().manual_seed(0)
    depth = 2 + 4 * torch.rand(count, generator=random)
    across = (torch.rand(count, 2, generator=random) - 0.5) * torch.tensor([1.3, 1.0])
    return Gaussians(
        means=torch.cat((across * depth[:, None], depth[:, None]), dim=1),
        quats=torch.randn(count, 4, generator=random),
        scales=SCALE * torch.exp(0.5 * torch.randn(count, 3, generator=random)),
        opacities=0.05 + 0.9 * torch.rand(count, generator=random),
        sh=torch.zeros(count, 1, 3),
    )


def camera() -> PinholeCamera:
    height, width = SIZE
    return PinholeCamera(torch.eye(4), (400.0, 400.0), (width / 2, height / 2), SIZE)


def contributions(gaussians: Gaussians, view: PinholeCamera) -> float:
    """Counts the Gaussians that contribute to a pixel, on average."""
    twin = TorchRasterizer(project(gaussians, view), view, len(gaussians))
    return sum(int((weights > 0).sum()) for *_, weights in twin.tiles()) / (SIZE[0] * SIZE[1])


def basis_of(channels: int) -> FeatureBasis:
    random = torch.Generator().manual_seed(1)
    rows = torch.linalg.qr(torch.randn(channels, COEFFICIENTS, generator=random)).Q.T
    return FeatureBasis(torch.randn(channels, generator=random), rows.contiguous(), 1.0)


def feature_picture(basis: FeatureBasis, features: torch.Tensor) -> torch.Tensor:
    y, x = torch.meshgrid(torch.arange(SIZE[0]), torch.arange(SIZE[1]), indexing="ij")
    at = torch.stack((x * GRID[1] / SIZE[1], y * GRID[0] / SIZE[0]), dim=-1)
    return sample_map(basis.encode(features), at)


def measure(count: int, repeats: int) -> dict[str, object]:
    """Measures every figure; see the module's docstring."""
    gaussians, view = random_scene(count), camera()
    has_numba = importlib.util.find_spec("numba") is not None
    scores, hidden = torch.rand(count, 1), torch.randn(count, HIDDEN)
    picture = torch.randn(*SIZE, HIDDEN)
    maps = {channels: torch.randn(*GRID, channels) for channels in (768, 5120)}
    bases = {channels: basis_of(channels) for channels in maps}

    def drawing(implementation: ImplementationChoice = "auto") -> Rasterizer:
        return Rasterizer(gaussians, view, implementation=implementation)

    calls = {
        "lifting_65": lambda: drawing().adjoint(picture),
        "score_image": lambda: drawing().composite(scores),
        "hidden_image": lambda: drawing().composite(hidden),
        "features_768": lambda: feature_picture(bases[768], maps[768]),
        "features_5120": lambda: feature_picture(bases[5120], maps[5120]),
    }
    seconds = medians(calls, repeats, CPU)
    wall: dict[str, float] = {}
    for name in ("lifting_65", "score_image"):
        start = time.perf_counter()
        calls[name]()
        wall[f"wall_{name}"] = round(time.perf_counter() - start, 3)
    few = gaussians.subset(torch.arange(count // 10))
    names: list[ImplementationChoice] = ["torch", "numba"] if has_numba else ["torch"]
    drawn = [Rasterizer(few, view, implementation=name) for name in names]
    shown = {each.implementation: partial(each.composite, scores[: len(few)]) for each in drawn}
    twins = medians(shown, 1, CPU)
    lifted = {
        channels: seconds["lifting_65"] + seconds[f"features_{channels}"] for channels in maps
    }
    return {
        **{name: round(value, 3) for name, value in seconds.items()},
        **wall,
        "width_ratio": round(lifted[5120] / lifted[768], 2),
        "twin_ratio": round(twins["torch"] / twins["numba"], 1) if has_numba else None,
        "contributions": round(contributions(gaussians, view), 1),
        "gaussians": count,
        "pixels": SIZE[0] * SIZE[1],
        **machine(CPU),
    }


def main() -> None:
    """Parses the command line, measures and prints."""
    parser = make_parser(__doc__)
    parser.add_argument("--gaussians", type=int, default=200_000)
    parser.add_argument("--repeats", type=int, default=5)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    show(measure(arguments.gaussians, arguments.repeats), as_json=arguments.json)


if __name__ == "__main__":
    main()
