"""Without its extra, a part gives one error that names it; the rest works."""

import subprocess
import sys
from pathlib import Path

import pytest

from f3rm.distribution import how_to_install

REPOSITORY = Path(__file__).parents[3]
BLOCK = """
import sys
class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {blocked!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)
sys.meta_path.insert(0, Blocked())
import importlib, pkgutil
import f3rm.extract.tables
for info in pkgutil.iter_modules(f3rm.extract.tables.__path__, "f3rm.extract.tables."):
    importlib.import_module(info.name)
"""
USES = {
    ("sklearn", "probe"): """
import numpy as np
from f3rm.extract.tables.probe import Probe
Probe("knn").fit(np.eye(4), np.array([0, 1, 0, 1]))  # needs no scikit-learn
Probe().fit(np.eye(4), np.array([0, 1, 0, 1]))
""",
    ("diffusers", "vae"): """
from f3rm.recipes.image2rep import Image2Representation
Image2Representation("vae:vae@Wan-AI/Wan2.1-T2V-1.3B-Diffusers", device="cpu")
""",
    ("av", "video"): """
from pathlib import Path
from f3rm.store.video import inspect_video
inspect_video(Path("clip.mp4"))
""",
}


def run(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )


@pytest.mark.parametrize(("package", "extra"), USES)
def test_one_error_names_the_extra(package, extra):
    found = run(BLOCK.format(blocked={package}) + USES[package, extra])
    last = found.stderr.strip().splitlines()[-1]
    assert found.returncode == 1
    assert last.startswith("f3rm.backbones.optional.MissingExtraError: ")
    assert f"needs the package {package}" in last
    assert last.endswith(f"Install it: {how_to_install(extra)}.")


def test_the_toolkit_knows_neither_nerfstudio_nor_viser():
    found = run(BLOCK.format(blocked={"nerfstudio", "viser", "tinycudann"}))
    assert found.returncode == 0, found.stderr
