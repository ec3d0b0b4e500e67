"""Names that datasets supply: where their files go, and how they look in a terminal."""

import json
from pathlib import Path

import pytest
from hypothesis import given, strategies as st

from f3rm.errors import F3rmError, printable
from f3rm.scripts import cli
from f3rm.store.images import content_hash, inspect_images
from f3rm.store.items import read_items
from f3rm.store.names import UnsafeNameError, place_below, safe_part, safe_path, safe_paths
from tests.extract.toy import extract, folder_of, write_dataset, write_frames

ESCAPE = "images/\x1b[2J\x1b[31mred\nf3rm: all is well\u202e.png"


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("images/0.png", "images/0.png"),
        ("images/übung 1 猫.png", "images/übung 1 猫.png"),
        ("../images/a.jpg", "images/a.jpg"),
        ("images/../../../etc/passwd", "images/etc/passwd"),
        ("/etc/passwd", "etc/passwd"),
        ("//server/share/a.png", "server/share/a.png"),
        ("C:\\images\\..\\a.png", "images/a.png"),
        ("c:a.png", "a.png"),
        ("images\\a.png", "images/a.png"),
        ("./images//a.png", "images/a.png"),
        ("images/\x1b[2Ja\nb.png", "images/_[2Ja_b.png"),
        ("images/a\0b.png", "images/a_b.png"),
        ("con: a?.png", "con_ a_.png"),
    ],
)
def test_a_name_becomes_a_relative_path(name, expected):
    assert safe_path(name).as_posix() == expected


@pytest.mark.parametrize("name", ["", ".", "..", "/", "../..", "C:", "C:\\..", "...", "a:/ . /"])
def test_a_name_of_which_nothing_is_left_is_refused(name):
    with pytest.raises(UnsafeNameError, match=r"must have a part other than '\.' and '\.\.', got "):
        safe_path(name)


NAMES = st.text(st.sampled_from("ab./\\:%\0\x1b\n ~é猫\ud800"), max_size=30) | st.text(max_size=400)


@given(NAMES)
def test_no_name_leads_out_of_the_folder(name):
    try:
        relative = safe_path(name)
    except UnsafeNameError:
        return
    assert not relative.is_absolute()
    assert ".." not in relative.parts
    assert all(part.isprintable() and len(part.encode()) <= 200 for part in relative.parts)
    assert safe_path(relative.as_posix()) == relative
    folder = Path("/nowhere/out")
    assert place_below(folder, relative).resolve().is_relative_to(folder)


def test_long_parts_stay_apart():
    names = ["x" * 300 + ending for ending in ("a.png", "b.png")]
    paths = safe_paths(names)
    assert len(set(paths.values())) == 2
    assert all(len(path.name.encode()) <= 200 for path in paths.values())
    assert safe_part("é" * 101 + "1") != safe_part("é" * 101 + "2")


def test_names_that_give_one_file_are_refused():
    assert len(safe_paths(["a/x.png", "b/x.png"])) == 2
    for other in ("../a/x.png", "/a/x.png", "a\\x.png", "a//x.png"):
        with pytest.raises(UnsafeNameError, match=r"both give 'a/x\.png'"):
            safe_paths(["a/x.png", other])


def test_links_out_of_the_folder_are_refused_and_links_inside_are_not(tmp_path):
    out, secret = tmp_path / "out", tmp_path / "secret"
    (out / "real").mkdir(parents=True)
    secret.mkdir()
    (out / "away").symlink_to(secret)
    (out / "within").symlink_to(out / "real")
    with pytest.raises(UnsafeNameError, match="a link on the way leads out of it"):
        place_below(out, safe_path("away/a.png"))
    with pytest.raises(UnsafeNameError, match="a link on the way leads out of it"):
        place_below(out, safe_path("away/deeper/a.png"))
    assert place_below(out, safe_path("within/a.png")) == out / "within/a.png"
    (tmp_path / "link").symlink_to(out)
    assert place_below(tmp_path / "link", safe_path("real/a.png")).parent.is_dir()


