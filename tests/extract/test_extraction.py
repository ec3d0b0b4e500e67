import logging
import os
import pickle
import re
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from f3rm.errors import CacheError, DatasetError, DeviceError, ImageError
from f3rm.extract.cache import find_cache
from f3rm.extract.extraction import extract_features
from f3rm.store.reader import FeatureStore
from tests.extract.toy import (
    ToyBackbone,
    building_of,
    drop_frame,
    extract,
    files_of,
    folder_of,
    items_of,
    never,
    random_pixels,
    toy_spec,
    write_dataset,
    write_frames,
)


class BrokenOffError(Exception):
    """Stands for whatever stops a run."""


class Stopping(ToyBackbone):
    """Fails at the second run of the model."""

    runs = 0

    def encode_image(self, images):
        self.runs += 1
        if self.runs == 2:
            raise BrokenOffError
        return super().encode_image(images)


def test_a_valid_cache_is_used_without_loading_the_model(dataset, events, caplog):
    first = extract(dataset)
    assert events() == ["load", "run 2", "run 2", "run 1"]
    before = files_of(dataset)
    with caplog.at_level(logging.INFO):
        second = extract(dataset, load=never)
    assert "Using the toy features in" in caplog.text
    assert torch.equal(second.feature_map(3), first.feature_map(3))
    assert files_of(dataset) == before


def test_the_files_are_those_that_others_expect(dataset):
    extract(dataset)
    names = {path.name for path in folder_of(dataset).iterdir()}
    chunks = {f"chunk_000{i}.npy" for i in range(3)}
    assert names == {*chunks, "manifest.json", "meta.pt"}
    meta = torch.load(folder_of(dataset) / "meta.pt", weights_only=True)
    assert meta["image_fnames"] == [f"images/{i}.png" for i in range(5)]
    assert meta["args"]["feature_type"] == "toy"


def test_force_extracts_again_on_a_hit_and_keeps_the_old_until_the_end(dataset, events):
    extract(dataset)
    before = files_of(folder_of(dataset))
    events()
    with pytest.raises(BrokenOffError):
        extract(dataset, force=True, load=Stopping.load)
    assert files_of(folder_of(dataset)) == before
    assert len(FeatureStore.open(folder_of(dataset))) == 5
    events()
    extract(dataset, force=True)
    assert events() == ["load", "run 2", "run 1"], "the interrupted forced run goes on"
    extract(dataset, force=True)
    assert events() == ["load", "run 2", "run 2", "run 1"]
    assert files_of(folder_of(dataset)) == before
    assert not list(folder_of(dataset).parent.glob("toy.*"))


def test_force_does_not_go_on_from_a_run_without_force(dataset, events):
    with pytest.raises(BrokenOffError):
        extract(dataset, load=Stopping.load)
    events()
    extract(dataset, force=True)
    assert events() == ["load", "run 2", "run 2", "run 1"]


def replace_image(root: Path, name: str, size=(24, 33), seed: int = 99) -> None:
    Image.fromarray(random_pixels(size, seed)).save(root / name)


def add_frame(root: Path) -> None:
    replace_image(root, "images/new.png")
    write_frames(root, [*(f"images/{i}.png" for i in range(5)), "images/new.png"])


@pytest.mark.parametrize(
    ("change", "reason", "runs"),
    [
        (lambda root: replace_image(root, "images/4.png"), "image 'images/4.png' has changed", 1),
        (drop_frame, "has 1 image(s) that the dataset lacks, e.g. 'images/4.png'", 0),
        (add_frame, "lacks 1 of the dataset's images, e.g. 'images/new.png'", 1),
    ],
    ids=["content", "removed", "added"],
)
def test_changed_images_invalidate_their_chunk_only(dataset, events, caplog, change, reason, runs):
    """A fresh extraction elsewhere must give the same chunks as the one that reuses old ones."""
    extract(dataset)
    events()
    change(dataset)
    store, why = find_cache(items_of(dataset), toy_spec(), folder_of(dataset))
    assert store is None
    assert reason in why
    with caplog.at_level(logging.WARNING):
        extract(dataset)
    assert reason in caplog.text
    assert len([event for event in events() if event.startswith("run")]) == runs
    fresh = extract(dataset, folder=dataset / "fresh")
    assert files_of(fresh.folder) == files_of(folder_of(dataset))


