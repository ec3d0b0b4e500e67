"""PE where timm and open_clip are new enough, and the one error where they are not."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from f3rm.backbones import load_backbone
from f3rm.backbones.registry import newer_packages
from f3rm.errors import BackboneUnavailableError
from f3rm.store.spec import PRESETS

ROOT = Path(__file__).parents[3]


def test_with_the_packages_that_nerfstudio_pins_one_line_says_what_to_install():
    try:
        from timm.layers import apply_rot_embed_cat  # noqa: F401, PLC0415  # pyright: ignore[reportMissingImports]
    except ImportError:
        said = r'pip install --no-deps -U "timm>=1\.0\.17" "open_clip_torch>=3"'
        with pytest.raises(BackboneUnavailableError, match=said):
            load_backbone(PRESETS["PE"].backbone)
    else:
        pytest.skip("timm is new enough here")


@pytest.mark.nightly
def test_pe_passes_its_tests_with_newer_packages(tmp_path):
    """They are installed into a folder of their own, before this environment's on the path."""
    target = tmp_path / "newer"
    install = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target"]
    subprocess.run([*install, str(target), *newer_packages()], check=True)
    environment = {**os.environ, "PYTHONPATH": f"{target}{os.pathsep}{ROOT}"}
    file = Path(__file__).with_name("test_pe.py")
    command = [sys.executable, "-m", "pytest", "-q", str(file)]
    done = subprocess.run(
        command, env=environment, cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout[-3000:]
    assert " skipped" not in done.stdout
