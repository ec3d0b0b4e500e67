"""Every bad argument from Python is an F3rmError, raised before anything long is begun.

Asked in a process of its own: the tests' checks of types would refuse some of them first.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

CASES = {
    "f3rm.load(5)": "A file or folder must be a path, got 5",
    "f3rm.load(run, surface_rays=0)": "surface_rays must be a number above 0, got 0",
    "f3rm.load(run, device='gpu')": "--device must be auto, cpu, cuda or cuda:N, got 'gpu'",
    "scene.find(5)": "A query must be a phrase, or a list of these, got 5",
    "scene.find(['red', 5])": "A query must be a phrase, or a list of these",
    "scene.find('red', temperature=0)": "temperature must be a number above 0, got 0",
    "scene.find('red', temperature='warm')": "temperature must be a number above 0, got 'warm'",
    "scene.find('red', negatives='table')": "negatives must be a list of phrases, got 'table'",
    "scene.find('red', threshold=-1)": "threshold must be a number above -1, got -1",
    "scene.find('red', threshold=float('nan'))": "threshold must be a number above -1, got nan",
    "scene.find('red', smallest=-1)": "smallest must be a number above 0, got -1",
    "scene.find('red', up=(0, 0, 0))": "up must be a direction (x, y, z), not zero",
    "scene.find('red', up='north')": "up must be a direction (x, y, z), not zero, got 'north'",
    "scene.find('red', frame='bogus')": "The frame must be one of",
    "scene.find('red', head='bogus')": "There is no head 'bogus'",
    "scene.find('red', rule='bogus')": "rule must be one of",
    "scene.find(like=('nowhere', (3, 4)))": "There is no view 'nowhere'",
    "scene.find(like=(scene.views()[0], ('a', 'b')))": "An example must be (camera or view, (x,",
    "scene.like([[0, 0, 0]], temperature=-1)": "temperature must be a number above 0, got -1",
    "scene.similarity(points, 5)": "A question must be a phrase or from Scene.like, got 5",
    "scene.similarity('here', 'red')": "points must be numbers of shape (points, 3)",
    "scene.identify(points, 5)": "A query must be a phrase, or a list of these, got 5",
    "scene.features(points, 'bogus')": "The scene has the heads",
    "scene.cameras('bogus')": "split must be 'train' or 'eval', got 'bogus'",
    "scene.views('bogus')": "split must be 'train' or 'eval', got 'bogus'",
    "scene.surface_points(-1)": "num_rays must be a number above 0, got -1",
    "scene.surface_points(10, spacing=-1)": "spacing must be a number above 0, got -1",
    "scene.render(5)": "camera must be an f3rm.Camera or one of scene.cameras(), got 5",
    "scene.render(scene.cameras()[0], 5)": "outputs must be a list of names, got 5",
    "scene.render(scene.cameras()[0], ['rgb'], query=5)": "A query must be a phrase, or a list",
    "scene.render(scene.cameras()[0], ['mask'], query='red', thresholds=[-1])": (
        "thresholds must be a number above -1, got -1"
    ),
    "f3rm.Camera(1, pose, (4, 6))": "K must be 3 x 3 finite numbers, got 1",
    "f3rm.Camera(pose[:3, :3], pose, (4, 6))": "K must be [[fx, 0, cx], [0, fy, cy], [0, 0, 1]]",
    "f3rm.Camera(K, 2 * pose, (4, 6))": "camera_to_world must rotate and translate only",
    "f3rm.Camera(K, pose[:2], (4, 6))": "camera_to_world must be 3 x 4 or 4 x 4 finite numbers",
    "f3rm.Camera(K, pose, (4, 6.5))": "size must be (height, width) in whole pixels",
    "f3rm.Camera(K, pose, (4, 6), convention='ros')": "convention must be one of opencv, nerf",
    "f3rm.Camera(K, pose, (4, 6), distortion=[1, 2, 3])": "distortion must be 4 or 5 finite",
}
SCRIPT = """
import json, sys, warnings
warnings.filterwarnings("ignore")
import numpy as np
import f3rm
from f3rm.backbones import registry
from f3rm.store import spec
from tests.viewer.colour_backbone import ADAPTERS, SPECS
spec.PRESETS.update(SPECS)
registry._SHIPPED.update(ADAPTERS)
run, points, pose = sys.argv[1], [[0.0, 0.0, 0.0]], np.diag([-1.0, 1.0, -1.0, 1.0])
K = [[5, 0, 3], [0, 5, 2], [0, 0, 1]]
scene = f3rm.load(run, device="cpu")
found = {}
for case in json.loads(sys.stdin.read()):
    try:
        eval(case)
    except f3rm.F3rmError as error:
        found[case] = str(error)
    except Exception as error:
        found[case] = f"{type(error).__name__}: {error}"
    else:
        found[case] = "no error"
assert "_sampled" in vars(scene) and scene._sampled.cache_info().misses == 0, "rays were cast"
print(json.dumps(found))
"""


@pytest.fixture(scope="module")
def said(run):
    result = subprocess.run(
        [sys.executable, "-c", SCRIPT, run.config],
        input=json.dumps(list(CASES)),
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        check=False,
        timeout=600,
    )
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout.splitlines()[-1])


@pytest.mark.parametrize("case", CASES)
def test_a_bad_argument_is_an_error_that_says_what_is_right(said, case):
    assert said[case].startswith(CASES[case])