def drop(root: Path, number: int) -> None:
    write_frames(root, [f"images/{i}.png" for i in range(5) if i != number])


def insert_frame(root: Path) -> None:
    replace_image(root, "images/new.png")
    write_frames(root, ["images/new.png", *(f"images/{i}.png" for i in range(5))])


@pytest.mark.parametrize(
    ("change", "runs"),
    [
        (lambda root: drop(root, 0), 1),
        (lambda root: drop(root, 2), 1),
        (lambda root: replace_image(root, "images/0.png", (33, 24)), 2),
        (insert_frame, 1),
        (lambda root: write_frames(root, ["images/3.png"]), 1),
    ],
    ids=["first removed", "middle removed", "size", "added in front", "one left"],
)
def test_a_change_anywhere_touches_its_chunk_only(dataset, events, change, runs):
    """Chunks may be cut otherwise than in a fresh extraction, but every image's map is the same."""
    extract(dataset)
    events()
    change(dataset)
    store = extract(dataset)
    assert len([event for event in events() if event.startswith("run")]) == runs
    fresh = extract(dataset, folder=dataset / "fresh")
    assert store.names == fresh.names
    for index in range(len(store)):
        assert torch.equal(store.feature_map(index), fresh.feature_map(index))


def test_a_scattered_cache_is_cut_anew(dataset, events):
    extract(dataset)
    drop(dataset, 0)
    extract(dataset)
    write_frames(dataset, [f"images/{i}.png" for i in (1, 3)])
    extract(dataset)
    assert len(FeatureStore.open(folder_of(dataset)).manifest.chunks) == 2
    extract(dataset, shard_size=8, force=True)
    write_frames(dataset, [f"images/{i}.png" for i in (1, 3, 4)])
    events()
    extract(dataset, shard_size=8)
    assert events() == ["load", "run 3"], "one chunk, as there is room"


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"short_side": 24}, "other settings: size 32 -> 24"),
        (
            {"tap": "final|l2", "codec": "fp32"},
            "taps ['final'] -> ['final|l2'], codec fp16 -> fp32",
        ),
        ({"background": (1.0, 1.0, 1.0)}, r"background [0.0, 0.0, 0.0] -> [1.0, 1.0, 1.0]"),
    ],
)
def test_changed_settings_are_named_and_the_old_cache_serves_meanwhile(
    dataset, caplog, changes, reason
):
    extract(dataset)
    before = files_of(folder_of(dataset))
    with caplog.at_level(logging.WARNING), pytest.raises(BrokenOffError):
        extract(dataset, toy_spec(**changes), load=Stopping.load)
    assert reason in caplog.text
    assert files_of(folder_of(dataset)) == before
    assert find_cache(items_of(dataset), toy_spec(), folder_of(dataset))[0] is not None
    assert extract(dataset, toy_spec(**changes)).manifest.spec == toy_spec(**changes)
    assert find_cache(items_of(dataset), toy_spec(), folder_of(dataset))[0] is None


def test_changed_weights_are_named(dataset, tmp_path):
    weights = tmp_path / "weights.pt"
    weights.write_bytes(b"one")
    spec = toy_spec()
    spec = replace(spec, backbone=replace(spec.backbone, weights=str(weights)))
    extract(dataset, spec)
    weights.rename(tmp_path / "moved.pt")
    moved = replace(spec, backbone=replace(spec.backbone, weights=str(tmp_path / "moved.pt")))
    extract(dataset, moved, load=never)
    (tmp_path / "moved.pt").write_bytes(b"two")
    _, why = find_cache(items_of(dataset), moved, folder_of(dataset))
    assert re.search("weights xxh3:[0-9a-f]+ -> xxh3:[0-9a-f]+$", why)


