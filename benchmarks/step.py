"""Training step of f3rm next to plain Nerfacto, and the head next to the per-sample way.

``python benchmarks/step.py --json`` prints one JSON object:

- ``step_ratio_C``: a whole f3rm step (forward, losses, backward, Adam) with a head of C channels
  over the plain Nerfacto step of the same configuration, side by side, ratio of medians.
- ``head_speedup_768``: head, compositing and loss given the trunk's hidden vectors, forward and
  backward: project every sample then composite, over composite then project.

Random rays and targets: what is measured is arithmetic, not data loading.
"""

import platform
import statistics
import time
from collections.abc import Callable

import torch
from command import make_parser, show
from nerfstudio.cameras.rays import RayBundle
from nerfstudio.data.scene_box import SceneBox
from nerfstudio.models.nerfacto import NerfactoModel, NerfactoModelConfig
from torch.nn import functional

from f3rm._types import BackboneRef, HeadSpec
from f3rm.compat import lazy_lpips
from f3rm.f3rm_config import f3rm_method
from f3rm.model import FeatureFieldModelConfig
from f3rm.renderer import FeatureRenderer, render_per_sample

Step = Callable[[], None]
_IMAGES = 50


def _rays(num: int, device: torch.device) -> RayBundle:
    directions = functional.normalize(torch.randn(num, 3, device=device), dim=-1)
    return RayBundle(
        origins=torch.randn(num, 3, device=device) * 0.3,
        directions=directions,
        pixel_area=torch.full((num, 1), 1e-6, device=device),
        camera_indices=torch.randint(0, _IMAGES, (num, 1), device=device),
        metadata={"directions_norm": torch.ones(num, 1, device=device)},
    )


def _model(channels: int | None, device: torch.device) -> NerfactoModel:
    scene_box = SceneBox(aabb=torch.tensor([[-1.0, -1.0, -1.0], [1.0, 1.0, 1.0]]))
    metadata: dict[str, object] = {}
    config = NerfactoModelConfig(implementation="torch")
    if channels is not None:
        config = FeatureFieldModelConfig(implementation="torch")
        ref = BackboneRef("random", "none", "none")
        metadata["feature_heads"] = [HeadSpec("random", channels, has_text=False, backbone=ref)]
    torch.manual_seed(0)
    with lazy_lpips():
        model = config.setup(
            scene_box=scene_box, num_train_data=_IMAGES, metadata=metadata, device=str(device)
        )
    return model.to(device).train()


def training_step(channels: int | None, num_rays: int, device: torch.device) -> Step:
    """Builds one whole training step; None for plain Nerfacto."""
    model = _model(channels, device)
    configured = f3rm_method.config.optimizers  # Nerfacto's own, and the feature field's
    optimisers = [
        configured[name]["optimizer"].setup(parameters)
        for name, parameters in model.get_param_groups().items()
        if parameters
    ]
    batch = {"image": torch.rand(num_rays, 3, device=device)}
    if channels is not None:
        batch["feature"] = torch.randn(num_rays, channels, device=device)

    def step() -> None:
        for optimiser in optimisers:
            optimiser.zero_grad()
        outputs = model(_rays(num_rays, device))
        metrics = model.get_metrics_dict(outputs, batch)
        losses = model.get_loss_dict(outputs, batch, metrics)
        torch.stack([loss.sum() for loss in losses.values()]).sum().backward()
        for optimiser in optimisers:
            optimiser.step()

    return step


def head_steps(channels: int, num_rays: int, device: torch.device) -> tuple[Step, Step]:
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


def medians(steps: dict[str, Step], repeats: int, device: torch.device) -> dict[str, float]:
    """Times steps in turn, so that the machine's moods hit all alike; returns seconds."""
    times: dict[str, list[float]] = {name: [] for name in steps}
    for repeat in range(repeats + 1):
        for name, step in steps.items():
            _synchronise(device)
            start = time.perf_counter()
            step()
            _synchronise(device)
            if repeat:  # the first round warms up
                times[name].append(time.perf_counter() - start)
    return {name: statistics.median(values) for name, values in times.items()}


def _synchronise(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def measure(num_rays: int, repeats: int, device: torch.device) -> dict[str, object]:
    """Measures every figure; see the module's docstring."""
    result: dict[str, object] = {
        "rays": num_rays,
        "repeats": repeats,
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "device": torch.cuda.get_device_name(device)
        if device.type == "cuda"
        else platform.processor() or platform.machine(),
    }
    for channels in (384, 768, 5120):
        pair = {
            "nerfacto": training_step(None, num_rays, device),
            "f3rm": training_step(channels, num_rays, device),
        }
        seconds = medians(pair, repeats, device)
        result[f"step_ratio_{channels}"] = round(seconds["f3rm"] / seconds["nerfacto"], 3)
        result[f"step_seconds_{channels}"] = {k: round(v, 4) for k, v in seconds.items()}
    reference, ours = head_steps(768, num_rays, device)
    seconds = medians({"reference": reference, "ours": ours}, repeats, device)
    result["head_speedup_768"] = round(seconds["reference"] / seconds["ours"], 2)
    return result


def main() -> None:
    """Parses the command line, measures and prints."""
    parser = make_parser(__doc__)
    parser.add_argument("--rays", type=int, default=1024, help="rays per step")
    parser.add_argument("--repeats", type=int, default=5, help="timed steps of each kind")
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    result = measure(arguments.rays, arguments.repeats, torch.device(arguments.device))
    show(result, as_json=arguments.json)


if __name__ == "__main__":
    main()
