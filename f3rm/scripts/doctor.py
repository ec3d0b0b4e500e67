"""``f3rm doctor``: reports what is installed, what would run, and why training could not.

It sends no request to the network.
"""

import importlib.util
import json
import os
import platform
import shutil
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from importlib.metadata import PackageNotFoundError, entry_points, version
from pathlib import Path

import torch

import f3rm
from f3rm.backbones.at_hand import weights_at_hand
from f3rm.distribution import DISTRIBUTION, EXTRAS, how_to_install, namesake_beside
from f3rm.errors import F3rmError
from f3rm.networks import base
from f3rm.scene.open3d_library import Open3dError, require_open3d
from f3rm.scripts.command import Command
from f3rm.store.placement import available_ram
from f3rm.store.spec import PRESETS

_METHOD = "f3rm.f3rm_config:f3rm_method"
_GIB = 1 << 30
_WIDTH = 18
"""Columns of the report's names."""
_BROWSERS = ("chromium", "chromium-browser", "google-chrome", "firefox")
# A package that is installed but broken (another CUDA, another torch) raises any of these.
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
    """A distribution: its version, None where it is missing, and its purpose.

    ``trouble`` says why an installed one cannot be imported.
    """

    version: str | None
    purpose: str
    required: bool
    trouble: str | None = None


@dataclass(frozen=True)
class Gpu:
    """A CUDA device."""

    name: str
    memory_gib: float
    compute_capability: str


@dataclass(frozen=True)
class Machine:
    """The computer.

    Attributes:
        python: Version of Python.
        gpus: The GPUs that torch sees.
        cores: Processor cores that this process may use.
        ram_gib: RAM available without swapping, in GiB; None where the system does not say.
        ffmpeg: Path of the program that writes videos; None without one.
        browser: Path of a browser for the viewer; None without one.
    """

    python: str
    gpus: tuple[Gpu, ...]
    cores: int
    ram_gib: float | None
    ffmpeg: str | None
    browser: str | None


@dataclass(frozen=True)
class Implementation:
    """The implementation that ``implementation: auto`` chooses here, and the reason."""

    chosen: str
    device: str
    reason: str


@dataclass(frozen=True)
class Findings:
    """The content of the report; ``--json`` prints its fields.

    Attributes:
        f3rm: Version, folder, and the installed distribution.
        packages: Packages by the name of their distribution.
        implementation: Implementation of hash grids.
        weights: Path of each feature type's weights, None if they would be downloaded, or an error.
        machine: The computer.
        problems: Reasons why ``ns-train f3rm`` cannot run here; empty if it can.
        advice: One piece of advice per problem.
    """

    f3rm: Mapping[str, str | None]
    packages: Mapping[str, Package]
    implementation: Implementation
    weights: Mapping[str, str | None]
    machine: Machine
    problems: tuple[str, ...] = ()
    advice: tuple[str, ...] = ()


class UnfitError(F3rmError):
    """``ns-train f3rm`` cannot run on this machine."""


@dataclass
class Doctor(Command):
    """Report what is installed, what would run, and what this machine lacks; needs no network.

    The exit code is 1 if ns-train f3rm cannot run here; the last line says why and what to do.
    """

    json: bool = False
    """Print JSON."""

    def run(self) -> None:
        """Prints the report.

        Raises:
            UnfitError: If ``ns-train f3rm`` cannot run here.
        """
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # other packages warn as they are imported
            found = examine()
        if self.json:
            print(json.dumps({**asdict(found), "can_train": not found.problems}, indent=2))
        else:
            print("\n".join(_report(found)))
        if found.problems:
            msg = (
                f"ns-train f3rm cannot run here: {'; '.join(found.problems)}. "
                f"What to do: {'; '.join(found.advice)}"
            )
            raise UnfitError(msg)


def _report(found: Findings) -> list[str]:
    own = found.f3rm
    lines = [_row("f3rm", f"{own['version']} in {own['folder']}")]
    if own["installed"] is None:
        lines.append(_row("", "not installed under its name f3rm-fields (docs/install.md)"))
    lines += [_row(name, _package(name, each)) for name, each in found.packages.items()]
    chosen = found.implementation
    lines += ["", *_machine_rows(found.machine)]
    lines += [_row("hash grids", f"{chosen.chosen} on {chosen.device}: {chosen.reason}"), ""]
    for name, path in found.weights.items():
        lines.append(_row(name, path or "not here; downloaded when first used"))
    if not found.problems:
        lines += ["", "ns-train f3rm can run here."]
    return lines


def _package(name: str, package: Package) -> str:
    if package.version is not None:
        return package.version + (f". {package.trouble}" if package.trouble else "")
    extra = next((extra for extra, wanted in EXTRAS.items() if wanted.startswith(name)), None)
    how = f"; {how_to_install(extra)}" if extra else ""
    return f"missing: {package.purpose}{how}"


def _machine_rows(machine: Machine) -> list[str]:
    gpus = [
        f"{gpu.name}, {gpu.memory_gib} GiB, compute capability {gpu.compute_capability}"
        for gpu in machine.gpus
    ]
    ram = "unknown" if machine.ram_gib is None else f"{machine.ram_gib} GiB available"
    return [
        _row("Python", machine.python),
        *(_row("GPU", gpu) for gpu in gpus or ["none"]),
        _row("cores", str(machine.cores)),
        _row("RAM", ram),
        _row("ffmpeg", machine.ffmpeg or "missing: videos (apt-get install ffmpeg)"),
        _row("browser", machine.browser or "none on this machine; any browser shows the viewer"),
    ]


def _row(name: str, value: str) -> str:
    return f"{name.ljust(_WIDTH)}{value}"


def examine() -> Findings:
    """Examines this machine; takes seconds, because it imports the plugin and models' packages."""
    packages = {
        name: Package(_version(name), purpose, required=group is REQUIRED)
        for group in (REQUIRED, OPTIONAL)
        for name, purpose in group.items()
    }
    packages["open3d"] = replace(packages["open3d"], trouble=_trouble_of_open3d())
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


def _trouble_of_open3d() -> str | None:
    """Returns why Open3D cannot be imported: servers often lack system libraries that it needs."""
    try:
        require_open3d("Open3D, which renders scenes and meshes")
    except Open3dError as error:
        return str(error)
    return None


def _machine() -> Machine:
    ram = available_ram()
    return Machine(
        python=platform.python_version(),
        gpus=tuple(_gpus()),
        # macOS and Windows have no affinity.
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
    """Returns the choice of ``auto`` on the device that training would use."""
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
        return f"cannot be looked up: {error}"
    return None if path is None else str(path)


def _problems(packages: Mapping[str, Package], machine: Machine) -> Iterator[tuple[str, str]]:
    """Yields the reasons why ``ns-train f3rm`` cannot run here, each with advice."""
    missing = [name for name, each in packages.items() if each.required and each.version is None]
    if missing:
        yield f"{', '.join(missing)} is missing", f"pip install {' '.join(missing)}"
    namesake = namesake_beside()
    if namesake is not None:
        # The plugin may be the other project's: importing it would only confuse.
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
