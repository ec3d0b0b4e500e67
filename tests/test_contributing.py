"""What contributors rely on agrees: versions, commands, hooks, continuous integration and forms."""

import os
import re
import tomllib
from pathlib import Path

import pytest
import yaml

import f3rm

ROOT = Path(__file__).parents[1]
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
MAKEFILE = (ROOT / "Makefile").read_text()
GUIDE = (ROOT / "CONTRIBUTING.md").read_text()
WORKFLOW = ROOT / ".github" / "workflows" / "ci.yml"
FORMS = ROOT / ".github" / "ISSUE_TEMPLATE"
WEIGHTS = ROOT / "f3rm" / "backbones" / "tinyclip" / "open_clip_model.safetensors"


def _yaml(path):
    return yaml.safe_load(path.read_text())


def _targets():
    return set(re.findall(r"^([a-z-]+):", MAKEFILE, re.MULTILINE))


def _hooks():
    repos = _yaml(ROOT / ".pre-commit-config.yaml")["repos"]
    return {hook["id"]: hook for repo in repos for hook in repo["hooks"]}


def _local_hooks():
    return [hook for hook in _hooks().values() if hook.get("language") == "system"]


def _anchors(page):
    """The names that GitHub gives the headings of a page."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_the_citation_has_the_version_and_the_licence_of_the_project():
    citation = _yaml(ROOT / "CITATION.cff")
    project = PYPROJECT["project"]
    assert citation["cff-version"] == "1.2.0"
    assert citation["version"] == project["version"] == f3rm.__version__
    assert citation["license"] == project["license"]
    holder = re.search(r"^Copyright \(c\) \d+ (.+)$", (ROOT / "LICENSE").read_text(), re.MULTILINE)
    assert holder is not None
    assert citation["authors"] == [{"name": holder[1]}]


@pytest.mark.parametrize("text", [GUIDE, (ROOT / ".ci" / "run").read_text()], ids=["guide", "ci"])
def test_the_commands_are_targets_of_the_makefile(text):
    commands = set(re.findall(r"(?:^|`)make ([a-z-]+)", text, re.MULTILINE))
    assert {"gates", "test"} <= commands <= _targets()


def test_the_guide_names_every_marker():
    markers = {
        marker.partition(":")[0] for marker in PYPROJECT["tool"]["pytest"]["ini_options"]["markers"]
    }
    assert set(re.findall(r"^\| `(\w+)` \|", GUIDE, re.MULTILINE)) == markers


def test_the_links_of_the_guide_lead_somewhere():
    links = re.findall(r"\]\(([^)#]+)#?([^)]*)\)", GUIDE)
    assert len(links) > 3
    for target, anchor in links:
        assert (ROOT / target).is_file(), target
        assert not anchor or anchor in _anchors(ROOT / target), anchor


def test_the_paths_of_the_guide_exist():
    paths = re.findall(r"(?:f3rm|tests|benchmarks|\.ci)/[\w./]*", GUIDE)
    assert len(paths) > 3
    for path in paths:
        assert (ROOT / path).exists(), path


def test_the_hooks_are_the_commands_of_the_gates():
    recipe = re.search(r"^gates:.*\n((?:\t.*\n)+)", MAKEFILE, re.MULTILINE)
    assert recipe is not None
    gates = re.findall(r"\$\(BIN\)/(.+)$", recipe[1], re.MULTILINE)
    assert len(gates) == recipe[1].count("\n")
    hooks = [re.findall(r"\.venv/bin/([^']+)'?$", hook["entry"]) for hook in _local_hooks()]
    assert hooks == [[command] for command in gates]
    assert "VENV ?= .venv\n" in MAKEFILE  # where the hooks look


def test_only_pyright_waits_for_a_push():
    late = [hook["id"] for hook in _local_hooks() if hook.get("stages") == ["pre-push"]]
    assert late == ["pyright"]
    assert all(hook["pass_filenames"] is False for hook in _local_hooks())


def test_the_weights_are_the_large_file_that_a_hook_lets_pass():
    hook = _hooks()["check-added-large-files"]
    (limit,) = re.findall(r"--maxkb=(\d+)", " ".join(hook["args"]))
    assert WEIGHTS.stat().st_size > int(limit) * 1024
    assert re.search(hook["exclude"], WEIGHTS.relative_to(ROOT).as_posix())
    assert not re.search(hook["exclude"], "f3rm/backbones/tinyclip.py")


def test_the_workflow_runs_what_must_hold_before_a_change_lands():
    workflow = _yaml(WORKFLOW)
    assert workflow["permissions"] == {"contents": "read"}
    (job,) = workflow["jobs"].values()
    assert [step["run"] for step in job["steps"] if "run" in step] == [".ci/run"]
    assert os.access(ROOT / ".ci" / "run", os.X_OK)
    (pinned,) = re.findall(r"version_info\[:2\] in \(\((.+?)\)\) else", MAKEFILE)
    assert job["strategy"]["matrix"]["python"] == pinned.replace(", ", ".").split(").(")


def test_the_bug_form_asks_for_what_doctor_says():
    fields = {field["id"]: field for field in _yaml(FORMS / "bug.yml")["body"]}
    assert "f3rm doctor" in fields["doctor"]["attributes"]["label"]
    assert {name for name, field in fields.items() if field["validations"]["required"]} >= {
        "command",
        "message",
        "doctor",
    }


@pytest.mark.parametrize("form", ["bug.yml", "feature.yml"])
def test_a_form_has_what_github_requires(form):
    content = _yaml(FORMS / form)
    assert content["name"]
    assert content["description"]
    names = [field["id"] for field in content["body"]]
    assert len(names) == len(set(names))
    assert all(field["attributes"]["label"] for field in content["body"])
