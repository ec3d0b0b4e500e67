import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from f3rm._types import F3rmError, FeatureTypeError
from f3rm.backbones.registry import load_backbone
from f3rm.evaluation.raycast import RaycastError, unit_mesh
from f3rm.evaluation.scenes import SceneSettings, make_tabletop
from f3rm.features.spec import resolve_feature_type
from f3rm.scripts import demo as demo_module
from f3rm.scripts.command import run_command
from f3rm.scripts.demo import (
    Demo,
    call,
    child_environment,
    dataparser_words,
    eval_command,
    train_command,
    write_random_weights,
)
from f3rm.scripts.demo_report import (
    RunFiles,
    activation,
    assemble_picture,
    closing_words,
    head_key,
    read_numbers,
    shown,
)

OPTION = "--pipeline.datamanager"
METRICS = {"psnr": 25.5, "feature_cosine_dino": 0.75, "feature_cosine_clip": 0.5, "ssim": 0.8}


def option(words, name):
    return words[words.index(name) + 1]


def trained(demo=None, data=Path("/data/room"), weights=("CLIP=a", "DINO=b"), device="cpu"):
    return train_command(
        demo or Demo(), data=data, out=Path("/out"), weights=weights, device=device
    )


def test_training_is_nerfstudio_s_command_in_this_python():
    words = trained()
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


def test_features_of_random_weights_stay_out_of_the_dataset():
    assert option(trained(), f"{OPTION}.feature-cache-dir") == "/out/features"
    assert f"{OPTION}.feature-cache-dir" not in trained(Demo(weights=("CLIP=a",)))
    real = trained(Demo(pretrained=True), weights=())
    assert f"{OPTION}.feature-cache-dir" not in real
    assert f"{OPTION}.weights" not in real


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


def test_evaluation_writes_beside_the_run():
    words = eval_command(RunFiles(Path("/out/room/f3rm-lite/run")))
    assert words[:3] == [sys.executable, "-m", "nerfstudio.scripts.eval"]
    assert option(words, "--load-config") == "/out/room/f3rm-lite/run/config.yml"
    assert option(words, "--output-path") == "/out/room/f3rm-lite/run/metrics.json"
    assert option(words, "--render-output-path") == "/out/room/f3rm-lite/run/pictures"


def test_only_a_cpu_run_hides_the_gpus(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1")
    assert child_environment("cpu", small_networks=True)["CUDA_VISIBLE_DEVICES"] == ""
    assert child_environment("cuda", small_networks=True)["CUDA_VISIBLE_DEVICES"] == "1"
    assert os.environ["CUDA_VISIBLE_DEVICES"] == "1"


@pytest.mark.parametrize(
    ("device", "small", "cores", "threads"),
    [
        ("cpu", True, 2, "1"),
        ("cpu", True, 64, "1"),
        ("cpu", False, 2, "1"),
        ("cpu", False, 64, None),
        ("cuda", True, 2, None),
    ],
)
def test_small_work_gets_one_thread(monkeypatch, device, small, cores, threads):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: cores)
    assert child_environment(device, small_networks=small).get("OMP_NUM_THREADS") == threads


def test_what_the_user_has_set_stays(monkeypatch):
    monkeypatch.delenv("PYTHONWARNINGS", raising=False)
    assert child_environment("cpu", small_networks=True)["PYTHONWARNINGS"] == "ignore"
    monkeypatch.setenv("PYTHONWARNINGS", "default")
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    environment = child_environment("cpu", small_networks=True)
    assert environment["PYTHONWARNINGS"] == "default"
    assert environment["OMP_NUM_THREADS"] == "3"


@pytest.mark.parametrize("name", ["DINOCLIP", "DINOV2"])
def test_random_weights_are_written_once_and_load(tmp_path, name):
    specs = resolve_feature_type(name)
    entries = write_random_weights(specs, tmp_path)
    assert [entry.split("=")[0].lower() for entry in entries] == [spec.name for spec in specs]
    for spec in resolve_feature_type(name, weights=entries):
        assert load_backbone(spec.backbone).channels < 100
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    assert write_random_weights(specs, tmp_path) == entries
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == before


