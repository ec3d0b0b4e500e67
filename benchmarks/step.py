"""Training step of f3rm next to plain Nerfacto and to the per-sample way of earlier systems.

``python benchmarks/step.py --json`` prints one JSON object. C is 384, 768, 768+384 (two heads) or
5120 channels; all steps are whole ones (forward, losses, backward, Adam), side by side, ratios of
medians:

- ``step_ratio_C``: f3rm's step over plain Nerfacto's as Nerfstudio runs it.
- ``features_ratio_C``: f3rm's step over plain Nerfacto's with f3rm's machine code for its hash
  grids: what the features cost. The same number on a GPU, where there is no such code.
- ``per_sample_ratio_C``: the step that projects every sample over ours.
- ``head_speedup_768``: head, compositing and loss alone, given the trunk's hidden vectors.
- ``peak_mib``: what a step adds to the memory of a process of its own at most.
- ``shares_768``: where a step's time goes, by kind of operation.

Random rays and targets: what is measured is arithmetic, not data loading.
"""

import argparse
import functools
import multiprocessing
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, get_args
from unittest import mock

import torch
from command import make_parser, show
from measuring import Call, machine, medians, peak_mib
from nerfstudio.cameras.rays import RayBundle
from nerfstudio.data.scene_box import SceneBox
from nerfstudio.models.nerfacto import NerfactoModel, NerfactoModelConfig
from torch import Tensor
from torch.autograd.profiler_util import FunctionEvent
from torch.nn import functional
from torch.profiler import profile

from f3rm.compat import lazy_lpips
from f3rm.errors import BackboneRef, HeadSpec
from f3rm.f3rm_config import f3rm_method
from f3rm.model import FeatureFieldModel, FeatureFieldModelConfig
from f3rm.networks.base import Implementation, parameters_of
from f3rm.networks.nerfacto_fast import use_fast_encodings
from f3rm.renderer import FeatureRenderer, render_per_sample

HEADS = ("384", "768", "768+384", "5120")
_IMAGES = 50
_SHARES = {
    "hash grids": ("_Interpolate", "index_add", "embedding_bag", "index", "bitwise", "remainder"),
    "layers": ("mm", "addmm", "linear", "bmm", "threshold_backward", "relu", "clamp_min"),
    "Adam": ("fused_adam", "zero_", "fill_", "foreach"),
    "contraction": ("linalg_vector_norm", "linalg_norm"),
    "compositing": ("cumsum", "exp", "sum", "mul", "div", "add", "sub", "where"),
}
"""Names of operations by kind; the first kind whose name an operation starts with counts."""


def rays(num: int, device: torch.device) -> RayBundle:
    directions = functional.normalize(torch.randn(num, 3, device=device), dim=-1)
    return RayBundle(
        origins=torch.randn(num, 3, device=device) * 0.3,
        directions=directions,
        pixel_area=torch.full((num, 1), 1e-6, device=device),
        camera_indices=torch.randint(0, _IMAGES, (num, 1), device=device),
        metadata={"directions_norm": torch.ones(num, 1, device=device)},
    )


def build_model(
    config: NerfactoModelConfig, channels: Sequence[int], device: torch.device
) -> NerfactoModel:
    """Builds a model with a head per number of channels."""
    ref = BackboneRef("random", "none", "none")
    heads = [HeadSpec(f"head{n}", count, False, ref) for n, count in enumerate(channels)]
    torch.manual_seed(0)
    with lazy_lpips():
        model = config.setup(
            scene_box=SceneBox(aabb=torch.tensor([[-1.0, -1.0, -1.0], [1.0, 1.0, 1.0]])),
            num_train_data=_IMAGES,
            metadata={"feature_heads": heads},
            device=str(device),
        )
    return model.to(device).train()


def training_step(
    kind: str,
    heads: str,
    num_rays: int,
    device: torch.device,
    implementation: Implementation = "torch",
) -> Call:
    """Builds one whole training step.

    Args:
        kind: ``nerfacto``, ``nerfacto_fast``, ``f3rm`` or ``per_sample``.
        heads: Channels of the heads, joined by +.
        num_rays: Rays.
        device: Where.
        implementation: Of Nerfacto's fields and the feature field.
    """
    is_plain = kind.startswith("nerfacto")
    channels = [] if is_plain else [int(count) for count in heads.split("+")]
    config: Any = NerfactoModelConfig if is_plain else FeatureFieldModelConfig
    named = parameters_of(implementation) if is_plain else implementation  # no Triton in Nerfacto
    model = build_model(config(implementation=named), channels, device)
    if kind == "nerfacto_fast":
        use_fast_encodings(model, implementation)
    step = whole_step(model, f3rm_method.config.optimizers, channels, num_rays)
    if kind != "per_sample":
        return step

    def per_sample() -> None:
        with mock.patch.object(FeatureFieldModel, "get_outputs", _outputs_per_sample):
            step()

    return per_sample


def whole_step(
    model: NerfactoModel,
    optimizers: Mapping[str, Mapping[str, object]],
    channels: Sequence[int],
    num_rays: int,
    *,
    autocast: bool = False,
) -> Call:
    """Builds a step from a model and the optimisers that a method configures."""
    device = model.device
    optimisers = [
        optimizers[name]["optimizer"].setup(parameters)  # pyright: ignore[reportAttributeAccessIssue]
        for name, parameters in model.get_param_groups().items()
        if parameters
    ]
    batch = {"image": torch.rand(num_rays, 3, device=device)}
    for number, count in enumerate(channels):
        name = "feature" if len(channels) == 1 else f"feature_head{number}"
        batch[name] = torch.randn(num_rays, count, device=device)

    def step() -> None:
        for optimiser in optimisers:
            optimiser.zero_grad()
        with torch.autocast(device.type, enabled=autocast):
            outputs = model(rays(num_rays, device))
            metrics = model.get_metrics_dict(outputs, batch)
            losses = model.get_loss_dict(outputs, batch, metrics)
        functools.reduce(torch.add, losses.values()).backward()  # as Nerfstudio's trainer does
        for optimiser in optimisers:
            optimiser.step()

    return step


