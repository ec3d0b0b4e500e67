"""What ``f3rm doctor`` looks at: packages, implementation, weights, hardware. Sends no request."""

import importlib.util
import json
import os
import platform
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, entry_points, version
from pathlib import Path

import torch

import f3rm
from f3rm.backbones.at_hand import weights_at_hand
from f3rm.distribution import DISTRIBUTION, EXTRAS, namesake_beside
from f3rm.errors import F3rmError
from f3rm.networks import base
from f3rm.store.placement import available_ram
from f3rm.store.spec import PRESETS

_METHOD = "f3rm.f3rm_config:f3rm_method"
_GIB = 1 << 30
_BROWSERS = ("chromium", "chromium-browser", "google-chrome", "firefox")
_IMPORT_ERRORS = (ImportError, AttributeError, RuntimeError, OSError, TypeError, ValueError)

REQUIRED: Mapping[str, str] = {
    "nerfstudio": "training, viewing, rendering",
    "torch": "everything",
    "torchvision": "Nerfstudio, torchvision models",
    "transformers": "DINO, DINOv2, RoboPoint",
    "open_clip_torch": "CLIP",
    "viser": "the viewer",
    "open3d": "generated scenes, meshes",
}
OPTIONAL: Mapping[str, str] = {
    "tinycudann": "faster hash grids on a GPU (docs/install.md)",
    "numba": "faster hash grids on a CPU",
    "ray": "f3rm extract --engine ray",
    "scikit-learn": "f3rm probe",
    "diffusers": "video autoencoders",
    "av": "reading videos",
}


@dataclass(frozen=True)
class Package:
    """A distribution: its version, None where it is missing, and what needs it."""

    version: str | None
    purpose: str
    required: bool


@dataclass(frozen=True)
class Gpu:
    """A CUDA device."""

    name: str
    memory_gib: float
    compute_capability: str


@dataclass(frozen=True)
class Machine:
    """What the computer has.

    Attributes:
        python: Python's version.
        gpus: The GPUs that torch sees.
        cores: Processor cores that this process may use.
        ram_gib: RAM that is available without swapping; None where the system does not say.
        ffmpeg: The program that writes videos, if there is one.
        browser: A browser for the viewer, if there is one.
    """

    python: str
    gpus: tuple[Gpu, ...]
    cores: int
    ram_gib: float | None
    ffmpeg: str | None
    browser: str | None


@dataclass(frozen=True)
class Implementation:
    """What ``implementation: auto`` runs here, and why."""

    chosen: str
    device: str
    reason: str


@dataclass(frozen=True)
class Findings:
    """All that was found.

    Attributes:
        f3rm: Version, folder, and the distribution that was installed.
        packages: By the name of the distribution.
        implementation: Of hash grids.
        weights: By feature type: the path, None if they would be downloaded, or what is wrong.
        machine: The computer.
        problems: Why ``ns-train f3rm`` cannot run here; empty if it can.
        advice: What to do about the problems.
    """

    f3rm: Mapping[str, str | None]
    packages: Mapping[str, Package]
    implementation: Implementation
    weights: Mapping[str, str | None]
    machine: Machine
    problems: tuple[str, ...] = ()
    advice: tuple[str, ...] = field(default=())


def examine() -> Findings:
    """Looks at this machine; takes seconds, because plugin and models' packages are imported."""
    packages = {
        name: Package(_version(name), purpose, required=group is REQUIRED)
        for group in (REQUIRED, OPTIONAL)
        for name, purpose in group.items()
    }
    machine = _machine()
    found = list(_problems(packages, machine))
    return Findings(
        f3rm={
            "version": f3rm.__version__,
            "folder": str(Path(f3rm.__file__).parent),
            "installed": f"{DISTRIBUTION} {own}" if (own := _version(DISTRIBUTION)) else None,
        },
        packages=packages,
        implementation=_implementation(),
        weights={name: _weights(name) for name in PRESETS},
        machine=machine,
        problems=tuple(problem for problem, _ in found),
        advice=tuple(advice for _, advice in found),
    )


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _machine() -> Machine:
    ram = available_ram()
    return Machine(
        python=platform.python_version(),
        gpus=tuple(_gpus()),
        cores=len(os.sched_getaffinity(0))
        if hasattr(os, "sched_getaffinity")
        else os.cpu_count() or 1,
        ram_gib=round(ram / _GIB, 1) if ram else None,
        ffmpeg=shutil.which("ffmpeg"),
        browser=next(filter(None, map(shutil.which, _BROWSERS)), None),
    )


def _gpus() -> Iterator[Gpu]:
    if not torch.cuda.is_available():
        return
    for index in range(torch.cuda.device_count()):
        found = torch.cuda.get_device_properties(index)
        capability = f"{found.major}.{found.minor}"
        yield Gpu(found.name, round(found.total_memory / _GIB, 1), capability)


def _implementation() -> Implementation:
    """Asks what ``auto`` chooses on the device that training would use."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    choice = base.choose_implementation("auto", device)
    reason = choice.reason
    if device == "cpu":
        fast = importlib.util.find_spec("numba") is not None
        reason = f"there is no GPU; {'in machine code, by numba' if fast else 'slow without numba'}"
    return Implementation(choice.implementation, device, reason)


def _weights(feature_type: str) -> str | None:
    try:
        path = weights_at_hand(PRESETS[feature_type].backbone)
    except (F3rmError, json.JSONDecodeError, KeyError, *_IMPORT_ERRORS) as error:
        return f"cannot be looked for: {error}"
    return None if path is None else str(path)


def _problems(packages: Mapping[str, Package], machine: Machine) -> Iterator[tuple[str, str]]:
    """Yields why ``ns-train f3rm`` cannot run here, each with what to do."""
    missing = [name for name, each in packages.items() if each.required and each.version is None]
    if missing:
        yield f"{', '.join(missing)} is missing", f"pip install {' '.join(missing)}"
    namesake = namesake_beside()
    if namesake is not None:
        yield "another project's f3rm is installed too", namesake
    else:
        yield from _plugin_problems()
    if not machine.gpus:
        yield (
            f"PyTorch {torch.__version__} sees no CUDA GPU",
            "on a CPU: ns-train f3rm-lite --machine.device-type cpu",
        )


def _plugin_problems() -> Iterator[tuple[str, str]]:
    methods = entry_points(group="nerfstudio.method_configs", name="f3rm")
    again = "install f3rm again (docs/install.md)"
    own = [method for method in methods if method.value == _METHOD]
    if not own:
        yield "Nerfstudio does not know the method f3rm", again
        return
    try:
        own[0].load()
    except _IMPORT_ERRORS as error:
        yield f"the plugin cannot be imported ({error})", again


def extra_of(package: str) -> str | None:
    """Returns the extra that installs a package."""
    extras = (extra for extra, requirement in EXTRAS.items() if requirement.startswith(package))
    return next(extras, None)
