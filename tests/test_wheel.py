"""The wheel installs without the extras, and Nerfstudio then lists its method."""

import re
import shutil
import subprocess
import sys
import venv
import zipfile
from importlib.metadata import Distribution, distribution
from pathlib import Path

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).parents[1]
EXTRAS = ("numba", "ray", "diffusers", "hydra")
"""Modules of the extras that no requirement of f3rm brings; sklearn and av come with Nerfstudio."""
LOOK = f"""
import importlib.util, sys
import f3rm.f3rm_config
print(f3rm.f3rm_config.__file__)
print([name for name in {EXTRAS} if importlib.util.find_spec(name)])
from nerfstudio.scripts.train import entrypoint
sys.argv = ["ns-train", "f3rm", "--help"]
entrypoint()
"""


def _run(*words):
    done = subprocess.run(
        [*map(str, words)],
        capture_output=True,
        text=True,
        check=False,
        timeout=1100,  # pytest ends a run after 1,200
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """The wheel, built from a copy: setuptools writes into the folder that it builds."""
    folder = tmp_path_factory.mktemp("wheel")
    shutil.copytree(
        ROOT / "f3rm", folder / "f3rm", ignore=shutil.ignore_patterns("__pycache__", "*.so")
    )
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, folder)
    offline = ("--no-index", "--no-build-isolation", "--no-deps")
    _run(sys.executable, "-m", "pip", "wheel", *offline, "--wheel-dir", folder / "dist", folder)
    (built,) = (folder / "dist").glob("*.whl")
    return built


def _needed(name, found=None):
    """Returns what f3rm's requirements bring, without extras, from this environment."""
    found = {} if found is None else found
    for line in distribution(name).requires or []:
        wanted = Requirement(line)
        key = re.sub(r"[-_.]+", "-", wanted.name).lower()
        if key not in found and (wanted.marker is None or wanted.marker.evaluate({"extra": ""})):
            found[key] = distribution(wanted.name)
            _needed(wanted.name, found)
    return found


def _link(needed: Distribution, folder: Path) -> None:
    """Makes a distribution's modules appear in an environment."""
    for name in {file.parts[0] for file in needed.files or []} - {"..", "__pycache__"}:
        place = Path(str(needed.locate_file(name)))
        if place.exists() and not (folder / name).exists():
            (folder / name).symlink_to(place)


def _look(python):
    module, extras, help_text = _run(python, "-I", "-W", "ignore", "-c", LOOK).split("\n", 2)
    assert Path(module).is_relative_to(python.parents[1])
    assert extras == "[]"
    assert "--pipeline.datamanager.feature-type" in help_text


def test_the_wheel_holds_the_package_and_its_data(wheel):
    names = zipfile.ZipFile(wheel).namelist()
    assert "f3rm/backbones/tinyclip/open_clip_model.safetensors" in names
    assert "f3rm/recipes/vissl_configs/defaults.yaml" in names
    assert "f3rm/py.typed" in names
    modules = {path.relative_to(ROOT).as_posix() for path in (ROOT / "f3rm").rglob("*.py")}
    assert modules <= set(names)
    assert {name.partition("/")[0] for name in names} - {"f3rm"} == {
        f"{wheel.name.rsplit('-', 3)[0]}.dist-info"
    }


@pytest.mark.slow
def test_it_works_beside_what_it_requires_and_nothing_else(wheel, tmp_path):
    """An environment of links in place of three gigabytes of downloads."""
    venv.create(tmp_path / "env", with_pip=False)
    (packages,) = (tmp_path / "env" / "lib").glob("python*/site-packages")
    for needed in _needed("f3rm-fields").values():
        _link(needed, packages)
    python = tmp_path / "env" / "bin" / "python"
    pip = (sys.executable, "-m", "pip", "--python", python)
    _run(*pip, "install", "--no-index", "--no-deps", wheel)
    _look(python)


@pytest.mark.slow
@pytest.mark.nightly
def test_pip_installs_it_without_extras(wheel, tmp_path):
    venv.create(tmp_path / "env", with_pip=True)
    python = tmp_path / "env" / "bin" / "python"
    constraints = ROOT / "constraints.txt"
    _run(python, "-m", "pip", "install", "--quiet", "-c", constraints, wheel)
    _look(python)
