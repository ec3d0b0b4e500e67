import hashlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from f3rm.errors import DatasetError
from f3rm.scripts import cli
from f3rm.synthetic import scenes
from f3rm.synthetic.preview import write_preview
from f3rm.synthetic.scenes import SceneSettings, make_scene, make_tabletop, model_options
from tests.scene_fixtures import need_raycaster, write_scene

SMALL = SceneSettings(seed=0, views=4, height=48, width=64)


@pytest.fixture(scope="module", autouse=True)
def raycaster():
    need_raycaster()


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    folder = tmp_path_factory.mktemp("scene") / "tabletop"
    assert make_tabletop(folder, SMALL)
    return folder


def digests(folder: Path) -> dict[str, str]:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in files
    }


def test_the_same_seed_gives_the_same_bytes(written, tmp_path):
    make_tabletop(tmp_path / "tabletop", SMALL)
    assert digests(tmp_path / "tabletop") == digests(written)


def test_another_seed_gives_another_scene(written, tmp_path):
    make_tabletop(tmp_path / "other", replace(SMALL, seed=1))
    assert not set(digests(tmp_path / "other").values()) & set(digests(written).values())


def test_the_same_scene_is_used_as_it_is(written):
    before = {path: path.stat().st_mtime_ns for path in written.rglob("*")}
    (written / "features").mkdir(exist_ok=True)  # what training adds does not matter
    assert not make_tabletop(written, SMALL)
    (written / "features").rmdir()
    assert {path: path.stat().st_mtime_ns for path in before if path != written} == {
        path: stamp for path, stamp in before.items() if path != written
    }


def test_an_empty_folder_is_filled(tmp_path):
    (tmp_path / "scene").mkdir()
    assert make_tabletop(tmp_path / "scene", SMALL)


@pytest.mark.parametrize("present", ["photo.jpg", "scene.json"])
def test_a_folder_with_other_files_is_refused_and_left_alone(tmp_path, present):
    (tmp_path / present).write_text("mine")
    with pytest.raises(DatasetError, match=r"new, empty, or hold the same scene, .* other files"):
        make_tabletop(tmp_path, SMALL)
    assert [path.name for path in tmp_path.iterdir()] == [present]
    assert (tmp_path / present).read_text() == "mine"


@pytest.mark.parametrize(
    "gone", ["images/frame_00002.png", "truth/ids/frame_00004.png", "truth/depth/frame_00001.png"]
)
def test_another_scene_and_an_incomplete_one_are_refused(tmp_path, gone):
    folder = tmp_path / "scene"
    make_tabletop(folder, SMALL)
    before = digests(folder)
    with pytest.raises(DatasetError, match="another scene"):
        make_tabletop(folder, replace(SMALL, seed=1))
    with pytest.raises(DatasetError, match="another scene"):
        make_scene(folder, "room", SMALL)
    assert digests(folder) == before
    (folder / gone).unlink()
    with pytest.raises(DatasetError, match="incomplete"):
        make_tabletop(folder, SMALL)


def test_a_file_in_the_place_of_the_folder_is_refused(tmp_path):
    (tmp_path / "scene").write_text("mine")
    with pytest.raises(DatasetError, match="other files"):
        make_tabletop(tmp_path / "scene", SMALL)


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
def test_an_interrupted_run_leaves_nothing(tmp_path, monkeypatch, error):
    def fail(*_):
        raise error

    monkeypatch.setattr(scenes, "_transforms", fail)  # after the images
    with pytest.raises(error):
        make_tabletop(tmp_path / "deep" / "scene", SMALL)
    assert list((tmp_path / "deep").iterdir()) == []


def test_a_place_that_cannot_be_written_to_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(DatasetError, match="Choose another folder"):
        make_tabletop(tmp_path / "file" / "scene", SMALL)


@pytest.mark.parametrize(("name", "value"), [("views", 1), ("height", 7), ("seed", -1)])
def test_settings_out_of_range_are_refused(name, value):
    with pytest.raises(DatasetError, match=f"{name} must be at least"):
        replace(SMALL, **{name: value})


def test_datasets_of_others_need_no_options(tmp_path):
    assert model_options(tmp_path) == []
    for content in ("[]", '{"near_plane": 0.1}', "{"):
        (tmp_path / "scene.json").write_text(content)
        assert model_options(tmp_path) == []


def test_the_command_writes_and_says_what_is_next(tmp_path, capsys):
    words = ["make-scene", "tabletop", "--out", str(tmp_path / "s"), "--views", "2"]
    words += ["--height", "16", "--width", "24"]
    assert cli.main(words) == 0
    first = capsys.readouterr().out
    assert "Wrote 2 views of 16 x 24" in first
    shipped = "--pipeline.datamanager.feature-type TINYCLIP"
    assert f"ns-train f3rm {shipped} --data {tmp_path / 's'}" in first
    assert "2 x " in first.splitlines()[1]  # the twins
    assert "f3rm eval" in first
    assert not (tmp_path / "s" / "preview.png").exists()
    assert cli.main([*words, "--preview"]) == 0
    second = capsys.readouterr().out
    assert "Already there: 2 views" in second
    assert f"See {tmp_path / 's' / 'preview.png'}" in second
    assert cli.main([*words, "--seed", "3"]) == 1
    assert "must be new, empty" in capsys.readouterr().err
    assert cli.main(["make-scene", "room", *words[2:]]) == 1
    assert "another scene" in capsys.readouterr().err


def test_a_preview_has_a_column_per_photograph_and_three_rows(tmp_path):
    folder = write_scene(tmp_path / "s", "tabletop-mixed", views=10)
    assert write_preview(folder) == folder / "preview.png"
    with Image.open(folder / "preview.png") as image:
        assert image.height == 3 * 300 + 4 * 6
        assert image.width > 4 * 200
        assert image.getpixel((0, 0)) == (255, 255, 255)
        assert len(np.unique(np.asarray(image).reshape(-1, 3), axis=0)) > 1000
    assert not make_scene(folder, "tabletop-mixed", replace(SMALL, views=10))  # still the same


def test_a_preview_that_cannot_be_written_is_explained(tmp_path):
    folder = write_scene(tmp_path / "s", views=2)
    (folder / "preview.png").mkdir()
    with pytest.raises(DatasetError, match=r"preview\.png.*writable"):
        write_preview(folder)
