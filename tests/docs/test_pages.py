"""Every command and Python example of the pages runs, in the order and from the folder of a page.

README's commands make the scene and the run that the other pages start from.
"""

import json
import os
import re
import shutil
import socket
import subprocess
import sys
import time
import tomllib
import urllib.request
from pathlib import Path

import pytest
from packaging.requirements import InvalidRequirement, Requirement

from tests.docs import world
from tests.docs.pages import (
    PAGES,
    PROGRAMS,
    ROOT,
    RULES,
    blocks,
    commands,
    inline_commands,
    rule_for,
)  # fmt: skip
from tests.docs.shell import FILTERS, PARSED, Shell
from tests.run_fixtures import colours, run

__all__ = ["colours", "run"]

RUN = Path("outputs/tabletop/f3rm/run")
README = ROOT / "README.md"
WITH_COMMANDS = [page for page in PAGES if page != README and commands(page)]
TUTORIAL = ROOT / "docs" / "tutorial.md"
OTHERS = [page for page in WITH_COMMANDS if page != TUTORIAL]
WITH_EXAMPLES = [page for page in PAGES if blocks(page, "python")]


@pytest.fixture(scope="module")
def shell(tmp_path_factory, pytestconfig):
    root = tmp_path_factory.mktemp("hub")
    config = world.write_hub(root)
    environment = {
        **os.environ,
        "CUDA_VISIBLE_DEVICES": "",
        "HF_HOME": str(root),
        "HF_HUB_OFFLINE": "1",
        "OMP_NUM_THREADS": "1",
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "TORCH_HOME": "/nonexistent",  # LPIPS weights of the machine's owner must not matter
        FILTERS: json.dumps(pytestconfig.getini("filterwarnings")),
    }
    shell = Shell(environment, config, root / "log")
    yield shell
    shell.close()


@pytest.fixture(scope="module")
def workplace(shell, run, tmp_path_factory):
    """A folder in which README's commands have run."""
    folder = tmp_path_factory.mktemp("docs")
    world.write_folder(folder)
    for words in commands(README):
        _do(shell, folder, words)
        if words[:2] == ["ns-train", "f3rm"]:
            _learn(folder / RUN, run)
    return folder


def _learn(folder, run):
    """Replaces a run of two steps, which teach nothing, by one that can answer."""
    assert list((folder / "nerfstudio_models").glob("*.ckpt"))
    shutil.rmtree(folder)
    shutil.copytree(run.config.parent, folder)


def _do(shell, folder, words):
    """Does with a command what its rule says."""
    rule = rule_for(words)
    line = " ".join(words)
    if rule.how == "make":
        done = subprocess.run(
            ["make", "-n", *words[1:]], cwd=folder, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, f"{line}\n{done.stderr}"
    elif rule.how == "serve":
        _serve(shell, folder, [*words, *rule.adds.split()])
    elif rule.how == "parse":
        _parse(shell, folder, words)
    elif rule.how == "scene":
        _parse(shell, folder, words)
        data = folder / words[words.index("--output-dir") + 1]
        shutil.rmtree(data, ignore_errors=True)  # reading the words makes an empty one
        world.copy_folder(folder / "datasets" / "tabletop", data)
    else:
        if rule.how == "inner":
            words = _inner(shell, folder, words)
            rule = rule_for(words)
        code = shell.run(folder, words=[*words, *rule.adds.split()])
        assert code in rule.codes, f"{line}\nended with code {code}:\n{shell.said()}"


def _parse(shell, folder, words):
    if words[0] == "hf":  # has a parser of its own, which downloads at once
        assert shell.run(folder, words=[*words[:2], "--help"]) == 0, shell.said()
        assert all(word in shell.said() for word in words if word.startswith("--")), shell.said()
        return
    code = shell.run(folder, words=words, parse=True)
    assert code == PARSED, f"{' '.join(words)}\n{code} {shell.said()}"
    if words[:2] == ["pip", "install"]:
        _check_requirements(folder, words[2:])


def _check_requirements(folder, words):
    """What pip is told to install exists: files, and this project's extras."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    for option, word in zip(["", *words], words, strict=False):
        if option in ("-c", "-r"):
            assert (folder / word).is_file(), word
        elif not word.startswith("-"):
            local = re.fullmatch(r"\.(\[[\w,]+\])?", word)
            name = f"{project['name']}{local[1] or ''}" if local else word
            try:
                wanted = Requirement(name)
            except InvalidRequirement:
                assert name.startswith("git+https://"), name
                continue
            if wanted.name == project["name"]:
                assert wanted.extras <= set(project["optional-dependencies"]), word


def _inner(shell, folder, words):
    """The f3rm command that a launcher starts; the launcher's own words are read by it."""
    if words[0] == "torchrun":
        _parse(shell, folder, words)
        return ["f3rm", *words[words.index("f3rm.scripts.cli") + 1 :]]
    launcher = words[: words.index("f3rm")]
    assert re.fullmatch(r"srun --ntasks \d+", " ".join(launcher))  # Slurm is not installed here
    return words[len(launcher) :]


def _serve(shell, folder, words):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    option = "--port" if words[0] == "f3rm" else "--viewer.websocket-port"
    shell.start(folder, words=[*words, option, str(port)])
    page = ""
    for _ in range(300):
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}", timeout=5) as response:
                page = response.read().decode()
                break
        except OSError:
            time.sleep(0.2)
    shell.interrupt()
    code = shell.wait()
    assert "<html" in page.lower(), shell.said()
    assert code >= 0, shell.said()  # it ended by itself


