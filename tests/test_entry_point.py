"""The entry point is light and total: it must never take the other ns-* commands down."""

import os
import subprocess
import sys
import textwrap

import pytest

BLOCK = textwrap.dedent(
    """
    import sys

    class Blocker:
        names = {"open_clip", "transformers", "tinycudann"}

        def find_spec(self, name, path=None, target=None):
            if name.partition(".")[0] in self.names:
                raise ModuleNotFoundError(f"No module named {name!r} (blocked by the test)")
            return None

    sys.meta_path.insert(0, Blocker())
    """
)


@pytest.fixture
def blocked(tmp_path):
    """An environment in which every Python process lacks the optional packages and CUDA."""
    (tmp_path / "sitecustomize.py").write_text(BLOCK)
    paths = [str(tmp_path), os.environ.get("PYTHONPATH", "")]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "CUDA_VISIBLE_DEVICES": ""}


def _run(code, env, *arguments):
    return subprocess.run(
        [sys.executable, "-W", "ignore", *arguments, "-c", code],
        env=env,
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )


def test_entry_point_imports_without_optional_packages_or_cuda(blocked):
    code = """
import sys
from importlib.metadata import entry_points
methods = entry_points(group="nerfstudio.method_configs")
names = [point.load().config.method_name for point in methods if point.name.startswith("f3rm")]
assert sorted(names) == ["f3rm", "f3rm-big", "f3rm-lite"], names
import torch
assert not torch.cuda.is_initialized()
assert not {"open_clip", "transformers", "tinycudann"} & set(sys.modules)
"""
    result = _run(code, blocked)
    assert result.returncode == 0, result.stderr


def test_the_block_bites(blocked):
    assert "blocked by the test" in _run("import open_clip", blocked).stderr


@pytest.mark.parametrize("method", ["nerfacto", "f3rm-lite"])
def test_ns_train_help_stays_alive(blocked, method):
    code = f"""
import sys
sys.argv = ["ns-train", {method!r}, "--help"]
from nerfstudio.scripts.train import entrypoint
entrypoint()
"""
    result = _run(code, blocked)
    assert result.returncode == 0, result.stderr
    assert "--pipeline.model" in result.stdout


def test_extraction_leaves_nerfstudio_unloaded():
    code = """
import sys
import f3rm, f3rm.extract.standalone, f3rm.language.relevancy, f3rm.backbones.registry
assert not [name for name in sys.modules if name.partition(".")[0] in ("nerfstudio", "viser")]
"""
    result = _run(code, dict(os.environ))
    assert result.returncode == 0, result.stderr


def test_import_of_the_package_alone_loads_nothing_heavy():
    code = "import sys, f3rm; assert f3rm.__version__; assert 'torch' not in sys.modules"
    result = _run(code, dict(os.environ))
    assert result.returncode == 0, result.stderr
