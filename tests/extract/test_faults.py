"""Real faults: full and read-only disks, file size limits, odd names, images that go bad."""

import contextlib
import shutil
import subprocess

import numpy as np
import pytest
import torch
from PIL import Image

from f3rm.errors import CacheError, DatasetError, DeviceError, ImageError
from f3rm.extract import encoder, extraction
from f3rm.extract.cache import feature_folder
from f3rm.extract.extraction import extract_features
from f3rm.extract.standalone import jobs_for_dataset
from f3rm.store.codecs import Codec
from f3rm.store.items import read_items
from f3rm.store.manifest import read_manifest
from f3rm.store.reader import FeatureStore
from f3rm.store.video import inspect_items
from tests.extract.test_extraction import brighten
from tests.extract.toy import (
    ToyBackbone,
    building_of,
    extract,
    files_of,
    folder_of,
    items_of,
    never,
    notes_of,
    random_pixels,
    toy_spec,
    write_dataset,
    write_frames,
)


def mount(*arguments: str) -> None:
    try:
        subprocess.run(
            ["mount", *arguments], check=True, capture_output=True, text=True, timeout=60
        )
    except (OSError, subprocess.SubprocessError) as error:
        detail = getattr(error, "stderr", "") or str(error)
        pytest.skip(f"mounting needs root: {detail.strip()}")


@pytest.fixture
def small_disk(tmp_path):
    """A disk of 1 MB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount("-t", "tmpfs", "-o", "size=1m", "tmpfs", str(folder))
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True, timeout=60)


@pytest.fixture
def large(tmp_path):
    """A dataset whose features need about 0.7 MB in 6 chunks."""
    return write_dataset(tmp_path / "scene", [(24, 33)] * 6)


def extract_large(root, folder, **options):
    spec = toy_spec(short_side=400)
    return extract(root, spec, folder=folder, shard_size=1, **options)


def test_too_small_a_disk_is_known_before_anything_is_written(large, small_disk):
    with pytest.raises(
        CacheError, match=r"toy features need 3\d+ bytes in .*, but only \d+ are free"
    ):
        extract(large, toy_spec(short_side=1000), folder=small_disk / "toy", shard_size=1)
    assert not list(small_disk.rglob("*.npy"))


@pytest.mark.parametrize("moment", ["chunk", "manifest"])
def test_a_full_disk_is_said_and_nothing_is_lost(large, small_disk, events, moment):
    expected = files_of(extract_large(large, large / "undisturbed").folder)
    ballast = small_disk / "ballast"
    folder = small_disk / "toy"
    left = 4 if moment == "chunk" else 1

    class Filling(ToyBackbone):
        """Fills the disk when only so many images are left."""

        runs = 0

        def encode_image(self, images):
            self.runs += 1
            if self.runs == 7 - left:
                fill(ballast, 20_000 if moment == "chunk" else 90_000)
            return super().encode_image(images)

    with pytest.raises(CacheError, match=r"No space left on device \(\d+ bytes are free\)"):
        extract_large(large, folder, load=Filling.load, batch_size=1)
    assert not folder.exists()
    done = len(list((small_disk / "toy.building/progress").glob("chunk_*.json")))
    assert 0 < done < 6
    ballast.unlink()
    events()
    extract_large(large, folder)
    assert len([event for event in events() if event.startswith("run")]) == 6 - done
    assert files_of(folder) == expected


def fill(path, keep: int) -> None:
    """Writes a file until ``keep`` bytes are left."""
    free = shutil.disk_usage(path.parent).free
    with contextlib.suppress(OSError):  # the extractor writes at the same time
        path.write_bytes(b"\0" * max(0, free - keep))


def test_a_limit_on_file_sizes_is_said_and_nothing_is_lost(large, python):
    script = """
import resource, signal, sys
from pathlib import Path
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, resource.RLIM_INFINITY))
from f3rm.errors import BackboneRef, CacheError
from f3rm.extract.extraction import extract_features
from f3rm.store.geometry import Prep
from f3rm.store.items import read_items
from f3rm.store.spec import FeatureSpec
spec = FeatureSpec(BackboneRef("toy", "mean", "toy"), ("final",), Prep(size=400))
root = Path(sys.argv[1])
try:
    extract_features(read_items(root), spec, folder=root / "features" / "toy", progress=False)
except CacheError as error:
    print(error)
"""
    out, err = python("-c", script, str(large)).communicate(timeout=60)
    assert "File too large" in out, err
    assert not folder_of(large).exists()
    assert not list(building_of(large).glob("*.tmp"))


@pytest.fixture
def read_only(dataset, tmp_path, monkeypatch):
    """The dataset on a read-only mount, which root cannot write to either."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
    mount("--bind", str(dataset), str(dataset))
    try:
        mount("-o", "remount,ro,bind", str(dataset))
        yield dataset
    finally:
        subprocess.run(["umount", "-l", str(dataset)], check=True, timeout=60)


