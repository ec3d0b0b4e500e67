"""The ns-* commands in processes of their own, with tiny-cuda-nn's stand-in installed."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.scene_fixtures import write_dataset
from tests.tcnn_fixtures import STAND_IN
from tests.test_commands import ENVIRONMENT, SMALL

pytestmark = [pytest.mark.nightly, pytest.mark.slow]

REPOSITORY = Path(__file__).parents[1]


def _run(module, *arguments, cwd, **variables):
    result = subprocess.run(
        [sys.executable, "-m", "tests.tcnn_command", module, *map(str, arguments)],
        cwd=cwd,
        env={
            **ENVIRONMENT,
            "PYTHONPATH": os.pathsep.join(map(str, (REPOSITORY, STAND_IN))),
            **variables,
        },
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    output = result.stdout + result.stderr
    assert result.returncode == 0, output[-4000:]
    return output


@pytest.mark.parametrize("broken", [False, True])
def test_training_and_evaluation_in_tiny_cuda_nn_or_without_it(tmp_path, broken):
    write_dataset(tmp_path / "data", {f"{i}.png": (36, 48) for i in range(12)})
    said = "undefined symbol: _ZN3c105ErrorC2"
    variables = {"TINYCUDANN_STANDIN_RAISES": f"ImportError: {said}"} if broken else {}
    options = (
        "--machine.device-type cpu --vis tensorboard --max-num-iterations 5 --output-dir runs "
        "--experiment-name e --timestamp t --pipeline.model.implementation auto "
        "--pipeline.datamanager.feature-type TINYCLIP"
    )
    data = ("--data", tmp_path / "data")
    words = ["f3rm-lite", *options.split(), *SMALL, *data]
    output = _run("nerfstudio.scripts.train", *words, cwd=tmp_path, **variables)
    assert "Training Finished" in output
    assert (said in output) is broken
    config = tmp_path / "runs" / "e" / "f3rm-lite" / "t" / "config.yml"
    arguments = ("--load-config", config, "--output-path", tmp_path / "metrics.json")
    _run("nerfstudio.scripts.eval", *arguments, cwd=tmp_path, **variables)
    results = json.loads((tmp_path / "metrics.json").read_text())["results"]
    assert results["psnr"] > 0
    assert -1 <= results["feature_cosine"] <= 1
