"""The parts of ``gpu.py``: what a GPU must show, one function each, for a GPU and for a CPU.

A part returns its numbers, and raises :class:`WrongError` where one is wrong.
"""

import contextlib
import copy
import dataclasses
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from nerfstudio.configs.base_config import InstantiateConfig
from nerfstudio.data.datamanagers.base_datamanager import VanillaDataManagerConfig
from nerfstudio.data.dataparsers.nerfstudio_dataparser import NerfstudioDataParserConfig
from nerfstudio.engine.callbacks import TrainingCallbackLocation as Location
from nerfstudio.engine.trainer import Trainer, TrainerConfig
from nerfstudio.models.nerfacto import NerfactoModel, NerfactoModelConfig
from suite import run
from torch import Tensor

import f3rm
from f3rm.compat import lazy_lpips
from f3rm.errors import ImplementationError
from f3rm.extract.extraction import extract_features
from f3rm.f3rm_config import f3rm_lite_method, f3rm_method
from f3rm.networks.base import (
    HiddenNetwork,
    Implementation,
    NetworkConfig,
    build_network,
    choose_implementation,
)
from f3rm.scene.attach import AttachSettings, attach
from f3rm.scene.export.points import Look, Sampling, export_points
from f3rm.scene.run_loading import load_run
from f3rm.store.items import read_items
from f3rm.store.spec import resolve_feature_type
from f3rm.synthetic.truth import SceneTruth

_BATCHES = (0, 1, 7, 255, 257, 4096)
"""Numbers of points that a trunk is asked for; tiny-cuda-nn pads to 256 and refuses none."""


class WrongError(Exception):
    """A part's result is wrong; says what was expected and what was found."""


def expect(holds: bool, claim: str) -> None:  # noqa: FBT001 - reads as an assertion
    if not holds:
        raise WrongError(claim)


@dataclass(frozen=True)
class Place:
    """Where parts run, with how much work.

    Attributes:
        out: Folder of all runs and results.
        data: The generated scene.
        device: ``cuda``, or ``cpu`` for the smallest size.
        small: Whether every part does the least that it can.
    """

    out: Path
    data: Path
    device: Literal["cpu", "cuda"]
    small: bool

    @property
    def implementations(self) -> list[Implementation]:
        """Those that run here."""
        found: list[Implementation] = []
        for name in get_args(Implementation):
            with contextlib.suppress(ImplementationError):
                # "triton" falls back to torch, which shares its parameters.
                if choose_implementation(name, self.device).implementation == name:
                    found.append(name)
        return found

    @property
    def trained(self) -> Path:
        """The config.yml of the part ``train``."""
        return self.out / "runs" / "gpu" / "f3rm" / "train" / "config.yml"


def _gradients(network: HiddenNetwork, points: Tensor, target: Tensor) -> list[Tensor]:
    """Returns the hidden vectors, and the gradients of positions and parameters, on the CPU."""
    points = points.clone().requires_grad_()
    hidden = network(points)
    of = torch.autograd.grad((hidden * target).sum(), [points, *network.parameters()])
    return [tensor.detach().float().cpu() for tensor in (hidden, *of)]


def trunks(place: Place) -> dict[str, Any]:
    """Compares every implementation with torch on the CPU, and fits each to a known function."""
    torch.manual_seed(0)
    sizes = NetworkConfig(num_levels=4, log2_hashmap_size=10) if place.small else NetworkConfig()
    twin = build_network(sizes, "torch")
    torch.nn.init.normal_(next(twin.parameters()))  # a new table is too small to tell values apart
    points, target = torch.rand(4096, 3), torch.randn(4096, 64)
    expected = _gradients(twin, points, target)
    result: dict[str, Any] = {"implementations": place.implementations}
    for name in place.implementations:
        network = build_network(sizes, name).to(place.device)
        first, last = _fit(network, 20 if place.small else 300, place)
        expect(last < (first if place.small else 0.01), f"{name}: the loss is {first}, then {last}")
        result[f"{name}_fit"] = last
        for count in _BATCHES:
            hidden = network(points[:count].to(place.device))
            right = hidden.shape == (count, 64) and bool(hidden.isfinite().all())
            expect(right, f"{name}: {count} points give {tuple(hidden.shape)}, not all finite")
        if name != "tcnn":  # which has another grid; the others share their parameters
            network.load_state_dict(twin.state_dict())
            actual = _gradients(network, points.to(place.device), target.to(place.device))
            pairs = zip(actual, expected, strict=True)
            errors = [float((a - e).norm() / e.norm()) for a, e in pairs]
            expect(max(errors) < 1e-3, f"{name}: errors of values and gradients are {errors}")
            result[f"{name}_error"] = max(errors)
    return result


