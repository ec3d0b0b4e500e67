import contextlib
import copy
import gc
import pickle
import shutil
import sys
import tempfile
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st
from torch._subclasses import FakeTensorMode

from f3rm.errors import CacheMismatchError
from f3rm.extract.extraction import extract_features
from f3rm.store import reader as store_module
from f3rm.store.chunks import map_chunk, write_chunk
from f3rm.store.codec_files import write_codec
from f3rm.store.codecs import Codec, fit_codec, parse_codec
from f3rm.store.geometry import PixelAffine, ValidRect
from f3rm.store.manifest import ChunkRecord, CodecRecord, ImageRecord, Manifest
from f3rm.store.reader import FeatureStore, gather_reference
from tests.extract.toy import ToyBackbone, items_of, toy_spec, write_dataset

SIZES = [(24, 33), (33, 24), (24, 33), (10, 90), (33, 24), (24, 33), (8, 8)]


def extract(root: Path, shard_size: int = 2, **changes) -> FeatureStore:
    return extract_features(
        items_of(root),
        toy_spec(**changes),
        folder=root / f"cache-{shard_size}",
        shard_size=shard_size,
        load=ToyBackbone.load,
        progress=False,
    )


@pytest.fixture(scope="module")
def mixed(tmp_path_factory) -> FeatureStore:
    """Images of several sizes in chunks of two."""
    return extract(write_dataset(tmp_path_factory.mktemp("mixed") / "scene", SIZES))


def rays(count: int, num_images: int, seed: int, *, reach: float = 1.2):
    """Rays on all images, some of them outside."""
    generator = torch.Generator().manual_seed(seed)
    images = torch.randint(num_images, (count,), generator=generator)
    xy = (torch.rand(count, 2, generator=generator) - 0.1) * 90 * reach
    return images, xy


def test_attributes(mixed):
    assert len(mixed) == 7
    assert mixed.channels == 3
    assert mixed.names == tuple(f"images/{i}.png" for i in range(7))
    assert [mixed.image_size(i) for i in range(7)] == SIZES
    assert mixed.grid_size(3) == (8, 72)
    assert mixed.index("images/4.png") == 4
    with pytest.raises(
        CacheMismatchError, match=r"No image 'nope\.png' among the 7 in .*\. Run f3rm extract"
    ):
        mixed.index("nope.png")


def test_feature_maps_are_the_means_of_patches(mixed):
    """The image of 8 x 8 pixels is enlarged four times: each pixel is about one cell."""
    pixels = np.random.default_rng(6).integers(0, 200, (8, 8, 3), dtype=np.uint8) / 255
    found = mixed.feature_map(6)
    assert found.shape == (8, 8, 3)
    assert found.dtype == torch.float32
    assert np.corrcoef(found.numpy().ravel(), pixels.ravel())[0, 1] > 0.97


def write_store(
    folder: Path, maps, names, *, shard_size=2, dtype: Any = "float16", codec=None
) -> FeatureStore:
    """Writes maps of any sizes, given by name, as a store whose images are in the order ``names``.

    Images of one size share chunks of at most ``shard_size``, in the order of ``maps``.
    """
    groups, chunks, places = {}, [], {}
    for name, features in maps.items():
        groups.setdefault(features.shape, []).append(name)
    for members in groups.values():
        for start in range(0, len(members), shard_size):
            part, file = members[start : start + shard_size], f"chunk_{len(chunks):04d}.npy"
            rows = torch.stack([maps[name] for name in part])
            stored: Any = (codec.encode(rows) if codec else rows.to(getattr(torch, dtype))).numpy()
            kind: Any = str(stored.dtype)
            written = write_chunk(folder / file, stored.shape, kind, [stored])
            places.update({name: (len(chunks), row) for row, name in enumerate(part)})
            record = ChunkRecord(
                file=file,
                bytes=written.bytes,
                shape=stored.shape,
                dtype=kind,
                checksum=written.checksum,
                codec_error=0.0,
                images=tuple(part),
                taps={"final": tuple(rows.shape[1:])},
            )
            chunks.append(record)
    images: list[ImageRecord] = []
    for name in names:
        grid, (chunk, row) = tuple(maps[name].shape[:2]), places[name]
        affine, valid = PixelAffine.between(grid, grid), ValidRect.full(grid)
        images.append(ImageRecord(name, 1, 0, "", grid, chunk, row, affine, valid))
    record = CodecRecord(codec.spec.name, write_codec(folder, codec)) if codec else CodecRecord()
    spec = toy_spec()
    manifest = Manifest(
        spec=spec,
        weights_identity="toy",
        algorithm=1,
        key=spec.key("toy"),
        channels=next(iter(maps.values())).shape[-1],
        has_text=False,
        provenance={},
        versions={},
        chunks=tuple(chunks),
        images=tuple(images),
        codec=record,
    )
    return FeatureStore(folder, manifest)


