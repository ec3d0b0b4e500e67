"""ns-train refuses what cannot work before it writes anything, and Ctrl-C loses nothing."""

import copy
import os
import re
import shutil
import signal
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import torch
from nerfstudio.utils.eval_utils import eval_setup
from PIL import Image

from f3rm import trainer as trainer_module
from f3rm.errors import DatasetError, DeviceError, F3rmError, FeatureTypeError, ImageError
from f3rm.trainer import resume_command
from tests.run_fixtures import colours, small_config, train
from tests.scene_fixtures import write_dataset

__all__ = ["colours"]

NAMES = [f"{number}.png" for number in range(12)]


def _config(root, **settings):
    config = small_config(root / "data", root / "runs", "COLOURS")
    for name, value in settings.items():
        setattr(config.pipeline.datamanager, name, value)
    return config


@pytest.fixture
def dataset(tmp_path):
    return write_dataset(tmp_path / "data", dict.fromkeys(NAMES, (36, 48)))


def _refused(config, kind, message, capsys):
    with pytest.raises(kind, match=message):
        config.print_to_terminal()
    said = capsys.readouterr()
    assert said.out + said.err == ""
    assert not config.output_dir.exists()


def test_a_run_that_can_start_prints_its_configuration(colours, dataset, tmp_path, capsys):
    _config(tmp_path).print_to_terminal()
    assert "FeatureTrainerConfig" in capsys.readouterr().out


def test_a_misspelt_feature_type_is_refused_with_the_near_name(dataset, tmp_path, capsys):
    config = _config(tmp_path, feature_type="TINYCLOP")
    _refused(config, FeatureTypeError, "no feature type 'TINYCLOP'. Did you mean TINYCLIP", capsys)


def test_a_wrong_path_is_refused(colours, tmp_path, capsys):
    config = _config(tmp_path)
    _refused(config, DatasetError, r"No such folder: '.*data'. Check the path .*--data", capsys)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda file: file.write_bytes(file.read_bytes()[:300]), "'images/4.png' must be a comple"),
        (lambda file: file.write_bytes(b"no picture"), "'images/4.png' .* its format is unknown"),
        (Path.unlink, "Every frame's image must exist, but 1 of 12 .* are missing: images/4.png"),
    ],
    ids=["cut", "text", "missing"],
)
def test_a_damaged_photograph_is_refused(colours, dataset, tmp_path, capsys, spoil, message):
    spoil(dataset / "images" / "4.png")
    _refused(_config(tmp_path), ImageError, message, capsys)
    _config(tmp_path, feature_on_error="record").print_to_terminal()
    _config(tmp_path, feature_left_out=("images/4.png",)).print_to_terminal()