def _fit(network: HiddenNetwork, steps: int, place: Place) -> tuple[float, float]:
    """Fits sines of the position in mixed precision; returns the first and the last loss."""
    head = torch.nn.Linear(64, 16, bias=False).to(place.device)
    parameters = [*network.parameters(), *head.parameters()]
    optimiser = torch.optim.Adam(parameters, 5e-3, eps=1e-15, fused=True)
    scaler = torch.GradScaler(place.device, enabled=place.device == "cuda")
    rates = torch.arange(48.0, device=place.device).view(3, 16) * 0.3
    losses: list[float] = []
    for _ in range(steps):
        points = torch.rand(512 if place.small else 8192, 3, device=place.device)
        with torch.autocast(place.device, enabled=place.device == "cuda"):
            loss = (head(network(points)) - (points @ rates).sin()).square().mean()
        optimiser.zero_grad()
        scaler.scale(loss).backward()
        scaler.step(optimiser)
        scaler.update()
        losses.append(float(loss))
    return losses[0], losses[-1]


def features(place: Place) -> dict[str, Any]:
    """Extracts the same features on the device as on the CPU."""
    items = read_items(place.data)[: 2 if place.small else 8]
    (spec,) = resolve_feature_type("TINYCLIP", precision="float32")
    rows: list[Tensor] = []
    for number, device in enumerate(("cpu", place.device)):
        folder = place.out / f"features-{number}"
        sizes = {"batch_size": 1 + number, "force": True, "progress": False}
        store = extract_features(items, spec, folder=folder, device=device, **sizes)
        rows.append(store.sample(2000, seed=0))
    cosine = float(torch.nn.functional.cosine_similarity(*rows, dim=-1).min())
    expect(cosine > 0.999, f"features of {place.device} have a cosine of {cosine} to the CPU's")
    return {"images": len(items), "least_cosine": cosine}


def configuration(place: Place, name: str, steps: int, **model: Any) -> TrainerConfig:
    """Returns the configuration of a run of TINYCLIP; f3rm-lite's with a few rays if small."""
    config = copy.deepcopy((f3rm_lite_method if place.small else f3rm_method).config)
    manager: Any = config.pipeline.datamanager
    manager.data, manager.feature_type = place.data, "TINYCLIP"
    manager.feature_cache_dir = place.out / "cache"
    manager.dataparser = NerfstudioDataParserConfig(downscale_factor=1)
    if place.small:
        manager.train_num_rays_per_batch = manager.eval_num_rays_per_batch = 64
        model = {"log2_hashmap_size": 8, "feat_log2_hashmap_size": 8, **model}
    for field, value in model.items():
        setattr(config.pipeline.model, field, value)
    config.machine.device_type = place.device
    config.vis, config.max_num_iterations = "tensorboard", steps
    config.logging.local_writer.enable = False
    config.steps_per_eval_image = config.steps_per_eval_batch = 1 << 30
    config.output_dir, config.experiment_name = place.out / "runs", "gpu"
    config.method_name, config.timestamp = "f3rm", name
    return config


def nerfacto(place: Place, steps: int) -> TrainerConfig:
    """Returns the configuration of a plain Nerfacto of the same sizes."""
    config = configuration(place, "nerfacto", steps)
    parts: Any = config.pipeline
    parts.datamanager = _shared(parts.datamanager, VanillaDataManagerConfig)
    parts.model = _shared(parts.model, NerfactoModelConfig)
    parts.model.implementation = "tcnn" if "tcnn" in place.implementations else "torch"
    parts.model._target = NerfactoModel  # noqa: SLF001 - how Nerfstudio names a class
    del config.optimizers["feature_field"]
    config.method_name = "nerfacto"
    return config


def _shared(given: InstantiateConfig, plain: type[Any]) -> Any:
    names = {field.name for field in dataclasses.fields(plain)} - {"_target"}
    return plain(**{name: getattr(given, name) for name in names})


def _train(config: TrainerConfig, *, save: bool = True) -> Trainer:
    """Sets a trainer up and takes its steps, with a checkpoint at the end or without."""
    shutil.rmtree(config.get_base_dir(), ignore_errors=True)
    if save:
        config.save_config()
    with lazy_lpips():
        trainer = config.setup(local_rank=0, world_size=1)
        trainer.setup()
    if save:
        trainer.train()
        return trainer
    trainer.pipeline.train()
    for step in range(config.max_num_iterations):
        for callback in trainer.callbacks:
            callback.run_callback_at_location(step, Location.BEFORE_TRAIN_ITERATION)
        trainer.train_iteration(step)
    return trainer


def gradients(place: Place) -> dict[str, Any]:
    """Takes 20 steps with and without mixed precision; the trunk's gradients must not vanish."""
    result: dict[str, Any] = {}
    for name in place.implementations:
        for mixed in (False, True):
            count = 3 if place.small else 20
            config = configuration(place, "gradients", count, implementation=name)
            config.mixed_precision = mixed
            trunk = _train(config, save=False).pipeline.model.get_submodule("feature_field.trunk")
            found = {name: p.grad for name, p in trunk.named_parameters()}
            dead = [
                n for n, g in found.items() if g is None or not (g.isfinite().all() and g.any())
            ]
            expect(not dead, f"{name}, mixed precision {mixed}: no finite gradient of {dead}")
            result[f"{name}{'_mixed' * mixed}"] = len(found)
    return result