def test_what_a_terminal_would_obey_is_escaped():
    assert printable("a\x1b[2J\u202eb\n\x9b\ud800é猫") == "a\\x1b[2J\\u202eb\\n\\x9b\\ud800é猫"
    assert printable("a\n\tb\x1b", lines=True) == "a\n\tb\\x1b"
    assert str(F3rmError("bad \x1b[31m name\nnext")) == "bad \\x1b[31m name\nnext"


@pytest.fixture
def odd(tmp_path):
    """A dataset with an image whose name clears the terminal and forges a line."""
    root = write_dataset(tmp_path / "scene", [(24, 33)] * 2)
    (root / "images/1.png").rename(root / ESCAPE)
    write_frames(root, ["images/0.png", ESCAPE])
    return root


def clean(text: str) -> str:
    """Returns what was printed, after checking that nothing in it is obeyed or forged."""
    assert all(letter.isprintable() or letter == "\n" for letter in text), repr(text)
    assert "\nf3rm: all is well" not in text
    return text


def test_no_command_sends_a_name_to_the_terminal(odd, python, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    data = ("--data", str(odd), "--cache-dir", str(odd / "cache"))
    command = ("extract", *data, "--feature-type", "toy")
    (odd / ESCAPE).write_bytes(b"no image")
    process = python("-m", "f3rm.scripts.cli", *command, "--on-error", "record")
    out, err = (clean(text) for text in process.communicate(timeout=120))
    assert process.returncode == 0
    assert "has no features" in " ".join(err.split())
    assert "1 images" in out
    assert cli.main(["cache", "status", *data]) == 0
    assert "1 image(s) failed" in " ".join(clean(capsys.readouterr().out).split())
    write_frames(odd, [f"{ESCAPE}.jpg"])
    assert cli.main(["cache", "verify", *data]) == 1
    assert "red\\nf3rm: all is well\\u202e.png.jpg: The image is not" in clean(
        capsys.readouterr().out
    )
    assert cli.main(["extract", *data]) == 1
    err = clean(capsys.readouterr().err)
    assert "1 of 1 named in" in err
    assert "\\x1b[2J\\x1b[31mred\\nf3rm: all is well" in err


def test_texts_of_a_manifest_are_escaped_too(tmp_path, capsys):
    root = write_dataset(tmp_path / "scene", [(24, 33)] * 2)
    extract(root)
    path = folder_of(root) / "manifest.json"
    plain = json.loads(path.read_text())
    plain["failed"] = [{"name": ESCAPE, "bytes": 0, "mtime_ns": 0, "error": "\x1b[2J\nforged"}]
    path.write_text(json.dumps(plain))
    write_frames(root, ["images/0.png", "images/1.png", ESCAPE])
    for action in ("status", "verify"):
        cli.main(["cache", action, "--data", str(root)])
    folder_of(root).rename(folder_of(root).with_name("\x1b[2J"))
    for action in ("status", "verify"):
        cli.main(["cache", action, "--data", str(root)])
    clean(capsys.readouterr().out)


def test_names_that_no_manifest_can_hold_are_refused(tmp_path):
    for name in ("a\0b.png", "\ud800.png"):
        write_frames(tmp_path, [name])
        assert cli.main(["extract", "--data", str(tmp_path)]) == 1
    for name in ("x" * 300 + ".png", "/dev/zero", "~root/a.png", "images"):
        write_frames(tmp_path, [name])
        assert cli.main(["extract", "--data", str(tmp_path)]) == 1


def test_a_device_is_no_image(tmp_path):
    """Read as one it would never end: with missing images allowed, every named file is read."""
    root = write_dataset(tmp_path / "scene", [(24, 33)] * 2)
    write_frames(root, ["images/0.png", "/dev/zero"])
    items = read_items(root, present=False)
    failed: dict[str, str] = {}
    assert len(inspect_images(items, failed=failed)) == 1
    assert "is missing or not a file" in failed["/dev/zero"]
    with pytest.raises(OSError, match="is missing or not a file"):
        content_hash(items[1].path)
