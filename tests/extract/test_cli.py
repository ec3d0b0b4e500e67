"""The commands as a user runs them, with a small random CLIP and with the toy adapter."""

import signal
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from f3rm.scripts import cli
from f3rm.store.reader import FeatureStore
from tests.backbones.random_clip import write_random_checkpoint
from tests.extract.toy import files_of, notes_of, write_dataset

SCRIPT = str(Path(cli.__file__).with_name("extract_features_standalone.py"))
COMMANDS = {"f3rm": ("-m", "f3rm.scripts.cli", "extract"), "script": (SCRIPT,)}


def finish(process) -> tuple[int, str, str]:
    out, err = process.communicate(timeout=120)
    return process.returncode, out, err


def test_extract_end_to_end_with_the_documented_arguments(tmp_path, python):
    """The script and ``f3rm extract`` do the same, from images to a cache of CLIP."""
    dataset = write_dataset(tmp_path / "scene", [(24, 33)] * 3)
    weights = write_random_checkpoint(tmp_path / "weights", seed=3, patch_size=64, image_size=128)
    arguments = ["--data", str(dataset), "--feature-type", "clip", "--weights", f"CLIP={weights}"]
    arguments += ["--shard-size", "2", "--device", "cpu", "--batch-size", "1"]
    elsewhere = ["--cache-dir", str(tmp_path / "cache"), "--force"]
    code, out, err = finish(python(SCRIPT, *arguments))
    assert code == 0, err
    folder = dataset / "features" / "clip"
    store = FeatureStore.open(folder)
    cells = "x".join(str(side) for side in store.grid_size(0)).replace("x", " x ")
    assert out.startswith(f"clip: 3 images, maps of {cells} cells with 32 channels, ")
    assert f"{store.num_bytes} bytes" in out
    assert out.strip().endswith(str(folder))
    assert store.grid_size(0) == (16, 22)
    code, out, err = finish(python(*COMMANDS["f3rm"], *arguments, *elsewhere))
    assert code == 0, err
    (other,) = (tmp_path / "cache").glob("scene-*/clip")
    assert files_of(other).keys() == files_of(folder).keys()
    for chunk in folder.glob("chunk_*.npy"):
        assert np.array_equal(np.load(chunk), np.load(other / chunk.name))


@pytest.mark.parametrize("command", COMMANDS)
def test_errors_are_one_message_and_exit_code_1(tmp_path, python, command):
    code, out, err = finish(python(*COMMANDS[command], "--data", str(tmp_path)))
    assert (code, out) == (1, "")
    assert err.startswith("--data must be a dataset with transforms.json, got")
    assert "Traceback" not in err


@pytest.fixture
def attentive():
    """Lets processes that are started hear Ctrl-C, though the tests may run in the background."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("attentive")
def test_ctrl_c_says_how_to_go_on(tmp_path, toy_plugin, python):
    root = write_dataset(tmp_path / "scene", [(24, 33)] * 60)
    slow = (toy_plugin / "f3rm_toy.py").read_text().replace('"mean"', '"slow"')
    (toy_plugin / "f3rm_toy.py").write_text(slow)
    options = ["--data", str(root), "--feature-type", "toy", "--shard-size", "2"]
    process = python(*COMMANDS["f3rm"], *options, "--batch-size", "1", "--device", "cpu")
    deadline = time.monotonic() + 30
    while not notes_of(root):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    code, out, err = finish(process)
    assert (code, out) == (130, "")
    assert "Stopped. The finished chunks are kept: run the same command again to go on" in err
    assert "Traceback" not in err


def test_help_is_light_and_names_the_commands(python):
    probe = "import sys; from f3rm.scripts.cli import main; code = main(['--help']); "
    probe += "print(sorted({'torch', 'nerfstudio', 'open_clip'} & sys.modules.keys()), code)"
    code, out, _ = finish(python("-c", probe))
    assert code == 0
    assert out.endswith("[] 0\n")
    assert "extract" in out


@pytest.mark.parametrize("command", COMMANDS)
def test_help_of_extract_explains_every_argument(python, command):
    code, out, _ = finish(python(*COMMANDS[command], "--help"))
    assert code == 0
    for name in ("data", "feature-type", "shard-size", "device", "force", "cache-dir", "weights"):
        assert f"--{name}" in out
    assert "transforms.json" in out


def test_unknown_commands_and_the_version(capsys):
    assert cli.main(["extrat"]) == 2
    assert "there is no command 'extrat'. Did you mean extract?" in capsys.readouterr().err
    assert cli.main(["--version"]) == 0
    assert capsys.readouterr().out.startswith("f3rm 0.")
    assert cli.main([]) == 0


def test_extraction_needs_no_nerfstudio_and_no_model_library(python):
    modules = "f3rm.extract.standalone, f3rm.store.reader, f3rm.scripts.extract"
    probe = f"import sys, {modules}; print(sorted(sys.modules.keys() & "
    probe += "{'nerfstudio', 'tinycudann', 'viser', 'open_clip', 'transformers'}))"
    assert finish(python("-c", probe)) == (0, "[]\n", "")


def test_the_interpreter_is_the_tested_one(python):
    assert finish(python("-c", "import sys; print(sys.executable)"))[1].strip() == sys.executable
