"""Extraction to disk: the same values however it is run, cut, interrupted or read."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from f3rm.errors import BackboneRef, CacheError, DatasetError, TapError
from f3rm.extract.tables.exports import export_per_item
from f3rm.extract.tables.items import ItemList, list_items
from f3rm.extract.tables.live import FeatureExtractor
from f3rm.extract.tables.run import extract
from f3rm.extract.tables.tables import FeatureDataset, TapStore
from f3rm.store.geometry import Prep
from f3rm.store.images import ImageFailedError
from f3rm.store.reader import FeatureStore
from f3rm.store.spec import FeatureSpec, SpecError
from tests.extract.tables.backbone import GridBackbone

REF = BackboneRef("grid", "grid", "none")
SQUARE = Prep(resize="exact", size=32)
TAPS = ("final", "final|mean", "final|flatten")


def run(source: Any, out: Any, taps: tuple[str, ...] = TAPS, **options: Any) -> TapStore:
    prep = options.pop("prep", SQUARE)
    codec = options.pop("codec", "fp32")
    chosen = {"load": GridBackbone.load, "progress": False, "device": "cpu", **options}
    return extract(source, FeatureSpec(REF, taps, prep, codec=codec), out, **chosen)


@pytest.fixture
def images(tmp_path, write_images):
    names = [f"{number}.png" for number in range(5)]
    return write_images(names, (40, 56), tmp_path / "images")[0].parent


def test_store_equals_live_for_every_tap_and_every_way_to_read(images, tmp_path):
    store = run(images, tmp_path / "out", shard=2)
    spec = FeatureSpec(REF, TAPS, SQUARE)
    live = FeatureExtractor(spec, backbone=GridBackbone())([*sorted(images.iterdir())])
    for tap in TAPS:
        expected = live[tap].numpy()
        np.testing.assert_allclose(store.load(tap).features, expected, atol=1e-6)
        batches = [table.features for table in store.batches(2, tap)]
        np.testing.assert_array_equal(np.concatenate(batches), store.load(tap).features)
        np.testing.assert_array_equal(store.take([3, 1], tap).features, expected[[3, 1]])
        assert store.load(tap).features.dtype == np.float32
    items = FeatureDataset(store, "final|mean", transform=torch.neg)
    np.testing.assert_allclose(items[2]["features"], -live["final|mean"][2], atol=1e-6)


@pytest.mark.parametrize(("codec", "dtype"), [("fp16", "float16"), ("fp32", "float32")])
def test_stored_type_is_the_asked_one(images, tmp_path, codec, dtype):
    store = run(images, tmp_path / "out", codec=codec)
    assert store.dtype == np.dtype(dtype)
    assert {np.load(path).dtype for path in store.folder.glob("chunk_*.npy")} == {np.dtype(dtype)}


@pytest.mark.parametrize("num", [-1, 0, 2, 5, 50])
def test_samples_do_not_depend_on_the_cut(images, tmp_path, num):
    found = [run(images, tmp_path / str(cut), shard=cut).sample(num, 7, "final") for cut in (1, 3)]
    size = 5 if num < 0 else min(num, 5)
    assert found[0].features.shape == (size, 4, 4, 3)
    for one, other in zip(found[0], found[1], strict=True):
        np.testing.assert_array_equal(np.asarray(one), np.asarray(other))


def test_what_is_there_is_used_and_overwrite_computes_again(images, tmp_path, monkeypatch):
    run(images, tmp_path / "out")
    calls: list[int] = []
    real = GridBackbone.encode_image
    monkeypatch.setattr(
        GridBackbone,
        "encode_image",
        lambda self, batch: calls.append(len(batch)) or real(self, batch),
    )
    run(images, tmp_path / "out")
    assert calls == []
    run(images, tmp_path / "out", overwrite=True)
    assert sum(calls) == 5
    calls.clear()
    Image.fromarray(np.zeros((40, 56, 3), dtype=np.uint8)).save(images / "3.png")
    run(images, tmp_path / "out", shard=2)
    assert sum(calls) == 5  # another cut
    calls.clear()
    Image.fromarray(np.full((40, 56, 3), 9, dtype=np.uint8)).save(images / "3.png")
    run(images, tmp_path / "out", shard=2)
    assert sum(calls) == 2  # the chunk of the changed image


def test_a_map_is_an_ordinary_feature_cache_with_the_geometry_of_its_preparation(images, tmp_path):
    prep = Prep(resize="none", fit="pad")
    run(images, tmp_path / "out", ("final",), prep=prep)
    store = FeatureStore.open(tmp_path / "out" / "all")
    xy = torch.tensor([[3.5, 3.5], [51.5, 35.5]])  # centres of cells (0, 0) and (4, 6)
    found = store.gather(torch.tensor([0, 0]), xy, mode="bilinear")
    np.testing.assert_allclose(found[:, :2], [[0, 0], [4, 6]], atol=1e-5)


def test_images_of_many_sizes_keep_their_maps(tmp_path, write_images):
    write_images(["a.png"], (40, 56), tmp_path / "images")
    write_images(["b.png"], (24, 24), tmp_path / "images")
    prep = Prep(resize="none")
    store = run(tmp_path / "images", tmp_path / "out", ("final", "final|mean"), prep=prep)
    assert [store.shape(index, "final") for index in range(2)] == [(5, 7, 3), (3, 3, 3)]
    assert store.load("final|mean").features.shape == (2, 3)
    np.testing.assert_array_equal(store.take([1], "final").features[0, 2, 1, :2], [2, 1])
    with pytest.raises(CacheError, match="values of different shapes"):
        store.load("final")
    spec = FeatureSpec(REF, ("final",), prep)
    with pytest.raises(SpecError, match="values of different shapes"):
        FeatureExtractor(spec, backbone=GridBackbone())(sorted((tmp_path / "images").iterdir()))
    assert export_per_item(store, tmp_path / "files", "final") == 2
    assert np.load(tmp_path / "files" / "b.png.npy").shape == (3, 3, 3)


def test_a_broken_image_is_recorded_and_indices_stay(images, tmp_path):
    (images / "1.png").write_bytes(b"no image")
    with pytest.raises(ImageFailedError, match=r"1\.png"):
        run(images, tmp_path / "out")
    store = run(images, tmp_path / "out", on_error="record")
    assert list(store.failed) == ["1.png"]
    np.testing.assert_array_equal(store.load("final").indices, [0, 2, 3, 4])
    with pytest.raises(IndexError, match=r"1\.png.*not a complete image"):
        store.take([1], "final")
    again = TapStore.open(tmp_path / "out")
    assert again.items.names == store.items.names
    assert again.load("final").names == ("0.png", "2.png", "3.png", "4.png")


class WideBackbone(GridBackbone):
    """64 kB per image, and a note of the anonymous memory in use at every call."""

    channels = 16384
    patch_size = 8
    seen: list[int] = []  # noqa: RUF012 - shared on purpose

    def encode_image(self, images: torch.Tensor) -> torch.Tensor:
        status = Path("/proc/self/status").read_text()
        self.seen.append(int(status.split("RssAnon:")[1].split()[0]) * 1024)
        light = images.mean((1, 2, 3))
        return light[:, None, None, None].expand(-1, 1, 1, self.channels).clone()


def test_two_thousand_images_with_one_broken_and_memory_flat(tmp_path):
    """The features are 131 MB; keeping them, or anything per image, would show."""
    folder = tmp_path / "images"
    folder.mkdir()
    for number in range(2000):
        path = folder / f"{number:04d}.bmp"
        pixels = np.full((8, 8, 3), number % 256, dtype=np.uint8)
        Image.fromarray(pixels).save(path)
    (folder / "1234.bmp").write_bytes(b"BM broken")
    WideBackbone.seen.clear()
    spec = FeatureSpec(REF, ("final@patch|mean",), Prep(resize="exact", size=8))
    store = extract(
        folder, spec, tmp_path / "out", shard=20, on_error="record", progress=False,
        device="cpu", load=WideBackbone.load, batch_size=10,
    )  # fmt: skip
    assert len(store) == 1999
    assert list(store.failed) == ["1234.bmp"]
    assert store.take([1999]).features[0, 0] == pytest.approx((1999 % 256) / 255, abs=1e-6)
    quarter = len(WideBackbone.seen) // 4
    before = max(WideBackbone.seen[quarter : 2 * quarter])  # the allocator has its buffers by now
    growth = max(WideBackbone.seen[3 * quarter :]) - before
    assert growth < 25e6  # a half of the images holds 65 MB; what is under way at once, a few


def test_values_beyond_float16_are_kept(tmp_path, write_images):
    class Large(GridBackbone):
        def encode_image(self, images: torch.Tensor) -> torch.Tensor:
            return super().encode_image(images) * 1e6

    (path,) = write_images(["a.png"], (32, 32))
    store = run(path.parent, tmp_path / "out", ("final",), codec="fp16", load=Large.load)
    assert store.load().features.max() == pytest.approx(3e6)


def test_wrong_taps_splits_and_shards_are_named(images, tmp_path):
    (images / "broken.png").write_bytes(b"looked at only later")
    with pytest.raises(TapError, match=r"no layer 'finel'.*did you mean final"):
        run(images, tmp_path / "out", ("finel",))
    (images / "broken.png").unlink()
    with pytest.raises(CacheError, match="shard must be auto, batch, all or at least 1, got 0"):
        run(images, tmp_path / "out", shard=0)
    store = run(images, tmp_path / "out", split="train")
    with pytest.raises(CacheError, match="one of the 3"):
        store.load()
    with pytest.raises(CacheError, match="did you mean final"):
        store.load("finel")
    with pytest.raises(CacheError, match=r"'test'.*train"):
        TapStore.open(tmp_path / "out", "test")
    with pytest.raises(CacheError, match="must have a plain name"):
        TapStore.open(tmp_path / "out", "../x")


def test_damaged_lists_are_refused(images, tmp_path):
    run(images, tmp_path / "out")
    file = tmp_path / "out" / "all.items.json"
    plain = json.loads(file.read_text())
    for broken in (
        "[]",
        "{",
        json.dumps({**plain, "names": [1]}),
        json.dumps({**plain, "targets": [1]}),
    ):
        file.write_text(broken)
        with pytest.raises((CacheError, DatasetError)):
            TapStore.open(tmp_path / "out")


def test_lists_of_every_kind_give_the_same_items(images, tmp_path):
    names = [f"{number}.png" for number in range(5)]
    (images / "list.txt").write_text("\n".join(names))
    np.save(images / "list.npy", np.array(names))
    frames = [{"file_path": name} for name in names]
    (tmp_path / "images" / "other.json").write_text(json.dumps({"frames": frames}))
    sources: list[Any] = [
        images,
        images / "list.txt",
        images / "list.npy",
        images / "other.json",
        str(images / "*.png"),
        [images / name for name in names],
    ]
    for source in sources:
        found = list_items(source)
        assert found.names == tuple(names)
        assert [item.path for item in found.items] == [images / name for name in names]
    assert list_items(images / "2.png").names == ("2.png",)
    (images / "list.txt").write_text("0.png\n0.png")
    with pytest.raises(DatasetError, match="every file once"):
        list_items(images / "list.txt")
    for nothing in (str(images / "*.gif"), []):
        with pytest.raises(DatasetError, match="No images or videos in"):
            list_items(nothing)
    with pytest.raises(DatasetError, match=r"No such file or folder: .*missing"):
        list_items(tmp_path / "missing")
    with pytest.raises(DatasetError, match=r"No such folder: .*missing"):
        list_items(tmp_path / "missing", labelled=True)
    with pytest.raises(DatasetError, match="Labels must be as many as items"):
        ItemList(list_items(images / "list.npy").items, (1,))