def test_random_weights_that_were_cut_short_are_written_again(tmp_path, monkeypatch):
    specs = resolve_feature_type("CLIP")

    def fail(folder):
        folder.mkdir()
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setitem(demo_module._RANDOM_WRITERS, "clip", fail)
        with pytest.raises(KeyboardInterrupt):
            write_random_weights(specs, tmp_path)
    (entry,) = write_random_weights(specs, tmp_path)
    assert (Path(entry.partition("=")[2]) / "open_clip_config.json").is_file()


def test_a_folder_that_cannot_be_written_to_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(F3rmError, match="Choose another --out"):
        write_random_weights(resolve_feature_type("DINO"), tmp_path / "file")


def test_failing_commands_are_named(capfd):
    code = "print('seen at once'); raise SystemExit(3)"
    with pytest.raises(F3rmError, match=r"demo: print.* ended with code 3.* run the demo again"):
        call([sys.executable, "-c", code], os.environ)
    out = capfd.readouterr().out
    assert out.startswith("\n$ python -c ")
    assert "seen at once" in out


def test_killed_commands_are_named():
    code = "import os, signal; os.kill(os.getpid(), signal.SIGKILL)"
    with pytest.raises(F3rmError, match="killed by signal 9"):
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


def test_types_without_a_random_writer_need_weights(monkeypatch):
    monkeypatch.delitem(demo_module._RANDOM_WRITERS, "clip")
    with pytest.raises(F3rmError, match=r"no weights are given, got 'clip'.*--pretrained"):
        Demo(feature_type="CLIP")._check()
    Demo(feature_type="CLIP", pretrained=True)._check()
    with pytest.raises(FeatureTypeError):
        Demo(feature_type="nothing")._check()


def finished(folder: Path) -> RunFiles:
    """A run with what ns-eval writes: two views, heads dino and clip."""
    run = RunFiles(folder)
    run.pictures.mkdir(parents=True)
    for index in range(2):
        for shade, key in enumerate(("img", "feature_pca_dino", "feature_pca_clip")):
            pixels = np.full((6, 20, 3), 40 * shade + index, np.uint8)
            Image.fromarray(pixels).save(run.pictures / f"eval_{key}_{index:04d}.png")
    run.metrics.write_text(json.dumps({"results": METRICS}))
    return run


def test_the_picture_has_a_row_per_view_and_two_columns_per_kind(tmp_path):
    run = finished(tmp_path / "run")
    assemble_picture(run, ["dino", "clip"], tmp_path / "deep" / "demo.png")
    with Image.open(tmp_path / "deep" / "demo.png") as picture:
        pixels = np.asarray(picture)
    assert pixels.shape == (16 + 2 * 6, 60, 3)
    for row in range(2):
        values = pixels[16 + 6 * row + 3, 5::20, 0]
        np.testing.assert_array_equal(values, [row, 40 + row, 80 + row])


def test_wide_pictures_are_made_smaller(tmp_path):
    run = RunFiles(tmp_path)
    run.pictures.mkdir()
    for key in ("img", "feature_pca"):
        Image.new("RGB", (4000, 100)).save(run.pictures / f"eval_{key}_0000.png")
    assemble_picture(run, ["clip"], tmp_path / "demo.png")
    with Image.open(tmp_path / "demo.png") as picture:
        assert picture.size == (1920, 16 + 24)


def test_missing_pictures_and_numbers_are_explained(tmp_path):
    run = RunFiles(tmp_path)
    with pytest.raises(F3rmError, match=r"pictures of ns-eval.*--force"):
        assemble_picture(run, ["clip"], tmp_path / "demo.png")
    with pytest.raises(F3rmError, match=r"psnr, feature_cosine.*--force"):
        read_numbers(run, ["clip"])


def test_numbers_are_those_of_each_head(tmp_path):
    numbers = read_numbers(finished(tmp_path), ["dino", "clip"])
    assert numbers == {key: METRICS[key] for key in METRICS if key != "ssim"}
    assert head_key("feature_cosine", "clip", ["clip"]) == "feature_cosine"


