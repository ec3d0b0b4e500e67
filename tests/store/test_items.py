import json
from pathlib import Path

import pytest

from f3rm.errors import DatasetError, ImageError
from f3rm.store.items import ImageItem, items_from_paths, read_items
from tests.extract.toy import write_frames


def touch(root: Path, *names: str) -> None:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()


def test_items_follow_the_frames_and_count_a_file_once(tmp_path):
    touch(tmp_path, "images/b.png", "images/a.png", "other/a.png")
    write_frames(tmp_path, ["images/b.png", "./images/a.png", "other/a.png", "images/b.png"])
    expected = ["images/b.png", "images/a.png", "other/a.png"]
    assert read_items(tmp_path) == [ImageItem(name, tmp_path / name) for name in expected]


def test_items_of_a_json_file_with_spaces_and_unicode(tmp_path):
    touch(tmp_path, "images/été 1.png")
    (tmp_path / "my.json").write_text(
        json.dumps({"frames": [{"file_path": "images/été 1.png"}]}), encoding="utf-8"
    )
    assert [item.name for item in read_items(tmp_path / "my.json")] == ["images/été 1.png"]


def test_relative_data_gives_absolute_paths(tmp_path, monkeypatch):
    touch(tmp_path, "scene/a.png")
    write_frames(tmp_path / "scene", ["a.png"])
    monkeypatch.chdir(tmp_path)
    assert read_items(Path("scene"))[0].path == tmp_path / "scene" / "a.png"


def test_items_from_paths_are_relative_inside_and_absolute_outside(tmp_path):
    root = tmp_path / "scene"
    items = items_from_paths(
        [root / "images/a.png", tmp_path / "b.png", root / "images/a.png"], root
    )
    assert [item.name for item in items] == ["images/a.png", (tmp_path / "b.png").as_posix()]
    assert [item.path for item in items] == [root / "images/a.png", tmp_path / "b.png"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, r"without transforms\.json\. Point --data at such a folder"),
        ("{", r"must be readable JSON, got: .*ns-process-data"),
        ("[" * 10**5, "must be readable JSON, got: "),
        ("[]", 'must have "frames", at least one, got none'),
        ('{"frames": 3}', 'must have "frames", at least one, got none'),
        ('{"frames": []}', 'must have "frames", at least one, got an empty list'),
        ('{"frames": [{}]}', 'Frame 0 of .* must have a "file_path"'),
        ('{"frames": [{"file_path": 3}]}', 'Frame 0 of .* must have a "file_path"'),
        ('{"frames": ["a.png"]}', 'Frame 0 of .* must have a "file_path"'),
    ],
    ids=["none", "cut", "deep", "list", "number", "empty", "no-path", "number-path", "text"],
)
def test_unusable_transforms(tmp_path, content, message):
    if content is not None:
        (tmp_path / "transforms.json").write_text(content)
    with pytest.raises(DatasetError, match=message):
        read_items(tmp_path)


def test_missing_images_are_counted_and_the_first_named(tmp_path):
    touch(tmp_path, "ok.png")
    write_frames(tmp_path, ["ok.png", "a.png", "b.png", "c.png", "d.png"])
    with pytest.raises(
        ImageError, match=r"4 of 5 named in .*: a\.png, b\.png, c\.png \.\.\.\. Put"
    ):
        read_items(tmp_path)


def test_a_missing_folder_is_said_as_such(tmp_path):
    with pytest.raises(
        DatasetError, match=r"^No such folder: .*nowhere'\. Check the path given with --data\.$"
    ):
        read_items(tmp_path / "nowhere")