def test_a_moved_dataset_stays_valid(dataset):
    extract(dataset)
    moved = dataset.with_name("moved")
    shutil.copytree(dataset, moved, copy_function=shutil.copy)
    assert (moved / "images/0.png").stat().st_mtime_ns != (
        dataset / "images/0.png"
    ).stat().st_mtime_ns
    shutil.rmtree(dataset)
    assert extract(moved, load=never).folder == folder_of(moved)


def test_the_order_of_frames_does_not_matter(dataset):
    extract(dataset)
    write_frames(dataset, [f"images/{i}.png" for i in reversed(range(5))])
    assert extract(dataset, load=never).names[0] == "images/0.png"


def test_images_of_several_sizes_share_a_cache(tmp_path, events):
    sizes = [(24, 33), (40, 20), (24, 33), (25, 34), (40, 20)]
    root = write_dataset(tmp_path / "scene", sizes)
    store = extract(root)
    assert events() == ["load", "run 2", "run 1", "run 2"], "batches are of one network size"
    assert [store.image_size(i) for i in range(5)] == sizes
    assert [store.grid_size(i) for i in range(5)] == [(8, 11), (16, 8), (8, 11), (8, 11), (16, 8)]
    for index, size in enumerate(sizes):
        mean = store.feature_map(index).mean(dim=(0, 1))
        expected = random_pixels(size, index).reshape(-1, 3).mean(axis=0) / 255
        assert np.abs(mean.numpy() - expected).max() < 0.02


def test_the_batch_size_does_not_change_the_result(dataset, events):
    for batch_size, runs in ((1, ["run 1"] * 5), (4, ["run 4", "run 1"])):
        folder = dataset / f"batch-{batch_size}"
        extract(dataset, folder=folder, batch_size=batch_size, shard_size=64)
        assert events() == ["load", *runs]
    assert files_of(dataset / "batch-1") == files_of(dataset / "batch-4")


def brighten(root: Path, name: str) -> None:
    Image.new("RGB", (33, 24), (250, 250, 250)).save(root / name)


def test_nan_names_the_image_and_keeps_the_finished_chunks(dataset, events):
    brighten(dataset, "images/3.png")
    with pytest.raises(ImageError, match=r"gave NaN or infinity for 'images/3\.png'"):
        extract(dataset, toy_spec("nan"))
    assert not folder_of(dataset).exists()
    names = {path.name for path in building_of(dataset).iterdir()} - {"chunk_0002.npy"}
    assert names == {"chunk_0000.npy", "progress"}
    events()
    replace_image(dataset, "images/3.png")
    extract(dataset, toy_spec("nan"))
    assert events() in (["load", "run 2"], ["load", "run 2", "run 1"])


def test_what_float16_cannot_hold_becomes_float32_and_is_said_once(dataset, caplog):
    brighten(dataset, "images/0.png")
    brighten(dataset, "images/4.png")
    store = extract(dataset, toy_spec("large"))
    dtypes = [chunk.dtype for chunk in store.manifest.chunks]
    assert dtypes == ["float32", "float16", "float32"]
    assert store.feature_map(0).max() == pytest.approx(250 / 255 * 1e6)
    said = [r.getMessage() for r in caplog.records if "float32" in r.getMessage()]
    assert said == ["Some toy features exceed float16; stored as float32."]
    assert store.value_dtype == np.float32
    extract(dataset, toy_spec("large"), load=never)


def test_a_wrong_shape_from_an_adapter_is_refused(dataset):
    class Wrong(ToyBackbone):
        channels = 4

    with pytest.raises(CacheError, match=r"shape \(2, 8, 11, 4\), got \(2, 8, 11, 3\)"):
        extract(dataset, load=Wrong.load)


