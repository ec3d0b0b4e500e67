"""The demo: what it calls, what it keeps from an earlier call, and what it says at its end."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from f3rm.errors import F3rmError, FeatureTypeError
from f3rm.scripts import demo as demo_module
from f3rm.scripts.command import run_command
from f3rm.scripts.demo import (
    Demo,
    RunFiles,
    call,
    child_environment,
    closing_words,
    dataparser_words,
    eval_command,
    read_metrics,
    train_command,
)
from f3rm.synthetic.scenes import SceneSettings, make_tabletop
from tests.html_page import Page
from tests.scene_fixtures import need_raycaster

OPTION = "--pipeline.datamanager"
METRICS = {
    "psnr": 25.5,
    "feature_cosine_bilinear": 0.75,
    "miou": 0.5,
    "nerfacto_psnr": None,
    "queries": [{"text": "<red> mug", "localisation": 1.0, "miou": 0.625, "teacher_miou": None}],
}


def option(words, name):
    return words[words.index(name) + 1]


def trained(demo=None, data=Path("/data/room"), device="cpu"):
    return train_command(demo or Demo(), data=data, out=Path("/out"), device=device)


def test_training_is_nerfstudio_s_command_in_this_python():
    words = trained(Demo(feature_type="DINOCLIP", weights=("CLIP=a", "DINO=b")))
    assert words[:4] == [sys.executable, "-m", "nerfstudio.scripts.train", "f3rm-lite"]
    assert option(words, "--machine.device-type") == "cpu"
    assert option(words, "--data") == "/data/room"
    assert option(words, f"{OPTION}.feature-type") == "DINOCLIP"
    start = words.index(f"{OPTION}.weights") + 1
    assert words[start : start + 2] == ["CLIP=a", "DINO=b"]
    assert option(words, "--max-num-iterations") == "1000"
    folder = [option(words, f"--{name}") for name in ("output-dir", "experiment-name", "timestamp")]
    assert folder == ["/out", "room", "run"]
    assert "nerfstudio-data" not in words
    assert "--pipeline.model.near-plane" not in words  # for generated scenes only


def test_what_ships_is_the_default():
    words = trained()
    assert option(words, f"{OPTION}.feature-type") == "TINYCLIP"
    assert f"{OPTION}.weights" not in words


def test_dataparser_options_come_last_after_its_name():
    words = trained(Demo(downscale_factor=2, dataparser=("eval-mode=interval", "mask-color=0 0 1")))
    at = words.index("nerfstudio-data")
    assert words[at + 1 :] == [
        *("--downscale-factor", "2"),
        *("--eval-mode", "interval"),
        *("--mask-color", "0", "0", "1"),
    ]


@pytest.mark.parametrize("entry", ["interval", "eval-mode=", "=2"])
def test_a_dataparser_option_without_a_value_is_refused(entry):
    with pytest.raises(F3rmError, match=r"NAME=VALUE, got .*nerfstudio-data --help"):
        dataparser_words(Demo(dataparser=(entry,)))


def test_a_generated_scene_brings_its_planes(tmp_path):
    (tmp_path / "scene.json").write_text(json.dumps({"near_plane": 0.5, "far_plane": 3.0}))
    words = trained(data=tmp_path)
    assert option(words, "--pipeline.model.near-plane") == "0.5"
    assert option(words, "--pipeline.model.far-plane") == "3.0"
    (tmp_path / "scene.json").write_text("[]")  # a file of someone else's
    assert "--pipeline.model.near-plane" not in trained(data=tmp_path)


def test_evaluation_is_f3rms_own():
    run = RunFiles(Path("/out"), Path("/out/room/f3rm-lite/run"))
    words = eval_command(run, ())
    assert words[:5] == [sys.executable, "-m", "f3rm.scripts.cli", "eval", "/out/config.yml"]
    assert option(words, "--json") == "/out/metrics.json"
    assert option(words, "--pictures") == "/out/pictures"
    assert "--queries" not in words
    assert eval_command(run, ("a cup", "b"))[-3:] == ["--queries", "a cup", "b"]


def test_only_a_cpu_run_hides_the_gpus(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1")
    assert child_environment("cpu")["CUDA_VISIBLE_DEVICES"] == ""
    assert child_environment("cuda")["CUDA_VISIBLE_DEVICES"] == "1"
    assert os.environ["CUDA_VISIBLE_DEVICES"] == "1"


@pytest.mark.parametrize(
    ("device", "cores", "threads"), [("cpu", 2, "1"), ("cpu", 64, None), ("cuda", 2, None)]
)
def test_few_cores_get_one_thread(monkeypatch, device, cores, threads):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: cores)
    assert child_environment(device).get("OMP_NUM_THREADS") == threads


def test_what_the_user_has_set_stays(monkeypatch):
    monkeypatch.delenv("PYTHONWARNINGS", raising=False)
    assert child_environment("cpu")["PYTHONWARNINGS"] == "ignore"
    monkeypatch.setenv("PYTHONWARNINGS", "default")
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    environment = child_environment("cpu")
    assert environment["PYTHONWARNINGS"] == "default"
    assert environment["OMP_NUM_THREADS"] == "3"


def test_failing_commands_are_named(capfd):
    code = "print('seen at once'); raise SystemExit(3)"
    with pytest.raises(
        F3rmError, match=r"print.* ended with code 3\..*messages above.* run the demo again"
    ):
        call([sys.executable, "-c", code], os.environ)
    out = capfd.readouterr().out
    assert out.startswith("\n$ python -c ")
    assert "seen at once" in out


def test_killed_commands_are_named():
    code = "import os, signal; os.kill(os.getpid(), signal.SIGKILL)"
    with pytest.raises(F3rmError, match="was killed by signal 9"):
        call([sys.executable, "-c", code], os.environ)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--steps", "1"], "--steps must be at least 2"),
        (["--feature-type", "CLAP"], "Did you mean CLIP"),
        (["--weights", "DINOV2=x"], "one of the types in use"),
        (["--dataparser", "eval-mode"], "NAME=VALUE"),
    ],
)
def test_wrong_arguments_end_with_one_message_and_code_1(
    arguments, message, capsys, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    assert run_command(Demo, arguments) == 1
    assert message in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_unknown_types_are_refused_before_anything_is_made():
    with pytest.raises(FeatureTypeError):
        Demo(feature_type="nothing")._check()


def test_missing_numbers_are_explained(tmp_path):
    run = RunFiles(tmp_path, tmp_path / "run")
    with pytest.raises(F3rmError, match=r"metrics.json.*not as f3rm eval wrote it.*--force"):
        read_metrics(run)
    run.metrics.write_text("[]")
    with pytest.raises(F3rmError, match=r"metrics.json.*not as f3rm eval wrote it.*--force"):
        read_metrics(run)


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_the_last_words_name_the_commands(tmp_path, monkeypatch, device):
    monkeypatch.chdir(tmp_path)
    run = RunFiles(tmp_path / "out", tmp_path / "out/room/f3rm-lite/run")
    words = closing_words(run, METRICS, device=device)
    assert "Look at:  out/index.html" in words
    assert "ns-viewer --load-config out/config.yml" in words
    assert "--rendered-output-names feature_pca --output-path out/pca.mp4" in words
    assert "PSNR of the colours in dB" in words
    assert "25.500" in words
    assert "2D teacher" not in words  # not measured
    assert "ns-process-data images" in words
    assert ("ns-train f3rm --data" in words) == (device == "cuda")
    assert ("--interpolation-steps 3 --downscale-factor 4" in words) == (device == "cpu")


@pytest.fixture
def commands(monkeypatch, tmp_path):
    """The demo without Nerfstudio: what it calls is noted, and the files appear."""
    monkeypatch.chdir(tmp_path)
    called: list[str] = []

    def pretend(command, environment):
        called.append("train" if command[2].endswith("train") else command[3])
        run = RunFiles(tmp_path / "out", tmp_path / "out/mine/f3rm-lite/run")
        if called[-1] == "train":
            run.folder.mkdir(parents=True)
            (run.folder / "config.yml").write_text("")
        else:
            run.metrics.write_text(json.dumps(METRICS))
            run.pictures.mkdir(exist_ok=True)
            (run.pictures / "index.html").write_text(" ".join(command))

    monkeypatch.setattr(demo_module, "call", pretend)
    return called


def test_a_finished_run_is_used_again(commands, tmp_path, capsys):
    mine = Demo(data=tmp_path / "mine", out=Path("out"))
    mine.run()
    assert commands == ["train", "eval"]
    assert (tmp_path / "out/config.yml").resolve() == tmp_path / "out/mine/f3rm-lite/run/config.yml"
    mine.run()
    assert commands == ["train", "eval"]
    assert "Using the finished run in out/mine" in capsys.readouterr().out
    (tmp_path / "out/metrics.json").unlink()
    mine.run()
    assert commands == ["train", "eval", "eval"]
    (tmp_path / "out/index.html").unlink()
    mine.run()
    assert commands == ["train", "eval", "eval", "eval"]


def test_other_questions_make_another_page_without_training(commands, tmp_path):
    mine = Demo(data=tmp_path / "mine", out=Path("out"))
    mine.run()
    replace(mine, queries=("a cup",)).run()
    assert commands == ["train", "eval", "eval"]
    assert (tmp_path / "out/index.html").read_text().endswith("--queries a cup")


@pytest.mark.parametrize("change", [{"steps": 7}, {"force": True}, {"weights": ("TINYCLIP=x",)}])
def test_other_settings_train_anew_and_drop_the_old_numbers(commands, tmp_path, change):
    mine = Demo(data=tmp_path / "mine", out=Path("out"))
    mine.run()
    replace(mine, **change).run()
    assert commands == ["train", "eval"] * 2


def test_an_interrupted_training_is_not_taken_for_finished(commands, tmp_path):
    run = RunFiles(tmp_path / "out", tmp_path / "out/mine/f3rm-lite/run")
    run.folder.mkdir(parents=True)
    (run.folder / "config.yml").write_text("")
    run.metrics.write_text("{}")
    Demo(data=tmp_path / "mine", out=Path("out")).run()
    assert commands == ["train", "eval"]


def test_without_data_the_tabletop_is_made_once(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    made = []
    monkeypatch.setattr(
        demo_module, "make_tabletop", lambda folder, show_progress: made.append(folder) or True
    )
    assert Demo()._dataset() == tmp_path / "datasets/tabletop"
    assert made == [Path("datasets/tabletop")]


@pytest.mark.slow
def test_the_whole_demo_on_a_tiny_scene(train_seed, tmp_path):
    need_raycaster()
    make_tabletop(tmp_path / "tiny", SceneSettings(train_seed, views=8, height=48, width=64))
    words = [sys.executable, "-m", "f3rm.scripts.cli", "demo", "--data", "tiny", "--out", "out"]
    words += ["--steps", "10", "--dataparser", "train-split-fraction=0.75"]
    environment = {**os.environ, "PYTHONWARNINGS": "ignore", "CUDA_VISIBLE_DEVICES": ""}

    def demo():
        return subprocess.run(
            words,
            cwd=tmp_path,
            env=environment,
            capture_output=True,
            text=True,
            check=False,
            timeout=600,
        )

    first = demo()
    assert first.returncode == 0, first.stdout[-2000:] + first.stderr[-2000:]
    run = RunFiles(tmp_path / "out", tmp_path / "out/tiny/f3rm-lite/run")
    metrics = read_metrics(run)
    assert 3 < metrics["psnr"] < 40
    assert 0 <= metrics["miou"] <= 1
    assert 0 <= metrics["localisation"] <= 1
    assert f"{metrics['psnr']:.3f}" in first.stdout
    page = Page(run.page.read_text(encoding="utf-8"))
    assert len(page.images) == 2 * (3 + 5)  # two views: photograph, render, PCA, five answers
    assert "Features, and 10 training steps" in page.cells
    assert (run.pictures / "overview.png").is_file()
    written = run.config.stat().st_mtime_ns
    second = demo()
    assert second.returncode == 0
    assert "Using the finished run" in second.stdout
    assert run.config.stat().st_mtime_ns == written
