"""``f3rm find`` and ``f3rm label``: what is printed and written is what the scene answers."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

from f3rm.errors import BackboneRef, F3rmError
from f3rm.language.text_map import TextMap
from f3rm.scripts.asking import Asked, read_examples
from f3rm.scripts.cli import main
from tests.viewer.colour_backbone import COLOURS


def test_a_table_has_a_row_for_each_instance_and_says_why_others_are_missing(run, tmp_path, capsys):
    picture = tmp_path / "found.png"
    words = ["orange; yellow", "--picture", str(picture), "--device", "cpu"]
    assert main(["find", str(run.config), *words]) == 0
    said = capsys.readouterr().out
    assert "centre (m)" in said
    assert [line.split()[:2] for line in said.splitlines() if " x " in line] == [["orange", "1"]]
    assert "yellow: absent, best score 0." in said
    with Image.open(picture) as shown:
        pixels = np.asarray(shown.convert("RGB")).reshape(-1, 3)
    assert (pixels == (213, 94, 0)).all(axis=1).sum() > 200  # the first colour's edges


def test_json_has_the_keys_of_boxes_and_nothing_else_is_printed(run, tmp_path, capsys):
    words = ["--query", "orange", "--frame", "metres", "--out", str(tmp_path / "boxes.json")]
    assert main(["export", str(run.config), "boxes", *words]) == 0
    capsys.readouterr()
    assert main(["find", str(run.config), "orange", "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed == json.loads((tmp_path / "boxes.json").read_text())


def test_the_rule_of_a_command_is_that_of_the_scene(run, scene, capsys):
    for rule in ("lerf", "scene"):
        assert main(["find", str(run.config), "orange", "--json", "--rule", rule]) == 0
        (answer,) = json.loads(capsys.readouterr().out)["queries"]
        best = scene.find("orange", rule=rule).best_score
        assert answer["best_score"] == pytest.approx(best, abs=0.02)
    assert main(["find", str(run.config), "--like", "frame_00001@80,60", "--rule", "scene"]) == 1
    assert "--rule is how words are asked" in capsys.readouterr().err


def test_clicks_label_views_from_the_command_line(run, tmp_path, capsys):
    words = ["--like", "a = frame_00001@80,60; b = frame_00002@80,60", "--out", str(tmp_path)]
    words += ["--views", "eval", "--downscale", "4", "--rays", "2000", "--head", "mute"]
    assert main(["label", str(run.config), *words]) == 0
    assert "Wrote" in capsys.readouterr().out
    names = sorted(file.name for file in tmp_path.iterdir())
    assert names == ["frame_00012.png", "frame_00023.png", "labels.json", "points.ply"]


def test_examples_are_read_from_the_command_line(tmp_path):
    file = tmp_path / "mug.png"
    file.write_bytes(b"")
    text = f"fox = a/1.jpg@3,4; fox=2@5, 6.5; {file}; part={file}@0,1,2,3; @0.1,-2,3"
    assert read_examples(text) == {
        "fox": [("a/1.jpg", [3, 4]), ("2", [5, 6.5])],
        str(file)[:39] + "…" if len(str(file)) > 40 else str(file): [str(file)],
        "part": [(str(file), [0, 1, 2, 3])],
        "@0.1,-2,3": [[[0.1, -2, 3]]],
    }
    assert read_examples(" ; ") == {}
    assert not Asked.read(" ", "")
    assert Asked.read("a; b", "").words == ("a", "b")


@pytest.mark.parametrize(
    ("query", "like", "message"),
    [
        ("red", "1@2,3", "were both given"),
        ("", "1@2", "--like must be VIEW@X,Y"),
        ("", "1@2,x", "--like must be VIEW@X,Y"),
        ("", "@1,2", "--like must be VIEW@X,Y"),
        ("", "nowhere.png", "no image 'nowhere.png'"),
        ("", f"{__file__}@10,10,10,20", "left < right and top < bottom"),
        ("", "1@2,3;" * 500, "may hold 255 questions"),
        ("", "x" * 10_000, "no image 'xxx"),
        ("red " * 2500, "", "may have 1000 letters"),
        ("red;" * 500, "", "may hold 255 questions"),
        ("(red", "", "a bracket that is not closed"),
    ],
)
def test_what_cannot_be_asked_is_refused_before_a_run_is_opened(query, like, message, capsys):
    with pytest.raises(F3rmError, match=message):
        Asked.read(query, like)
    assert main(["find", "nowhere", query, "--like", like]) == 1
    assert "nowhere'" not in capsys.readouterr().err.replace("'nowhere.png'", "")


def test_nothing_asked_and_other_pictures_are_refused(capsys):
    for words, message in [
        ([], "What to look for is missing"),
        (["red", "--picture", "found.gif"], "must end in .png or .jpg"),
    ]:
        assert main(["find", "nowhere", *words]) == 1
        assert message in capsys.readouterr().err
    assert main(["label", "nowhere"]) == 1
    assert "Labels are missing" in capsys.readouterr().err


def test_a_head_without_texts_is_asked_in_a_language(run, tmp_path, capsys):
    text = BackboneRef("colours", "colours", "none")
    TextMap({"linear.weight": torch.eye(len(COLOURS))}, text).save(tmp_path / "plain.safetensors")
    words = ["find", str(run.config), "orange thing", "--head", "mute", "--json"]
    assert main(words) == 1
    assert "no text tower" in capsys.readouterr().err
    assert main([*words, "--language", str(tmp_path / "plain.safetensors")]) == 0
    assert '"orange thing"' in capsys.readouterr().out