def _outputs_per_sample(model: FeatureFieldModel, ray_bundle: RayBundle) -> dict[str, Tensor]:
    """Projects every sample to all channels before compositing, as earlier systems did."""
    outputs = NerfactoModel.get_outputs(model, ray_bundle)
    positions, weights = model._samples.take()  # noqa: SLF001 - its own other formulation
    hidden = model.feature_field.hidden_in_cube(positions.detach())
    hidden = hidden.unflatten(0, weights.shape[:2])  # (rays, samples, hidden)
    for name, head in model.heads.items():
        composited = render_per_sample(hidden, weights.detach(), head.weight)
        outputs[model.key("feature", name)] = composited
    return outputs


def head_steps(channels: int, num_rays: int, device: torch.device) -> tuple[Call, Call]:
    """Builds the per-sample reference and ours, from hidden vectors to gradients."""
    hidden = torch.rand(num_rays, 48, 64, device=device, requires_grad=True)
    weights = torch.rand(num_rays, 48, 1, device=device) / 48
    head = (torch.randn(channels, 64, device=device) / 8).requires_grad_()
    target = torch.randn(num_rays, channels, device=device)

    def reference() -> None:
        error = functional.mse_loss(render_per_sample(hidden, weights, head), target)
        torch.autograd.grad(error, (hidden, head))

    def ours() -> None:
        rendered = FeatureRenderer.forward(hidden, weights) @ head.T
        torch.autograd.grad(functional.mse_loss(rendered, target), (hidden, head))

    return reference, ours


def shares(step: Call, device: torch.device) -> dict[str, float]:
    """Returns which share of a step's time goes into which kind of operation."""
    step()
    with profile() as recorded:
        step()
    is_cuda = device.type == "cuda"
    spent = dict.fromkeys((*_SHARES, "other"), 0.0)
    for event in recorded.events() or ():
        time = event.self_device_time_total if is_cuda else event.self_cpu_time_total
        spent[_kind(event)] += time
    total = sum(spent.values())
    return {kind: round(time / total, 3) for kind, time in spent.items()}


def _kind(event: FunctionEvent) -> str:
    name = event.name.removeprefix("aten::").lstrip("_")
    for kind, starts in _SHARES.items():
        if name.startswith(tuple(start.lstrip("_") for start in starts)):
            return kind
    return "other"


def peak_of(
    kind: str, heads: str, num_rays: int, device: str, implementation: Implementation
) -> float:
    """Returns what a step adds to the memory of a fresh process at most, in MiB."""
    torch.set_num_threads(1)
    place = torch.device(device)
    return peak_mib(training_step(kind, heads, num_rays, place, implementation), place)


def measure(
    given: argparse.Namespace, device: torch.device, implementation: Implementation
) -> dict[str, object]:
    """Measures every figure; see the module's docstring."""
    num_rays, repeats = given.rays, given.repeats
    result: dict[str, object] = {"rays": num_rays, "repeats": repeats, **machine(device)}
    result["implementation"] = implementation
    peaks: dict[str, float] = {}
    for each in given.heads:
        kinds = ("nerfacto", "nerfacto_fast", "f3rm", "per_sample")
        steps = {
            kind: training_step(kind, each, num_rays, device, implementation) for kind in kinds
        }
        seconds = medians(steps, repeats, device)
        del steps
        for name, over, under in (
            ("step_ratio", "f3rm", "nerfacto"),
            ("features_ratio", "f3rm", "nerfacto_fast"),
            ("per_sample_ratio", "per_sample", "f3rm"),
        ):
            result[f"{name}_{each}"] = round(seconds[over] / seconds[under], 3)
        result[f"step_seconds_{each}"] = {name: round(s, 4) for name, s in seconds.items()}
        for kind in () if given.no_memory else kinds:
            if not (kind.startswith("nerfacto") and "nerfacto" in peaks):
                name = kind if kind.startswith("nerfacto") else f"{kind} {each}"
                arguments = (kind, each, num_rays, str(device), implementation)
                peaks[name] = _in_fresh_process(partial(peak_of, *arguments))
    result["peak_mib"] = peaks
    reference, ours = head_steps(768, num_rays, device)
    seconds = medians({"reference": reference, "ours": ours}, repeats, device)
    result["head_speedup_768"] = round(seconds["reference"] / seconds["ours"], 2)
    result["shares_768"] = shares(
        training_step("f3rm", "768", num_rays, device, implementation), device
    )
    return result


def _in_fresh_process(measured: partial[float]) -> float:
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(measured)


def main() -> None:
    """Parses the command line, measures and prints."""
    parser = make_parser(__doc__)
    parser.add_argument("--rays", type=int, default=1024, help="rays per step")
    parser.add_argument("--repeats", type=int, default=5, help="timed steps of each kind")
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--heads", nargs="+", default=HEADS, help="channels: 768 or 768+384")
    parser.add_argument("--no-memory", action="store_true", help="leave the peaks out")
    parser.add_argument("--implementation", default="torch", choices=get_args(Implementation))
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    result = measure(given, torch.device(given.device), given.implementation)
    show(result, as_json=given.json)


if __name__ == "__main__":
    main()
