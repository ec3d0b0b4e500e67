"""Cache folders, and how one cache replaces another."""

import logging
import os
import re
import shutil

import platformdirs
import pytest
import torch

from f3rm.extract.cache import feature_folder
from f3rm.extract.locks import folders
from f3rm.store.device import resolve_device
from tests.extract.toy import (
    drop_frame,
    extract,
    folder_of,
    items_of,
    never,
    toy_spec,
    write_dataset,
)


def test_caches_lie_in_the_dataset_or_are_keyed_by_it(dataset, tmp_path):
    spec = toy_spec()
    assert feature_folder(dataset, spec, None) == folder_of(dataset)
    assert feature_folder(dataset / "transforms.json", spec, None) == folder_of(dataset)
    other = write_dataset(tmp_path / "elsewhere" / "scene")
    mine, theirs = (feature_folder(root, spec, tmp_path / "cache") for root in (dataset, other))
    assert mine != theirs
    assert (mine.name, mine.parent.parent) == ("toy", tmp_path / "cache")
    assert re.fullmatch("scene-[0-9a-f]{8}", mine.parent.name)


def test_a_read_only_dataset_uses_the_cache_home_unless_it_holds_a_cache(
    dataset, tmp_path, monkeypatch, caplog
):
    extract(dataset)
    monkeypatch.setattr(os, "access", lambda path, _: not str(path).startswith(str(dataset)))
    monkeypatch.setattr(platformdirs, "user_cache_dir", lambda _: str(tmp_path / "home"))
    items = items_of(dataset)
    assert feature_folder(dataset, toy_spec(), None) == folder_of(dataset)
    assert feature_folder(dataset, toy_spec(), None, items=items) == folder_of(dataset)
    extract(dataset, load=never)
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]
    found = feature_folder(dataset, toy_spec(short_side=40), None, items=items)
    assert found.is_relative_to(tmp_path / "home")
    assert "is not writable; the features are kept in" in caplog.text
    assert len(extract(dataset, toy_spec(short_side=40), folder=found)) == 5


@pytest.mark.parametrize("moment", ["old aside", "new not yet in"])
def test_a_swap_that_was_cut_short_is_completed(dataset, events, moment):
    extract(dataset)
    old, building = (folder_of(dataset).with_name(f"toy.{part}") for part in ("old", "building"))
    shutil.copytree(folder_of(dataset), building)
    (folder_of(dataset) / "notes.txt").write_text("mine")
    if moment == "old aside":
        folder_of(dataset).rename(old)
    else:
        shutil.rmtree(folder_of(dataset))
    events()
    extract(dataset)
    assert events() == []
    assert not old.exists()
    assert not building.exists()
    assert (folder_of(dataset) / "notes.txt").exists() == (moment == "old aside")


def test_files_of_the_user_survive_a_swap(dataset):
    extract(dataset)
    (folder_of(dataset) / "notes.txt").write_text("mine")
    extract(dataset, force=True)
    assert (folder_of(dataset) / "notes.txt").read_text() == "mine"
    assert not list(folder_of(dataset).parent.glob("toy.*"))


def test_a_linked_cache_folder_stays_a_link(dataset, tmp_path):
    (tmp_path / "disk" / "toy").mkdir(parents=True)
    (dataset / "features").mkdir()
    folder_of(dataset).symlink_to(tmp_path / "disk" / "toy")
    extract(dataset)
    extract(dataset, force=True)
    assert folder_of(dataset).is_symlink()
    assert (tmp_path / "disk" / "toy" / "manifest.json").exists()


def test_chunks_are_copied_where_links_do_not_work(dataset, events, monkeypatch):
    extract(dataset)
    events()

    def refuse(*_):
        raise OSError

    monkeypatch.setattr(os, "link", refuse)
    drop_frame(dataset)
    extract(dataset)
    assert events() == ["load"]


def test_devices():
    assert resolve_device("cpu") == torch.device("cpu")
    assert resolve_device("auto").type == ("cuda" if torch.cuda.is_available() else "cpu")


def test_writable_means_the_nearest_existing_folder(tmp_path):
    assert folders.is_writable(tmp_path / "a" / "b")
    (tmp_path / "file").touch()
    assert not folders.is_writable(tmp_path / "file" / "b")
