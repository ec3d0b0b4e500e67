"""A similarity frame next to a plain RGB frame, and next to the way of earlier systems.

``python benchmarks/render.py --json`` prints one JSON object, for heads of C channels:

- ``similarity_vs_rgb_C``: a frame with ``similarity`` (one query, four negatives) over the frame of
  the same model with its heads off, in turn, ratio of medians.
- ``speedup_vs_channels_C``: the frame by way of C channels (every sample projected, composited to
  an image of C channels, then scored) over ours.
- ``requery_vs_rgb_C``: another query of a view that a viewer has just rendered, over the RGB frame.
- ``peak_mib_C``: what a frame of each kind adds to the memory of a process of its own at most.

The model has Nerfacto's and f3rm's own sizes and random weights: what is measured is arithmetic.
"""

import multiprocessing
from collections.abc import Callable
from functools import partial
from unittest import mock

import torch
from command import make_parser, show
from measuring import machine, medians, peak_mib
from nerfstudio.cameras.cameras import Cameras
from nerfstudio.data.scene_box import SceneBox
from torch import Tensor

from f3rm.camera_render import RGB_ONLY, RenderRequest
from f3rm.compat import lazy_lpips
from f3rm.errors import BackboneRef, HeadSpec
from f3rm.language.relevancy import (
    Query,
    make_query,
    similarity,
    similarity_from_hidden,
    to_hidden,
)
from f3rm.model import FeatureFieldModel, FeatureFieldModelConfig
from f3rm.renderer import render_per_sample

Frame = Callable[[], Tensor]
CHANNELS = (768, 5120)
_HIDDEN = RenderRequest(pca=False, similarity=False)
_CHUNK = {"cpu": 1 << 10, "cuda": 1 << 15}
"""Rays at once, as f3rm opens runs and as its methods render on a GPU."""
_CHUNK_FLOATS = 1 << 26
"""Per-sample features that the way of C channels holds at once: 256 MiB."""


def build_model(channels: int, rays_per_chunk: int, device: torch.device) -> FeatureFieldModel:
    """Builds an f3rm model with one head."""
    head = HeadSpec("random", channels, has_text=False, backbone=BackboneRef("random", "", "none"))
    torch.manual_seed(0)
    with lazy_lpips():
        model = FeatureFieldModelConfig(
            implementation="torch", eval_num_rays_per_chunk=rays_per_chunk
        ).setup(
            scene_box=SceneBox(aabb=torch.tensor([[-1.0, -1.0, -1.0], [1.0, 1.0, 1.0]])),
            num_train_data=50,
            metadata={"feature_heads": [head]},
            device=str(device),
        )
    return model.to(device).eval()


def build_query(channels: int, seed: int, device: torch.device) -> Query:
    """Builds a query with four negatives."""
    generator = torch.Generator().manual_seed(seed)
    vectors = torch.randn(5, channels, generator=generator).to(device)
    return make_query(vectors[:1], vectors[1:])


def build_camera(side: int, device: torch.device) -> Cameras:
    """Builds a camera of side x side pixels in the middle of the scene."""
    focal, centre = float(side), side / 2
    camera = Cameras(
        torch.eye(4)[None, :3], focal, focal, cx=centre, cy=centre, width=side, height=side
    )
    return camera.to(device)


@torch.no_grad()
def build_frames(channels: int, side: int, device: torch.device) -> dict[str, Frame]:
    """Builds the frames that are compared, by name."""
    model, camera = build_model(channels, _CHUNK[device.type], device), build_camera(side, device)
    weight = model.heads["random"].weight.detach()
    query, other = (build_query(channels, seed, device) for seed in (0, 1))

    def hidden() -> Tensor:
        rendered = model.get_outputs_for_camera(camera, request=_HIDDEN).hidden
        assert rendered is not None  # noqa: S101 - asked for
        return rendered

    def by_channels() -> Tensor:
        way = partial(_render_channels, model.feature_field.hidden_in_cube, weight)
        with mock.patch.object(model, "_render_hidden", way):
            return similarity(hidden(), query)

    known = hidden()
    return {
        "rgb": lambda: model.get_outputs_for_camera(camera, request=RGB_ONLY)["rgb"],
        "similarity": lambda: similarity_from_hidden(hidden(), to_hidden(query, weight)),
        "channels": by_channels,
        "requery": lambda: similarity_from_hidden(known, to_hidden(other, weight)),
    }


def _render_channels(
    trunk: Callable[[Tensor], Tensor], head_weight: Tensor, positions: Tensor, weights: Tensor
) -> Tensor:
    """Projects every sample of a chunk of rays, as many rays at once as memory is meant for."""
    hidden = trunk(positions).unflatten(0, weights.shape[:2])  # (rays, samples, hidden)
    rays = max(1, _CHUNK_FLOATS // (len(head_weight) * hidden.shape[1]))
    parts = zip(hidden.split(rays), weights.split(rays), strict=True)
    return torch.cat([render_per_sample(*part, head_weight) for part in parts])


def peak_of(name: str, channels: int, side: int, device: str) -> float:
    """Returns what a frame adds to the memory of a fresh process at most, in MiB."""
    torch.set_num_threads(1)
    frame = build_frames(channels, side, torch.device(device))[name]
    with torch.no_grad():
        return peak_mib(frame, torch.device(device))


def measure(side: int, repeats: int, device: str, *, memory: bool) -> dict[str, object]:
    """Measures every figure; see the module's docstring."""
    result: dict[str, object] = {
        "pixels": side * side,
        "repeats": repeats,
        **machine(torch.device(device)),
    }
    fresh = multiprocessing.get_context("spawn")
    for channels in CHANNELS:
        frames = build_frames(channels, side, torch.device(device))
        seconds = medians(frames, repeats, torch.device(device))
        result[f"similarity_vs_rgb_{channels}"] = round(seconds["similarity"] / seconds["rgb"], 3)
        ratio = seconds["channels"] / seconds["similarity"]
        result[f"speedup_vs_channels_{channels}"] = round(ratio, 2)
        result[f"requery_vs_rgb_{channels}"] = round(seconds["requery"] / seconds["rgb"], 4)
        result[f"seconds_{channels}"] = {name: round(s, 4) for name, s in seconds.items()}
        peaks: dict[str, float] = {}
        for name in ("rgb", "similarity", "channels") if memory else ():
            with fresh.Pool(1) as pool:
                peaks[name] = pool.apply(peak_of, (name, channels, side, device))
        result[f"peak_mib_{channels}"] = peaks
    return result


def main() -> None:
    """Parses the command line, measures and prints."""
    parser = make_parser(__doc__)
    parser.add_argument("--side", type=int, default=64, help="pixels per side of the frame")
    parser.add_argument("--repeats", type=int, default=5, help="timed frames of each kind")
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--no-memory", action="store_true", help="leave the peaks out")
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    result = measure(given.side, given.repeats, given.device, memory=not given.no_memory)
    show(result, as_json=given.json)


if __name__ == "__main__":
    main()