def random_maps(sizes, channels=6, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return {
        f"{number}.png": torch.randn(*size, channels, generator=generator)
        for number, size in enumerate(sizes)
    }


SMALL = st.lists(st.sampled_from([(1, 1), (2, 3), (3, 2), (4, 7)]), min_size=1, max_size=7)


@settings(max_examples=60, deadline=None)
@given(
    SMALL,
    st.integers(1, 4),
    st.sampled_from(["float16", "float32"]),
    st.booleans(),
    st.randoms(use_true_random=False),
)
def test_a_store_equals_a_dictionary(sizes, shard_size, dtype, resident, shuffled):
    """Over sizes, chunk sizes and orders; ``(name, row, col)`` are the keys."""
    maps = random_maps(sizes)
    names = list(maps)
    shuffled.shuffle(names)
    cells = [
        (name, row, col)
        for name, features in maps.items()
        for row in range(features.shape[0])
        for col in range(features.shape[1])
    ]
    dictionary = {
        (name, row, col): maps[name][row, col].to(getattr(torch, dtype)).float()
        for name, row, col in cells
    }
    asked = [shuffled.choice(cells) for _ in range(40)]
    with tempfile.TemporaryDirectory() as folder:
        store = write_store(Path(folder), maps, names, shard_size=shard_size, dtype=dtype)
        if resident:
            store = store.resident(torch.device("cpu"))
        images = torch.tensor([store.index(name) for name, _, _ in asked])
        rows, cols = (torch.tensor([cell[axis] for cell in asked]) for axis in (1, 2))
        expected = torch.stack([dictionary[cell] for cell in asked])
        assert torch.equal(store.cells(images, rows, cols), expected)
        assert torch.equal(
            store.gather(images, torch.stack([cols, rows], dim=-1).float()), expected
        )
        for name, features in maps.items():
            found = store.feature_map(store.index(name))
            assert torch.equal(found, features.to(getattr(torch, dtype)).float())
        everything = store.sample(10**6, seed=0)
        assert {tuple(row) for row in everything.tolist()} == {
            tuple(row.tolist()) for row in dictionary.values()
        }


@pytest.mark.parametrize("text", ["int8", "pca4", "fp16", "fp32"])
def test_codecs_are_undone_when_reading(tmp_path, text):
    maps = random_maps([(4, 7), (3, 2), (4, 7)])
    every = torch.cat([features.reshape(-1, 6) for features in maps.values()])
    codec = fit_codec(parse_codec(text), every)
    store = write_store(tmp_path, maps, list(maps), codec=codec)
    for index, features in enumerate(maps.values()):
        expected = codec.decode(codec.encode(features))
        assert torch.equal(store.feature_map(index), expected)
    images, xy = rays(100, 3, seed=0, reach=0.1)
    for mode in ("nearest", "bilinear"):
        expected = gather_reference(store, images, xy, mode=mode)
        torch.testing.assert_close(store.gather(images, xy, mode=mode), expected)
    assert store.sample(5, seed=0).shape == (5, 6)


def test_what_is_handed_out_is_never_overwritten(tmp_path):
    """Rows are read into memory that is used again; fp32 needs no conversion, but a copy."""
    maps = random_maps([(4, 7)] * 3)
    store = write_store(tmp_path, maps, list(maps), dtype="float32")
    images, xy = rays(20, 3, seed=0, reach=0.1)
    first = store.gather(images, xy)
    kept = first.clone()
    store.gather(images.flip(0), xy.flip(0))
    assert torch.equal(first, kept)


def test_chunks_of_both_types_are_read_as_the_wider(tmp_path):
    """A chunk that float16 could not hold lies beside others."""
    maps = random_maps([(2, 3)] * 4)
    store = write_store(tmp_path, maps, list(maps))
    wide = torch.stack([maps["2.png"], maps["3.png"]]).numpy() * 1e6
    written = write_chunk(tmp_path / "chunk_0001.npy", wide.shape, "float32", [wide])
    changed = replace(store.manifest.chunks[1], dtype="float32", bytes=written.bytes)
    chunks = (store.manifest.chunks[0], changed)
    mixed = FeatureStore(tmp_path, replace(store.manifest, chunks=chunks))
    resident = mixed.resident(torch.device("cpu"))
    assert mixed.resident_bytes == 4 * 2 * 3 * 6 * 4
    for one in (mixed, resident):
        assert torch.equal(one.feature_map(1), maps["1.png"].half().float())
        assert torch.equal(one.feature_map(3), torch.from_numpy(wide[1]))
        images, xy = rays(30, 4, seed=0, reach=0.1)
        assert torch.equal(one.gather(images, xy), gather_reference(one, images, xy))


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.tuples(st.integers(2, 40), st.integers(2, 40)), min_size=1, max_size=5),
    st.integers(1, 4),
    st.integers(0, 60),
    st.sampled_from(["float16", "float32"]),
)
def test_gather_equals_the_reference(sizes, shard_size, count, dtype):
    with tempfile.TemporaryDirectory() as folder:
        root = write_dataset(Path(folder) / "scene", sizes)
        codec = {"float16": "fp16", "float32": "fp32"}[dtype]
        store = extract(root, shard_size, codec=codec, short_side=12)
        images, xy = rays(count, len(sizes), seed=count)
        nearest = store.gather(images, xy)
        assert torch.equal(nearest, gather_reference(store, images, xy))
        bilinear = store.gather(images, xy, mode="bilinear")
        expected = gather_reference(store, images, xy, mode="bilinear")
        torch.testing.assert_close(bilinear, expected, rtol=1e-5, atol=1e-6)


