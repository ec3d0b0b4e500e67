"""``f3rm doctor``: what is installed, what would run, and why training could not."""

import json
import warnings
from dataclasses import asdict, dataclass

from f3rm.distribution import how_to_install
from f3rm.errors import F3rmError
from f3rm.scripts.command import Command
from f3rm.scripts.doctor_findings import Findings, Machine, Package, examine, extra_of

_WIDTH = 18


class UnfitError(F3rmError):
    """``ns-train f3rm`` cannot run on this machine."""


@dataclass
class Doctor(Command):
    """Say what is installed, what would run, and what this machine lacks; needs no network.

    Exit code 1 where ns-train f3rm could not run; the last line says why, and what could.
    """

    json: bool = False
    """Print JSON."""

    def run(self) -> None:
        """Prints what was found.

        Raises:
            UnfitError: If ``ns-train f3rm`` cannot run here.
        """
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of other packages, as they are imported
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
    lines += ["", *_machine(found.machine)]
    lines += [_row("hash grids", f"{chosen.chosen} on {chosen.device}: {chosen.reason}"), ""]
    for name, path in found.weights.items():
        lines.append(_row(name, path or "not here; downloaded when first used"))
    if not found.problems:
        lines += ["", "ns-train f3rm can run here."]
    return lines


def _package(name: str, package: Package) -> str:
    if package.version is not None:
        return package.version
    extra = extra_of(name)
    how = f"; {how_to_install(extra)}" if extra else ""
    return f"missing: {package.purpose}{how}"


def _machine(machine: Machine) -> list[str]:
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