def test_stale_chunks_are_ignored_and_removed(dataset):
    folder_of(dataset).mkdir(parents=True)
    for name in ("chunk_0001.npy", "chunk_0077.npy", "chunk_0000.npy.123.tmp"):
        (folder_of(dataset) / name).write_bytes(b"stale")
    (folder_of(dataset) / "notes.txt").write_text("mine")
    assert len(extract(dataset)) == 5
    names = {path.name for path in folder_of(dataset).iterdir()}
    chunks = {f"chunk_000{i}.npy" for i in range(3)}
    assert names == {*chunks, "manifest.json", "meta.pt", "notes.txt"}


class Trap:
    def __reduce__(self):
        return os.abort, ()


def test_a_pickle_with_code_is_never_executed_and_foreign_caches_are_kept(dataset, caplog):
    folder_of(dataset).mkdir(parents=True)
    foreign = {"meta.pt": pickle.dumps(Trap()), "chunk_0000.npy": pickle.dumps(Trap())}
    for name, content in foreign.items():
        (folder_of(dataset) / name).write_bytes(content)
    assert len(extract(dataset)) == 5
    assert files_of(dataset / "features" / "toy.kept-1") == foreign
    assert "held features of another program" in caplog.text
    (folder_of(dataset) / "meta.pt").write_bytes(pickle.dumps(Trap()))
    assert len(extract(dataset, load=never)) == 5


@pytest.mark.gpu
def test_a_gpu_stores_the_features_of_the_cpu(tmp_path):
    dataset = write_dataset(tmp_path / "scene", [(240, 330), (200, 300)] * 40)
    spec = toy_spec(short_side=400)
    stores = [
        extract(dataset, spec, folder=tmp_path / device, device=device, shard_size=16)
        for device in ("cpu", "cuda")
    ]
    assert stores[0].names == stores[1].names
    for index in range(len(stores[0])):
        on_cpu, on_gpu = (store.feature_map(index) for store in stores)
        torch.testing.assert_close(on_gpu, on_cpu, rtol=0, atol=2e-3)


def damage(root: Path) -> None:
    path = root / "images/3.png"
    path.write_bytes(path.read_bytes()[:-300])


def unsuitable(root: Path) -> None:
    Image.new("LA", (33, 24)).save(root / "images/3.png")


@pytest.mark.parametrize(
    ("spoil", "options", "error", "message"),
    [
        (damage, {}, ImageError, r"'images/3\.png' must be a complete image"),
        (unsuitable, {}, ImageError, r"got mode 'LA' in images/3\.png"),
        (None, {"device": "cuda:99"}, DeviceError, "--device cuda:99: "),
        (None, {"device": "tpu"}, DeviceError, "must be auto, cpu, cuda or cuda:N, got 'tpu'"),
        (None, {"shard_size": 0}, CacheError, "--shard-size must be at least 1, got 0"),
        (None, {"batch_size": 0}, CacheError, "--batch-size must be at least 1, got 0"),
    ],
    ids=["damaged", "mode", "gpu", "device", "shard", "batch"],
)
def test_nothing_is_written_when_the_preflight_fails(dataset, spoil, options, error, message):
    if spoil:
        spoil(dataset)
    before = files_of(dataset)
    # The taps are checked before the images, which needs the model, and all else before it.
    load = ToyBackbone.load if spoil else never
    with pytest.raises(error, match=message):
        extract(dataset, load=load, **options)
    assert files_of(dataset) == before
    assert not (dataset / "features").exists()


def test_items_must_be_some_and_distinct(dataset):
    item = items_of(dataset)[0]
    for items in ([], [item, item]):
        with pytest.raises(DatasetError, match="at least one image, and each image once, got"):
            extract_features(items, toy_spec(), folder=folder_of(dataset), load=never)


def test_a_bad_image_leaves_the_old_cache_alone(dataset):
    extract(dataset)
    damage(dataset)
    before = files_of(dataset)
    with pytest.raises(ImageError):
        extract(dataset)
    assert files_of(dataset) == before


def test_a_folder_that_cannot_be_written_is_refused_before_anything_happens(dataset):
    (dataset / "features").write_text("a file")
    with pytest.raises(CacheError, match=r"Cannot write to .*features/toy'\. Pass --cache-dir"):
        extract(dataset, load=never)