def test_gather_does_not_depend_on_chunks(mixed):
    root = mixed.folder.parent
    images, xy = rays(500, 7, seed=1)
    for shard_size in (1, 3, 100):
        other = extract(root, shard_size)
        assert torch.equal(other.gather(images, xy), mixed.gather(images, xy))
        assert torch.equal(other.sample(20, seed=5), mixed.sample(20, seed=5))


def test_bilinear_at_cell_centres_is_the_cell(mixed):
    for index in range(7):
        (height, width), (rows, cols) = mixed.image_size(index), mixed.grid_size(index)
        v, u = torch.meshgrid(torch.arange(rows), torch.arange(cols), indexing="ij")
        x, y = (u + 0.5) * width / cols - 0.5, (v + 0.5) * height / rows - 0.5
        xy = torch.stack([x, y], dim=-1).reshape(-1, 2).float()
        images = torch.full((rows * cols,), index)
        expected = mixed.feature_map(index).reshape(-1, 3)
        torch.testing.assert_close(
            mixed.gather(images, xy, mode="bilinear"), expected, atol=1e-4, rtol=0
        )
        assert torch.equal(mixed.gather(images, xy), expected)


def test_outside_the_image_counts_as_its_border(mixed):
    far = torch.tensor([[-50.0, -50.0], [500.0, -50.0], [-50.0, 500.0], [500.0, 500.0]])
    features = mixed.feature_map(0)
    corners = torch.stack([features[0, 0], features[0, -1], features[-1, 0], features[-1, -1]])
    for mode in ("nearest", "bilinear"):
        assert torch.equal(mixed.gather(torch.zeros(4).long(), far, mode=mode), corners)


