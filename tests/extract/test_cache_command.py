"""``f3rm cache``: damage is found, named and repaired; nothing else is touched."""

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from f3rm.errors import CacheError, CacheMismatchError
from f3rm.extract.locks.file_locks import WorkerLocks
from f3rm.extract.maintenance import (
    cache_folders,
    remove_features,
    repair_cache,
    unfinished,
    verify_cache,
)
from f3rm.scripts import cli
from f3rm.store.items import read_items
from f3rm.store.reader import FeatureStore
from tests.extract.toy import (
    ToyBackbone,
    building_of,
    extract,
    files_of,
    folder_of,
    items_of,
    random_pixels,
    toy_spec,
)


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.unlink()  # not through a hard link
    path.write_bytes(content)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-2])


def lengthen(path: Path) -> None:
    path.write_bytes(path.read_bytes() + b"\0\0")


def swap(path: Path) -> None:
    shutil.copy(path.with_name("chunk_0000.npy"), path)


def other_shape(path: Path) -> None:
    np.save(path, np.zeros((2, 8, 12, 3), dtype=np.float16))


def other_dtype(path: Path) -> None:
    np.save(path, np.load(path).astype(np.float32))


def objects(path: Path) -> None:
    path.unlink()
    with path.open("wb") as stream:
        np.save(stream, np.array([os.abort], dtype=object), allow_pickle=True)


def folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def dangling(path: Path) -> None:
    path.unlink()
    path.symlink_to(path.with_name("nowhere"))


def gone(path: Path) -> None:
    path.unlink()


DAMAGES = [flip, cut, lengthen, swap, other_shape, other_dtype, objects, folder, dangling, gone]
SILENT = (flip, swap)
"""Damages that only reading all bytes finds."""


def repair(root: Path) -> FeatureStore:
    return repair_cache(folder_of(root), items_of(root), load=ToyBackbone.load, progress=False)


@pytest.mark.parametrize("damage", DAMAGES, ids=lambda damage: damage.__name__)
def test_a_damaged_chunk_is_named_and_only_it_is_computed_again(dataset, events, damage):
    extract(dataset)
    before = files_of(folder_of(dataset))
    damage(folder_of(dataset) / "chunk_0001.npy")
    if damage not in SILENT:
        with pytest.raises(CacheMismatchError, match=r"chunk_0001\.npy"):
            FeatureStore.open(folder_of(dataset))
    found = list(verify_cache(folder_of(dataset), items_of(dataset)))
    assert [what.what for what in found] == ["chunk_0001.npy"]
    events()
    repair(dataset)
    assert events() == ["load", "run 2"]
    assert files_of(folder_of(dataset)) == before
    assert not list(verify_cache(folder_of(dataset), items_of(dataset)))
    left = {path.name for path in folder_of(dataset).parent.glob("toy.*")}
    assert left == ({"toy.kept-1"} if damage is folder else set())