def test_a_read_only_dataset_goes_to_the_cache_home_and_says_so(read_only, tmp_path, caplog):
    items = items_of(read_only)
    folder = feature_folder(read_only, toy_spec(), None, items=items)
    assert folder.is_relative_to(tmp_path / "home")
    assert "is not writable; the features are kept in" in caplog.text
    assert len(extract(read_only, folder=folder)) == 5
    again = feature_folder(read_only, toy_spec(), None, items=items)
    extract(read_only, folder=again, load=never)
    with pytest.raises(CacheError, match=r"Cannot write to .*features/toy'\. Pass --cache-dir"):
        extract(read_only, load=never)


def test_names_with_spaces_unicode_links_and_equal_stems_are_distinct(tmp_path):
    root = tmp_path / "scène 1"
    names = ["a/0.png", "b/0.png", "b/0.jpg", "ünï çødé/ß 1.png", "link.png", "chunk_0000.npy.png"]
    for seed, name in enumerate(names):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        if name != "link.png":
            Image.fromarray(random_pixels((24, 33), seed)).save(root / name)
    (root / "link.png").symlink_to(root / "a/0.png")
    write_frames(root, names)
    store = extract(root)
    assert list(store.names) == names
    alone = [extract_alone(root, name) for name in names]
    for index, expected in enumerate(alone):
        assert torch.equal(store.feature_map(index), expected)
    assert torch.equal(store.feature_map(0), store.feature_map(4)), "the link shows its target"


def extract_alone(root, name):
    items = [item for item in read_items(root) if item.name == name]
    folder = root / "alone" / name.replace("/", "-")
    options = {"load": ToyBackbone.load, "progress": False}
    return extract_features(items, toy_spec(), folder=folder, **options).feature_map(0)


def cut(path) -> None:
    path.write_bytes(path.read_bytes()[:-300])


def empty(path) -> None:
    path.write_bytes(b"")


def vanish(path) -> None:
    path.unlink()


@pytest.mark.parametrize("spoil", [cut, empty, vanish], ids=lambda spoil: spoil.__name__)
def test_a_bad_image_is_recorded_or_raised_as_asked(dataset, caplog, events, spoil):
    spoil(dataset / "images/1.png")
    items = read_items(dataset, present=False)
    options = {"folder": folder_of(dataset), "shard_size": 2, "progress": False}
    with pytest.raises(ImageError, match=r"'images/1\.png' must be a complete image"):
        extract_features(items, toy_spec(), load=ToyBackbone.load, **options)
    events()
    options |= {"on_error": "record"}
    store = extract_features(items, toy_spec(), load=ToyBackbone.load, **options)
    assert store.names == tuple(f"images/{i}.png" for i in (0, 2, 3, 4))
    (failed,) = read_manifest(folder_of(dataset)).failed
    assert failed.name == "images/1.png"
    assert "images/1.png has no features: it is not a complete image" in caplog.text
    extract_features(items, toy_spec(), load=never, **options)
    options |= {"on_error": "raise"}
    with pytest.raises(ImageError, match=r"images/1\.png"):
        extract_features(items, toy_spec(), load=ToyBackbone.load, **options)
    Image.fromarray(random_pixels((24, 33), 1)).save(dataset / "images/1.png")
    events()
    assert len(extract(dataset)) == 5
    assert events() == ["load", "run 1"], "it gets a chunk of its own, as the others are full"


def test_nan_is_recorded_and_nothing_of_that_image_is_stored(dataset, events):
    brighten(dataset, "images/3.png")
    store = extract(dataset, toy_spec("nan"), on_error="record")
    assert store.names == tuple(f"images/{i}.png" for i in (0, 1, 2, 4))
    (failed,) = store.manifest.failed
    assert (failed.name, failed.error) == ("images/3.png", "the backbone gave NaN or infinity")
    assert not list(building_of(dataset).parent.glob("toy.*"))
    every = np.concatenate([np.load(path).ravel() for path in folder_of(dataset).glob("*.npy")])
    assert np.isfinite(every).all()
    events()
    extract(dataset, toy_spec("nan"), on_error="record", load=never)


def test_no_good_image_at_all_is_an_error(dataset):
    for number in range(5):
        empty(dataset / f"images/{number}.png")
    with pytest.raises(
        DatasetError,
        match=r"No image can be extracted: all 5 failed, e\.g\. 'images/0\.png': it is",
    ):
        extract(dataset, on_error="record", load=ToyBackbone.load)


def test_missing_images_are_jobs_only_when_they_may_be_recorded(dataset, toy_plugin, monkeypatch):
    monkeypatch.syspath_prepend(str(toy_plugin))
    vanish(dataset / "images/1.png")
    with pytest.raises(ImageError, match="1 of 5 named in"):
        jobs_for_dataset(dataset, "toy")
    (job,) = jobs_for_dataset(dataset, "toy", on_error="record")
    assert len(job.items) == 5