def test_padding_is_never_looked_up(mixed):
    """With a smaller valid rectangle, neither look-ups nor samples touch the cells outside it."""
    plain = mixed.manifest
    image = copy.copy(plain.images[0])
    object.__setattr__(image, "valid", ValidRect(0.6, -0.5, 7.5, 5.4))
    changed = Manifest(**{**vars(plain), "images": (image, *plain.images[1:])})
    store = FeatureStore(mixed.folder, changed)
    inside = {tuple(row) for row in store.feature_map(0)[:6, 1:8].reshape(-1, 3).tolist()}
    images, xy = rays(200, 1, seed=2)
    assert {tuple(row) for row in store.gather(images, xy).tolist()} <= inside
    expected = gather_reference(store, images, xy, mode="bilinear")
    torch.testing.assert_close(store.gather(images, xy, mode="bilinear"), expected)
    assert len(store.sample(10**9, seed=0)) == len(mixed.sample(10**9, seed=0)) - 8 * 11 + 6 * 7


def test_sampling_is_distinct_seeded_and_complete(mixed):
    every = torch.cat([mixed.feature_map(i).reshape(-1, 3) for i in range(7)])
    drawn = mixed.sample(10**6, seed=0)
    assert torch.equal(drawn.sort(dim=0).values, every.sort(dim=0).values)
    assert torch.equal(mixed.sample(50, seed=1), mixed.sample(50, seed=1))
    assert not torch.equal(mixed.sample(50, seed=1), mixed.sample(50, seed=2))
    assert mixed.sample(0, seed=0).shape == (0, 3)
    rows = {tuple(row) for row in every.tolist()}
    assert {tuple(row) for row in mixed.sample(50, seed=3).tolist()} <= rows


def test_indices_out_of_range_are_refused(mixed):
    one = torch.zeros(1, 2)
    for wrong in (-1, 7):
        with pytest.raises(IndexError, match=f"indices from 0 to 6, got {wrong}"):
            mixed.gather(torch.tensor([wrong]), one)
    with pytest.raises(IndexError, match="must be inside the feature map"):
        mixed.cells(torch.tensor([0]), torch.tensor([8]), torch.tensor([0]))
    assert mixed.gather(torch.zeros(0).long(), torch.zeros(0, 2)).shape == (0, 3)


def test_a_store_keeps_no_file_open_however_many_chunks_it_has(mixed):
    before = len(list(Path("/proc/self/fd").iterdir()))
    store = FeatureStore.open(mixed.folder)
    store.feature_map(0)
    assert len(store.manifest.chunks) >= 4
    assert len(list(Path("/proc/self/fd").iterdir())) == before
    mapped = map_chunk(mixed.folder, store.manifest.chunks[0])
    with pytest.raises(ValueError, match="read-only"):
        mapped[:] = 0
    with pytest.raises(ValueError, match="cannot set WRITEABLE"):
        mapped.setflags(write=True)


def maps_of(folder: Path) -> list[str]:
    """Permissions of this process's maps of files in a folder, as the kernel lists them."""
    lines = Path("/proc/self/maps").read_text().splitlines()
    return [line.split()[1] for line in lines if str(folder) in line]


def test_maps_are_shared_and_read_only_and_end_with_their_arrays(mixed, tmp_path):
    """A private writable map would count in full against the system's commit limit."""
    folder = tmp_path / "copy"
    shutil.copytree(mixed.folder, folder)
    store = FeatureStore.open(folder)
    assert maps_of(folder) == ["r--s"] * len(store.manifest.chunks)
    kept = map_chunk(folder, store.manifest.chunks[0])[0, 0]
    del store
    gc.collect()
    assert maps_of(folder) == ["r--s"]
    assert np.isfinite(kept).all()
    del kept
    gc.collect()
    assert maps_of(folder) == []


