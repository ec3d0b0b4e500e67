"""The notebook runs on a CPU: with few steps on thumbnails, and without installing anything."""

import ast
import json
import os
import re
import sys
from pathlib import Path

import nbclient
import nbformat
import pytest

from tests.scene_fixtures import need_raycaster
from tests.test_public_names import PACKAGES

ROOT = Path(__file__).parents[1]
NOTEBOOK = ROOT / "examples" / "f3rm.ipynb"
SMALL = {"STEPS": 120, "VIEWS, HEIGHT, WIDTH": (6, 48, 64)}


def _read():
    return nbformat.read(NOTEBOOK, as_version=4)


def _tagged(notebook, tag):
    (cell,) = [cell for cell in notebook.cells if tag in cell.metadata.get("tags", [])]
    return cell


def test_it_is_valid_keeps_no_results_and_imports_public_names_only():
    notebook = _read()
    nbformat.validate(notebook)
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert not [cell for cell in cells if cell.outputs or cell.execution_count]
    modules = re.findall(r"^(?:from|import) (f3rm[\w.]*)", "\n".join(c.source for c in cells), re.M)
    assert modules
    assert set(modules) <= set(PACKAGES)
    assert "f3rm-fields[fast] @ git+" in _tagged(notebook, "install").source


@pytest.mark.slow
@pytest.mark.nightly
def test_it_runs_on_a_cpu(tmp_path, monkeypatch):
    need_raycaster()
    notebook = _read()
    notebook.cells.remove(_tagged(notebook, "install"))
    parameters = _tagged(notebook, "parameters")
    known = {ast.unparse(node.targets[0]) for node in ast.parse(parameters.source).body}
    names = {name if "," not in name else f"({name})" for name in SMALL}
    assert names <= known
    parameters.source += "\n" + "\n".join(f"{name} = {value}" for name, value in SMALL.items())
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]))
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    client = nbclient.NotebookClient(
        notebook,
        timeout=900,
        kernel_name="python3",
        resources={"metadata": {"path": str(tmp_path)}},
    )
    client.execute()
    assert json.loads((tmp_path / "boxes.json").read_text())["queries"]
    pictures = [
        output
        for cell in notebook.cells
        for output in cell.get("outputs", [])
        if "image/png" in output.get("data", {})
    ]
    assert len(pictures) == 2