def test_an_image_that_changes_during_extraction_is_not_mixed_in(dataset, monkeypatch):
    def inspect_and_replace(*arguments, **options):
        found = inspect_items(*arguments, **options)
        Image.fromarray(random_pixels((24, 33), 77)).save(dataset / "images/4.png")
        return found

    monkeypatch.setattr(extraction, "inspect_items", inspect_and_replace)
    with pytest.raises(ImageError, match=r"'images/4\.png' must not change during extraction"):
        extract(dataset)
    monkeypatch.undo()
    store = extract(dataset)
    fresh = extract(dataset, folder=dataset / "fresh")
    assert files_of(store.folder) == files_of(fresh.folder)


FULL = [
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
    RuntimeError("CUDA error: out of memory"),  # of pinned memory
    RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"),
    RuntimeError("cuDNN error: CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED"),
    RuntimeError("cusolver error: CUSOLVER_STATUS_ALLOC_FAILED"),
    RuntimeError("[enforce] DefaultCPUAllocator: can't allocate memory: you tried ..."),
    MemoryError(),
]


class Tight(ToyBackbone):
    """Its features, or their encoded rows, fit into memory for one image only."""

    error: Exception
    to_float = False

    def encode_image(self, images):
        features = super().encode_image(images)
        return features.as_subclass(TightTensor) if self.to_float else features

    @classmethod
    def fit_one(cls, count: int) -> None:
        if count > 1:
            raise cls.error


class TightTensor(torch.Tensor):
    def float(self, *arguments, **options):
        Tight.fit_one(len(self))
        return super().float(*arguments, **options).as_subclass(torch.Tensor)


def in_the_backbone(monkeypatch):
    plain = ToyBackbone.encode_image
    monkeypatch.setattr(
        ToyBackbone, "encode_image", lambda self, x: (Tight.fit_one(len(x)), plain(self, x))[1]
    )


def in_fp32(monkeypatch):
    monkeypatch.setattr(Tight, "to_float", True)


def in_the_codec(monkeypatch):
    plain = Codec.encode
    monkeypatch.setattr(
        Codec, "encode", lambda self, x, dtype: (Tight.fit_one(len(x)), plain(self, x, dtype))[1]
    )


def in_the_copies(monkeypatch):
    plain = encoder.store_rows

    def store_rows(features, codec, dtype):
        rows = plain(features, codec, dtype)
        Tight.fit_one(len(features))
        return rows

    monkeypatch.setattr(encoder, "store_rows", store_rows)


@pytest.mark.parametrize(
    ("where", "error"),
    [(in_the_backbone, error) for error in FULL]
    + [(where, FULL[2]) for where in (in_fp32, in_the_codec, in_the_copies)],
)
def test_batches_are_halved_where_memory_is_short_and_it_is_said_once(
    dataset, caplog, monkeypatch, where, error
):
    monkeypatch.setattr(Tight, "error", error, raising=False)
    fresh = extract(dataset, folder=dataset / "fresh", shard_size=8, batch_size=1)
    released = []
    monkeypatch.setattr(encoder, "release_memory", released.append)
    with monkeypatch.context() as patches:
        where(patches)
        store = extract(dataset, load=Tight.load, shard_size=8, batch_size=4)
    said = [record.getMessage() for record in caplog.records if "do not fit" in record.message]
    assert [message.split(";")[1] for message in said] == [
        " going on with 2 at a time.",
        " going on with 1 at a time.",
    ]
    assert released == [torch.device("cpu")] * 2, "or cuBLAS finds no memory for a smaller batch"
    for index in range(5):
        assert torch.equal(store.feature_map(index), fresh.feature_map(index))


def test_one_image_that_does_not_fit_is_an_error_and_other_errors_are_not_hidden(dataset):
    class Full(ToyBackbone):
        def encode_image(self, images):
            raise torch.OutOfMemoryError

    class Broken(ToyBackbone):
        def encode_image(self, images):
            raise RuntimeError("a bug: CUBLAS_STATUS_EXECUTION_FAILED")

    with pytest.raises(DeviceError, match=r"One image of .* does not fit into the memory of cpu"):
        extract(dataset, load=Full.load)
    with pytest.raises(RuntimeError, match="a bug"):
        extract(dataset, load=Broken.load)
    assert not notes_of(dataset)


def test_half_precision_is_part_of_the_settings(dataset):
    class Linear(ToyBackbone):
        def encode_image(self, images):
            features = super().encode_image(images)
            return features @ torch.eye(3)  # autocast makes this bfloat16

    exact = extract(dataset, folder=dataset / "exact", load=Linear.load)
    spec = toy_spec(precision="bfloat16")
    store = extract(dataset, spec, load=Linear.load)
    difference = (store.feature_map(0) - exact.feature_map(0)).abs().max()
    assert 0 < difference < 2**-7
    assert FeatureStore.open(folder_of(dataset)).manifest.spec == spec
    assert spec.key("") != toy_spec().key("")