def test_a_chunk_without_any_right_to_write_is_mapped(mixed, tmp_path):
    folder = tmp_path / "copy"
    shutil.copytree(mixed.folder, folder)
    for path in folder.iterdir():
        path.chmod(0o400)
    assert torch.equal(FeatureStore.open(folder).feature_map(0), mixed.feature_map(0))


def test_a_store_travels_to_another_process_by_its_folder(mixed):
    sent = pickle.dumps(mixed)
    assert len(sent) < 1000
    received = pickle.loads(sent)  # noqa: S301 - made one line above
    assert torch.equal(received.feature_map(2), mixed.feature_map(2))


@pytest.mark.parametrize("fault", ["cut", "longer", "gone", "folder", "link", "shape", "dtype"])
def test_a_damaged_chunk_is_found_at_opening(tmp_path, fault):
    root = write_dataset(tmp_path / "scene", [(24, 33)] * 3)
    chunk = extract(root).folder / "chunk_0000.npy"
    content, stored = chunk.read_bytes(), np.load(chunk)
    chunk.unlink()
    if fault == "cut":
        chunk.write_bytes(content[:-1])
    elif fault == "longer":
        chunk.write_bytes(content + b"x")
    elif fault == "folder":
        chunk.mkdir()
    elif fault == "link":
        chunk.symlink_to(tmp_path / "nowhere")
    elif fault == "shape":
        chunk.write_bytes(content.replace(b"(2, 8, 11, 3)", b"(2, 11, 8, 3)"))
    elif fault == "dtype":
        chunk.write_bytes(content.replace(b"<f2", b"<i2"))
    with pytest.raises(CacheMismatchError, match=r"chunk_0000\.npy' is not the chunk .*: it"):
        FeatureStore.open(chunk.parent)
    repaired = extract(root)
    assert np.array_equal(np.load(chunk), stored)
    assert len(repaired) == 3


class Lockstep:
    """Lets two threads run a file line by line, each line of one together with one of the other."""

    def __init__(self, file: str) -> None:
        self._file = file
        self._barrier = threading.Barrier(2)

    def run(self, call: Callable[[], Any]) -> Any:
        sys.settrace(self._trace)
        try:
            return call()
        finally:
            sys.settrace(None)
            self._barrier.abort()  # the other goes on alone

    def _trace(self, frame: FrameType, event: str, _: object) -> Any:
        if frame.f_code.co_filename != self._file:
            return None
        if event == "line":
            with contextlib.suppress(threading.BrokenBarrierError):
                self._barrier.wait()
        return self._trace


def test_threads_decode_on_different_devices_at_the_same_time(mixed, monkeypatch):
    """As the prefetch and an evaluation do; fake tensors stand for those on GPUs."""

    def decode(codec: Codec, rows: torch.Tensor) -> torch.Tensor:
        assert {array.device for array in codec.arrays.values()} == {rows.device}
        return rows

    codec = fit_codec(parse_codec("int8"), mixed.sample(50, seed=0))
    devices = [torch.device("cuda", index) for index in range(2)]
    with FakeTensorMode(allow_non_fake_inputs=True):
        moved = {device: codec.to(device) for device in devices}
        rows = [torch.zeros(4, codec.stored_channels, device=device) for device in devices]
    monkeypatch.setattr(Codec, "to", lambda _, device: moved[device])
    monkeypatch.setattr(Codec, "decode", decode)
    store = FeatureStore(mixed.folder, mixed.manifest)
    store._codec = codec
    together = Lockstep(str(store_module.__file__))
    with ThreadPoolExecutor(2) as pool:
        found = list(pool.map(lambda part: together.run(lambda: store._decoded(part)), rows))
    assert [features.device for features in found] == devices