def test_a_replaced_image_is_found_by_content_even_with_equal_size_and_time(dataset, events):
    image = dataset / "images/3.png"
    status = image.stat()
    extract(dataset)
    pixels = random_pixels((24, 33), 99)
    Image.fromarray(pixels).save(image)
    padding = status.st_size - image.stat().st_size
    image.write_bytes(image.read_bytes()[: status.st_size] + b"\0" * max(0, padding))
    os.utime(image, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert (image.stat().st_size, image.stat().st_mtime_ns) == (status.st_size, status.st_mtime_ns)
    extract(dataset)
    (found,) = verify_cache(folder_of(dataset), items_of(dataset))
    assert (found.what, "another one" in found.reason) == ("images/3.png", True)
    if padding < 0:
        return
    events()
    repair(dataset)
    assert events() == ["load", "run 2"]
    fresh = extract(dataset, folder=dataset / "fresh")
    assert files_of(fresh.folder) == files_of(folder_of(dataset))


def test_added_and_removed_images_are_differences_too(dataset):
    extract(dataset)
    items = [*items_of(dataset)[1:], read_items(dataset)[0].__class__("new.png", dataset / "new")]
    found = {what.what: what.reason for what in verify_cache(folder_of(dataset), items)}
    assert found == {
        "new.png": "The image is not in the cache.",
        "images/0.png": "The image is not in the dataset any more.",
    }


def test_repair_refuses_other_weights(dataset, tmp_path):
    weights = tmp_path / "weights.pt"
    weights.write_bytes(b"one")
    spec = toy_spec()
    backbone = spec.backbone.__class__("toy", "mean", str(weights))
    extract(dataset, spec.__class__(**{**spec.__dict__, "backbone": backbone}))
    weights.write_bytes(b"two")
    flip(folder_of(dataset) / "chunk_0001.npy")
    with pytest.raises(
        CacheMismatchError,
        match=r"was made with the weights xxh3:[0-9a-f]+, but the model's are xxh3:",
    ):
        repair(dataset)


@pytest.fixture
def command(dataset, toy_plugin, monkeypatch, capsys, tmp_path):
    monkeypatch.syspath_prepend(str(toy_plugin))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("COLUMNS", "300")

    def run(*words: str) -> tuple[int, str, str]:
        code = cli.main(["cache", words[0], "--data", str(dataset), *words[1:]])
        out, err = capsys.readouterr()
        return code, out, err

    return run


def test_verify_and_repair_from_the_command_line(dataset, command):
    extract(dataset)
    before = files_of(folder_of(dataset))
    assert command("verify")[:2] == (0, f"toy: sound, in {folder_of(dataset)}\n")
    assert command("repair")[:2] == (0, f"toy: nothing to repair in {folder_of(dataset)}\n")
    flip(folder_of(dataset) / "chunk_0002.npy")
    code, out, err = command("verify", "--feature-type", "toy")
    assert code == 1
    assert out.startswith("toy: chunk_0002.npy: ")
    assert "its checksum differs" in out
    assert "1 difference(s) between caches and their manifests. Run f3rm cache repair" in err
    code, out, err = command("repair", "--device", "cpu")
    assert (code, out) == (0, f"toy: 5 images, sound again in {folder_of(dataset)}\n"), err
    assert files_of(folder_of(dataset)) == before


def test_status_tells_valid_changed_and_unfinished_caches(dataset, command):
    extract(dataset)
    code, out, _ = command("status")
    assert code == 0
    row = next(line for line in out.splitlines() if line.startswith(" toy")).split()
    assert row[:3] == ["toy", "5", "3"]
    assert (row[4], row[-1]) == ("fp16", "valid")
    (dataset / "images/0.png").unlink()
    building_of(dataset).mkdir()
    _, out, _ = command("status")
    assert "image 'images/0.png' has changed" in out
    assert "0 of ? chunks of a new cache done, 0 worker(s)" in out


def test_a_damaged_manifest_is_said(dataset, command):
    extract(dataset)
    manifest = folder_of(dataset) / "manifest.json"
    plain = json.loads(manifest.read_text())
    manifest.write_text(json.dumps({**plain, "schema_version": 99}))
    assert "It was written by a newer f3rm" in command("status")[1]
    for action in ("verify", "repair"):
        code, _, err = command(action)
        assert (code, "It was written by a newer f3rm" in err) == (1, True)


def test_remove_asks_and_keeps_what_is_not_ours(dataset, command, monkeypatch):
    extract(dataset)
    (folder_of(dataset) / "notes.txt").write_text("mine")
    building_of(dataset).mkdir()
    for answer in ("n", ""):
        monkeypatch.setattr("builtins.input", lambda _, answer=answer: answer)
        assert command("remove")[0] == 1
    assert (folder_of(dataset) / "manifest.json").exists()
    assert command("remove", "--yes")[0] == 0
    assert files_of(dataset / "features") == {".toy.lock": b"", "toy/notes.txt": b"mine"}
    code, _, err = command("status")
    assert (code, "has no features. Run f3rm extract first" in err) == (1, True)


def test_what_is_being_made_is_not_removed(dataset):
    extract(dataset)
    (building_of(dataset) / "progress").mkdir(parents=True)
    with WorkerLocks(building_of(dataset)):
        making = unfinished(folder_of(dataset))
        assert making is not None
        assert making.workers == 1
        with pytest.raises(CacheError, match=r"is being extracted by 1 worker\(s\)\. Stop them"):
            remove_features(folder_of(dataset))


def test_types_are_chosen_by_name(dataset):
    extract(dataset)
    assert cache_folders(dataset, feature_type="TOY") == [folder_of(dataset)]
    with pytest.raises(CacheError, match="there is no cache of 'clip', only of toy"):
        cache_folders(dataset, feature_type="clip")
    assert cache_folders(dataset, cache_dir=dataset / "cache") == []
