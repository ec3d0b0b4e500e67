"""The examples run as a user runs them: each in a process of its own, in order, in one folder."""

import ast
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.scene_fixtures import need_raycaster
from tests.test_public_names import PACKAGES

ROOT = Path(__file__).parents[1]
EXAMPLES = sorted((ROOT / "examples").glob("*.py"))
NUMBERED = [path for path in EXAMPLES if path.name[0].isdigit()]
"""Those that need no data of other systems; tests/systems runs the others."""
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
SMALL = {  # few steps on thumbnails: enough for surfaces, not for right answers
    "01_train": "--steps 120 --views 6 --height 48 --width 64",
    "02_ask": "--rays 2000",
    "03_boxes": "--rays 2000",
    "04_export": "--rays 4000 --views 3 --height 48",
    "05_extract": "--size 64",
    "06_backbone": "",
    "07_splat": "--rays 4000",
}


@pytest.fixture(scope="module")
def ran(tmp_path_factory):
    """The folder in which all examples have run, and what each of them printed."""
    need_raycaster()
    folder, printed = tmp_path_factory.mktemp("examples"), {}
    paths = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = {
        **os.environ,
        "CUDA_VISIBLE_DEVICES": "",
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": os.pathsep.join(paths),
        "PYTHONWARNINGS": "ignore",
    }
    for path in NUMBERED:
        done = subprocess.run(
            [sys.executable, str(path), *SMALL[path.stem].split()],
            cwd=folder,
            env=environment,
            capture_output=True,
            text=True,
            check=False,
            timeout=900,
        )
        assert done.returncode == 0, f"{path.name}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
        printed[path.stem] = done.stdout
    return folder, printed


@pytest.mark.slow
def test_a_run_is_trained_and_asked(ran):
    folder, printed = ran
    run = folder / "outputs" / "tabletop" / "f3rm-lite" / "run"
    assert (run / "config.yml").is_file()
    assert list((run / "nerfstudio_models").glob("*.ckpt"))
    assert printed["01_train"].endswith("Trained outputs/tabletop/f3rm-lite/run\n")
    assert re.search(r"^orange cone: \d+ found$", printed["02_ask"], re.MULTILINE)
    assert re.search(
        r"^  best of \d+ surface points: \d\.\d\d at \[.*\] m$", printed["02_ask"], re.M
    )


@pytest.mark.slow
def test_boxes_points_features_and_a_mesh_are_written(ran):
    folder, printed = ran
    boxes = json.loads((folder / "boxes.json").read_text())
    assert boxes["frame"] == "metres"
    assert [answer["query"] for answer in boxes["queries"]] == ["orange cone", "pink bottle"]
    assert printed["03_boxes"].endswith("Wrote boxes.json\n")
    assert "128 channels, in metres\n" in printed["04_export"]
    files = ["features.safetensors", "mesh.ply", "points.ply"]
    if "No mesh: The mesh has no triangles." in printed["04_export"]:  # a matter of few steps
        files.remove("mesh.ply")
    assert f"Wrote {', '.join(files)} to export\n" in printed["04_export"]
    cloud = (folder / "export" / "points.ply").read_bytes()
    header = re.search(rb"^element vertex (\d+)$", cloud, re.MULTILINE)
    assert header is not None
    assert int(header[1]) > 10


@pytest.mark.slow
def test_taps_are_extracted_by_a_shipped_backbone_and_by_one_of_your_own(ran):
    folder, printed = ran
    lines = printed["05_extract"].splitlines()
    assert lines[0] == "6 images in features"
    assert "-1|dense(maskclip)|adaptive_avg(6,8): (6, 6, 8, 128)" in lines
    assert "-1|dense(maskclip)|mean: (6, 128)" in lines
    assert lines[-1] == "The first of a training loop: (128,)"
    assert re.fullmatch(
        r"feature maps \(6, \d+, \d+, 6\), means \(6, 6\)\n", printed["06_backbone"]
    )
    assert (folder / "statistics" / "all.items.json").is_file()


@pytest.mark.slow
def test_a_run_becomes_a_splat_that_answers(ran):
    folder, printed = ran
    assert (folder / "splat.ply").is_file()
    assert (folder / "splat.tinyclip.safetensors").is_file()
    certainty = "found|uncertain|absent|unknown word"
    answered = rf"^(orange cone|pink bottle): \d+ found, ({certainty})$"
    assert len(re.findall(answered, printed["07_splat"], re.MULTILINE)) == 2


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_an_example_is_short_and_imports_public_names_only(path):
    source = path.read_text(encoding="utf-8")
    assert source.count("\n") <= 60
    tree = ast.parse(source)
    assert f"python examples/{path.name}" in (ast.get_docstring(tree) or "")
    imports = [node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]
    modules = {node.module or "" for node in imports} | {
        name.name for node in ast.walk(tree) if isinstance(node, ast.Import) for name in node.names
    }
    ours = {module for module in modules if module.partition(".")[0] == "f3rm"}
    assert ours
    assert ours <= set(PACKAGES)
    names = [name.name for node in imports for name in node.names]
    assert not [name for name in (*names, *".".join(modules).split(".")) if name.startswith("_")]


def test_the_examples_are_named_on_the_pages():
    pages = "\n".join(page.read_text(encoding="utf-8") for page in PAGES)
    assert len(NUMBERED) == 7
    assert [path.stem for path in NUMBERED] == sorted(SMALL)
    assert [path.name for path in EXAMPLES if f"examples/{path.name}" not in pages] == []