def test_a_cut_jpeg_is_refused_and_one_with_data_behind_its_end_is_not(colours, tmp_path, capsys):
    root = write_dataset(tmp_path / "data", {f"{number}.jpg": (90, 120) for number in range(4)})
    file = root / "images" / "2.jpg"
    Image.effect_noise((120, 90), 80).save(file)
    whole = file.read_bytes()
    file.write_bytes(whole + bytes(200_000))  # as some cameras do
    _config(tmp_path).print_to_terminal()
    capsys.readouterr()
    file.write_bytes(whole[: len(whole) // 2])
    _refused(_config(tmp_path), ImageError, r"'images/2.jpg' must be a complete image", capsys)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_the_method_for_cpus_is_named(colours, dataset, tmp_path, capsys):
    config = _config(tmp_path)
    config.machine.device_type = "cuda"
    _refused(config, DeviceError, "Use f3rm-lite --machine.device-type cpu", capsys)


def test_a_folder_without_checkpoints_cannot_be_resumed(colours, dataset, tmp_path, capsys):
    config = _config(tmp_path)
    config.load_dir = tmp_path
    _refused(config, F3rmError, "--load-dir must be a folder with a checkpoint", capsys)


def test_the_command_shows_the_message_alone(tmp_path):
    write_dataset(tmp_path / "data", {"a.png": (8, 8)})
    words = ["ns-train", "f3rm", "--data", "data", "--pipeline.datamanager.feature-type", "CLOP"]
    result = subprocess.run(
        [Path(sys.executable).parent / words[0], *words[1:]],
        cwd=tmp_path,
        env={**os.environ, "CUDA_VISIBLE_DEVICES": ""},
        capture_output=True,
        text=True,
        check=False,
        timeout=600,
    )
    assert result.returncode == 1
    assert result.stderr.splitlines()[-1].startswith("--feature-type: there is no feature type")
    assert "Traceback" not in result.stdout + result.stderr
    assert "TrainerConfig" not in result.stdout
    assert [path.name for path in tmp_path.iterdir()] == ["data"]


def _note(said, call):
    """Notes what is said when the program ends; other packages register functions too."""
    said.extend(text for text in call if isinstance(text, str))


@pytest.fixture(scope="module")
def interrupted(colours, tmp_path_factory):
    """A run whose step 3 Ctrl-C was pressed in; its trainer and what was said in the end."""
    root = tmp_path_factory.mktemp("interrupted")
    write_dataset(root / "data", dict.fromkeys(NAMES, (36, 48)))
    config = _config(root)
    config.max_num_iterations = 50
    said: list[str] = []
    usual = signal.signal(signal.SIGINT, signal.default_int_handler)  # a background job ignores it
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trainer_module.atexit, "register", lambda *call: _note(said, call))
        patch.setattr(sys, "argv", ["/bin/ns-train", "f3rm-lite", "--data", "data"])
        trainer = train(config, steps=0)
        inner = trainer.pipeline.get_train_loss_dict

        def pressed(step):
            if step == 3:
                os.kill(os.getpid(), signal.SIGINT)
            return inner(step)

        patch.setattr(trainer.pipeline, "get_train_loss_dict", pressed)
        with pytest.raises(SystemExit) as ended:
            trainer.train()
    assert ended.value.code == 130
    assert signal.signal(signal.SIGINT, usual) is signal.default_int_handler
    return config, said


def test_ctrl_c_saves_the_whole_step_and_says_how_to_go_on(interrupted):
    config, (said,) = interrupted
    (file,) = config.get_checkpoint_dir().iterdir()
    assert file.name == "step-000000003.ckpt"
    assert "Stopped after step 4 of 50, which is saved." in said
    expected = f"--load-dir {config.get_checkpoint_dir()} --max-num-iterations 46 --data data"
    assert said.rstrip().endswith(f"ns-train f3rm-lite {expected}")


def test_the_next_command_goes_on_where_it_stopped(interrupted):
    config = copy.deepcopy(interrupted[0])
    config.load_dir, config.timestamp = interrupted[0].get_checkpoint_dir(), "next"
    config.max_num_iterations = 2
    train(config)
    (file,) = config.get_checkpoint_dir().iterdir()
    assert file.name == "step-000000005.ckpt"


def test_ctrl_c_before_the_first_step_ends_too(colours, dataset, tmp_path, monkeypatch):
    said: list[str] = []
    monkeypatch.setattr(trainer_module.atexit, "register", lambda *call: _note(said, call))
    config = _config(tmp_path)

    def pressed(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr(type(config.pipeline), "setup", pressed)
    with pytest.raises(SystemExit):
        train(config, steps=0)
    assert "Stopped before the first step" in said[0]


@pytest.mark.parametrize(
    "options",
    [
        ["--load-dir", "old", "--max-num-iterations", "9"],
        ["--load_dir=old", "--max-num-iterations=9"],
        ["--load-checkpoint", "old.ckpt"],
        [],
    ],
)
def test_a_resuming_command_replaces_the_options_of_resuming(options):
    words = ["/bin/ns-train", "f3rm", *options, "--data", "a b", "nerfstudio-data", "--scale", "2"]
    assert resume_command(words, Path("runs/new"), 5) == (
        "ns-train f3rm --load-dir runs/new --max-num-iterations 5 --data 'a b' "
        "nerfstudio-data --scale 2"
    )


def test_a_copied_run_is_evaluated_with_its_own_checkpoint(interrupted, tmp_path):
    run = interrupted[0].get_base_dir()
    copied = shutil.copytree(run, tmp_path / "copied")
    (file,) = (copied / "nerfstudio_models").iterdir()
    file.rename(file.with_name("step-000000007.ckpt"))
    found = eval_setup(copied / "config.yml", test_mode="inference")[2]
    assert found == copied / "nerfstudio_models" / "step-000000007.ckpt"
    assert eval_setup(run / "config.yml", test_mode="inference")[2].parent.parent == run
    shutil.rmtree(copied / "nerfstudio_models")  # a copy of the file alone has the run's
    assert eval_setup(copied / "config.yml", test_mode="inference")[2].parent.parent == run


@pytest.mark.parametrize(("program", "shown"), [("ns-eval", 0), ("python", 1)])
def test_commands_that_open_a_run_show_no_warnings_of_others(
    interrupted, monkeypatch, program, shown
):
    monkeypatch.setattr(sys, "argv", [program])
    monkeypatch.setattr(sys, "warnoptions", [])
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        eval_setup(interrupted[0].get_base_dir() / "config.yml", test_mode="inference")
        caught.clear()
        exec("import warnings; warnings.warn('x')", {"__name__": "nerfstudio.cameras.cameras"})
    assert len(caught) == shown


def test_a_moved_dataset_is_pointed_to_before_the_command(interrupted, tmp_path, monkeypatch):
    config = interrupted[0]
    here = shutil.copytree(config.pipeline.datamanager.data, tmp_path / "here")
    copied = shutil.copytree(config.get_base_dir(), tmp_path / "copied") / "config.yml"
    assert copied.read_text().count("- data\n") == 2  # of the data manager, and of the dataparser
    copied.write_text(copied.read_text().replace("- data\n", "- gone\n"))
    with pytest.raises(DatasetError, match=r"No such dataset: .*gone'.* F3RM_DATA=PATH before"):
        eval_setup(copied, test_mode="inference")
    monkeypatch.setenv("F3RM_DATA", str(here))
    pipeline = eval_setup(copied, test_mode="inference")[1]
    dataset = pipeline.datamanager.train_dataset
    assert dataset is not None
    files = dataset.image_filenames
    assert {file.parents[1] for file in files} == {here}


def test_the_factor_of_downscaling_is_part_of_the_run(interrupted):
    text = (interrupted[0].get_base_dir() / "config.yml").read_text()
    assert re.search(r"downscale_factor: 1\n", text)