@pytest.mark.slow
def test_the_commands_of_the_readme_run(workplace):
    assert (workplace / "cloud" / "point_cloud.ply").is_file()
    assert json.loads((workplace / "boxes.json").read_text())["queries"][0]["instances"]
    assert json.loads((workplace / "quality.json").read_text())["queries"]
    for name in ("metrics.json", "tour.mp4", "renders/output.mp4", "pictures/overview.png"):
        assert (workplace / name).stat().st_size > 100, name


@pytest.mark.slow
@pytest.mark.parametrize("page", WITH_COMMANDS, ids=lambda page: page.stem)
def test_the_commands_of_a_page_are_read_by_their_programs(page, shell, tmp_path):
    world.link_checkout(tmp_path)
    for words in commands(page):
        if rule_for(words).how == "inner":
            words = _inner(shell, tmp_path, words)
        if rule_for(words).how == "make":
            _do(shell, tmp_path, words)
        else:
            _parse(shell, tmp_path, words)


@pytest.mark.slow
def test_the_tutorial_leads_to_boxes(shell, run, workplace, tmp_path):
    folder = tmp_path / "here"
    world.copy_folder(workplace, folder)
    (folder / "boxes.json").unlink()
    for words in commands(TUTORIAL):
        _do(shell, folder, words)
        if words[:2] == ["ns-train", "f3rm"]:
            _learn(folder / "outputs" / "room" / "f3rm" / "run", run)
    assert (folder / "datasets" / "room" / "features" / "clip" / "manifest.json").is_file()
    queries = json.loads((folder / "boxes.json").read_text())["queries"]
    assert [answer["query"] for answer in queries] == ["orange cone", "pink cone"]


@pytest.mark.slow
@pytest.mark.nightly
@pytest.mark.parametrize("page", OTHERS, ids=lambda page: page.stem)
def test_the_commands_of_a_page_run(page, shell, workplace, tmp_path):
    world.copy_folder(workplace, tmp_path / "here")
    for words in commands(page):
        _do(shell, tmp_path / "here", words)


@pytest.mark.slow
@pytest.mark.parametrize("page", WITH_EXAMPLES, ids=lambda page: page.stem)
def test_the_examples_of_a_page_run(page, shell, workplace, tmp_path):
    world.copy_folder(workplace, tmp_path / "here")
    code = "\n".join(blocks(page, "python"))  # they go on from one another
    assert shell.run(tmp_path / "here", code=code) == 0, shell.said()


@pytest.mark.parametrize(
    "page", [page for page in PAGES if inline_commands(page)], ids=lambda page: page.stem
)
def test_calls_in_the_text_are_read_by_their_programs(page, shell, tmp_path):
    world.link_checkout(tmp_path)
    for words in inline_commands(page):
        _parse(shell, tmp_path, words)


def test_every_rule_is_needed():
    written = [" ".join(words) for page in PAGES for words in commands(page)]
    waits = {"f3rm doctor"}  # a command without needed words, whether or not a page shows it
    for rule in RULES:
        assert rule.start in waits or any(line.startswith(rule.start) for line in written), rule


def test_a_program_without_a_rule_is_an_error():
    assert "curl" not in PROGRAMS
    with pytest.raises(AssertionError, match="give it a rule"):
        rule_for(["curl", "-O", "x"])