@pytest.mark.parametrize("random", [True, False])
def test_the_last_words_name_the_commands(tmp_path, monkeypatch, random):
    monkeypatch.chdir(tmp_path)
    run = RunFiles(tmp_path / "out" / "run")
    device = "cpu" if random else "cuda"
    picture = tmp_path / "out" / "a.png"
    words = closing_words(run, ["dino", "clip"], METRICS, picture, random=random, device=device)
    assert "ns-viewer --load-config out/run/config.yml" in words
    assert "--rendered-output-names feature_pca_dino --output-path out/pca.mp4" in words
    assert "psnr                   25.500" in words
    assert "ns-process-data images" in words
    assert ("RANDOM weights" in words) == random
    assert ("--interpolation-steps 3 --downscale-factor 2" in words) == (device == "cpu")
    assert shown(Path("/elsewhere/x")) == "/elsewhere/x"


@pytest.fixture
def commands(monkeypatch, tmp_path):
    """The demo without Nerfstudio: what it calls is noted, and the files appear."""
    monkeypatch.chdir(tmp_path)
    called: list[str] = []

    def pretend(command, environment):
        called.append(command[2].rpartition(".")[2])
        run = RunFiles(tmp_path / "out/mine/f3rm-lite/run")
        if called[-1] == "train":
            run.folder.mkdir(parents=True)
            run.config.write_text("")
        else:
            finished(run.folder)

    monkeypatch.setattr(demo_module, "call", pretend)
    return called


def test_a_finished_run_is_used_again(commands, tmp_path, capsys):
    mine = Demo(data=tmp_path / "mine", out=Path("out"))
    mine.run()
    assert commands == ["train", "eval"]
    mine.run()
    assert commands == ["train", "eval"]
    assert "Using the finished run in out/mine" in capsys.readouterr().out
    (tmp_path / "out/mine/f3rm-lite/run/metrics.json").unlink()
    (tmp_path / "out/mine/f3rm-lite/run/pictures").rename(tmp_path / "old")
    mine.run()
    assert commands == ["train", "eval", "eval"]


@pytest.mark.parametrize("change", [{"steps": 7}, {"force": True}, {"weights": ("CLIP=x",)}])
def test_other_settings_train_anew_and_drop_the_old_numbers(commands, tmp_path, change):
    mine = Demo(data=tmp_path / "mine", out=Path("out"))
    mine.run()
    replace(mine, **change).run()
    assert commands == ["train", "eval", "train", "eval"]


def test_an_interrupted_training_is_not_taken_for_finished(commands, tmp_path):
    run = RunFiles(tmp_path / "out/mine/f3rm-lite/run")
    run.folder.mkdir(parents=True)
    run.config.write_text("")
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
def test_the_whole_demo_on_a_tiny_scene(tmp_path):
    try:
        unit_mesh("box")
    except RaycastError as error:
        pytest.skip(str(error))
    make_tabletop(tmp_path / "tiny", SceneSettings(views=8, height=48, width=64))
    words = [sys.executable, "-m", "f3rm.scripts.demo", "--data", "tiny", "--out", "out"]
    words += [
        "--steps",
        "10",
        "--feature-type",
        "DINO",
        "--dataparser",
        "train-split-fraction=0.75",
    ]
    environment = {**os.environ, "PYTHONWARNINGS": "ignore", "CUDA_VISIBLE_DEVICES": ""}

    def demo():
        return subprocess.run(
            words, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
        )

    first = demo()
    assert first.returncode == 0, first.stdout[-2000:] + first.stderr[-2000:]
    run = RunFiles(tmp_path / "out/tiny/f3rm-lite/run")
    numbers = read_numbers(run, ["dino"])
    assert 3 < numbers["psnr"] < 40
    assert -1 <= numbers["feature_cosine"] <= 1
    assert f"psnr                   {numbers['psnr']:.3f}" in first.stdout
    with Image.open(tmp_path / "out/demo.png") as picture:
        assert picture.size == (4 * 64, 16 + 2 * 48)
    assert not (tmp_path / "tiny/features").exists()
    written = run.config.stat().st_mtime_ns
    second = demo()
    assert second.returncode == 0
    assert "Using the finished run" in second.stdout
    assert run.config.stat().st_mtime_ns == written


def test_the_way_to_activate_is_told_only_where_it_is_needed(monkeypatch):
    monkeypatch.setattr("sys.prefix", "/somewhere/.venv")
    monkeypatch.delenv("VIRTUAL_ENV", raising=False)
    assert "source /somewhere/.venv/bin/activate" in "\n".join(activation())
    monkeypatch.setenv("VIRTUAL_ENV", "/somewhere/.venv")
    assert activation() == []