def train(place: Place) -> dict[str, Any]:
    """Goes from photographs to a first answer."""
    shutil.rmtree(place.out / "cache", ignore_errors=True)
    steps = 5 if place.small else 1000
    start = time.perf_counter()
    trainer = _train(configuration(place, "train", steps))
    trained = time.perf_counter()
    scene = f3rm.load(
        place.trained, device=place.device, surface_rays=500 if place.small else 1 << 16
    )
    text = SceneTruth.read(place.data).queries[0].text
    found = scene.find(text)
    answered = time.perf_counter()
    expect(place.small or len(found) > 0, f"{text!r} is in the scene and was not found")
    batch = trainer.pipeline.get_train_loss_dict(steps)[2]
    cosine = float(batch["feature_cosine"])
    expect(place.small or cosine > 0.8, f"the features' cosine after {steps} steps is {cosine}")
    return {
        "steps": steps,
        "implementation": getattr(trainer.pipeline.model.config, "implementation", ""),
        "seconds_to_answer": answered - start,
        "seconds_of_answer": answered - trained,
        "found": len(found),
        "feature_cosine": cosine,
    }


def answers(place: Place) -> dict[str, Any]:
    """Asks the trained run by the Python calls, and exports it."""
    scene = f3rm.load(
        place.trained, device=place.device, surface_rays=500 if place.small else 1 << 16
    )
    for count in (0, 1, 10_000):
        hidden = scene.features(torch.rand(count, 3) - 0.5)
        right = (
            len(hidden) == count and hidden.dtype == torch.float32 and hidden.device.type == "cpu"
        )
        expect(right and bool(hidden.isfinite().all()), f"features of {count} points are {hidden}")
    scores = scene.similarity(torch.rand(100, 3) - 0.5, "ball")
    expect(bool(((scores >= 0) & (scores <= 1)).all()), f"scores are not in [0, 1]: {scores}")
    rays = 500 if place.small else 20_000
    result: dict[str, Any] = {}
    with contextlib.suppress(f3rm.F3rmError) if place.small else contextlib.nullcontext():
        # A run of few steps may have no surface.
        written = export_points(scene, place.out / "points.ply", Sampling(rays=rays), Look())
        expect(len(written) > rays / 4, f"{rays} rays gave {len(written)} points")
        result["points"] = len(written)
    return result


def resume(place: Place) -> dict[str, Any]:
    """Goes on with the trained run."""
    saved = place.trained.parent / "nerfstudio_models"
    (checkpoint,) = saved.glob("*.ckpt")
    done = int(checkpoint.stem.rpartition("-")[2]) + 1
    config = configuration(place, "resumed", 3)  # more, as Nerfstudio counts
    config.load_dir = saved
    trainer = _train(config)
    (latest,) = (config.get_base_dir() / "nerfstudio_models").glob("*.ckpt")
    expect(latest.stem.endswith(f"{done + 2}"), f"{latest.name} does not end at step {done + 2}")
    del trainer
    return {"steps": done + 3}


def attached(place: Place) -> dict[str, Any]:
    """Attaches features to a plain Nerfacto, whose colours stay."""
    config = nerfacto(place, 3 if place.small else 100)
    _train(config)
    saved = config.get_base_dir() / "config.yml"
    settings = AttachSettings("TINYCLIP", steps=3 if place.small else 100)
    made = attach(saved, settings, out=place.out / "attached", device=place.device)
    pictures: list[Tensor] = []
    for path in (saved, made.config_path):
        run = load_run(path, device=torch.device(place.device))
        camera = run.train.cameras[0:1].to(run.model.device)
        camera.rescale_output_resolution(8 / float(camera.height[0, 0]))
        pictures.append(run.model.get_outputs_for_camera(camera)["rgb"])
    expect(torch.equal(*pictures), "attaching changed the colours")
    return {"heads": list(made.heads), "cosines": dict(made.cosines)}


def steps(place: Place) -> dict[str, Any]:
    """Measures a training step beside Nerfacto's, by implementation."""
    sizes = "--rays 32 --repeats 1 --heads 768 --no-memory"
    sizes = sizes if place.small else "--rays 4096 --repeats 10 --heads 768"
    result: dict[str, Any] = {}
    for name in place.implementations:
        found = run("step", f"{sizes} --implementation {name}", place.device)["result"]
        for key in ("features_ratio_768", "step_seconds_768", "peak_mib"):
            result[f"{name}_{key}"] = found[key]
    return result


def frames(place: Place) -> dict[str, Any]:
    """Measures a similarity frame beside an RGB frame."""
    sizes = "--side 4 --repeats 1 --no-memory" if place.small else "--side 256 --repeats 5"
    return run("render", sizes, place.device)["result"]


PARTS: dict[str, tuple[float, Callable[[Place], dict[str, Any]]]] = {
    "trunks": (60, trunks),
    "features": (45, features),
    "gradients": (75, gradients),
    "train": (150, train),
    "answers": (60, answers),
    "resume": (45, resume),
    "attach": (75, attached),
    "steps": (90, steps),
    "frames": (60, frames),
}
"""Seconds that a part may take on a GPU, and what it does; what must be right comes first."""
