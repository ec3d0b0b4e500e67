"""What the fuzzer, and thinking about it, found: each was another exception, a hang or a crash."""

import json
import time

import numpy as np
import pytest
import torch

from f3rm.errors import CacheError, CacheMismatchError, DatasetError
from f3rm.language.expressions import ExpressionError, parse
from f3rm.recipes.vissl import load_features
from f3rm.recipes.vissl_config import read_vissl_config
from f3rm.scene.frames import scene_from_dataset
from f3rm.store.codec_files import read_codec
from f3rm.store.manifest import CodecArray, CodecRecord
from f3rm.store.npy import load_npy
from f3rm.store.reader import FeatureStore
from f3rm.store.spec import FeatureSpec, SpecError
from tests.extract.toy import extract, folder_of, write_dataset
from tests.fuzz import watch
from tests.fuzz.targets import Datasets
from tests.fuzz.typed import BOMB


@pytest.mark.parametrize("text", ["(" * 900, "not " * 200 + "a", "a > " * 200 + "a"])
def test_questions_nested_without_end_are_refused(text):
    with pytest.raises(ExpressionError, match="more than 32") as caught:
        parse(text)
    assert len(str(caught.value)) < 500


def test_questions_nested_as_people_do_are_read():
    deep = "(" * 20 + "not not mug > handle" + ")" * 20
    assert str(parse(deep)) == "(not (not mug)) > handle"
    assert len(str(parse(" and ".join(["mug"] * 120)))) > 500


@pytest.mark.parametrize(
    "text",
    [
        BOMB + "backbone: a:b\ntaps: *i",
        "backbone: a:b\ntaps: &a [*a]",
        "[" * 2000,
        "backbone: a:b\ntaps: [true]",
        "backbone: a:b\ntaps: [final]\nprep: 5",
        "backbone: a:b\ntaps: [final]\nbackground: [x, 0, 0]",
        "backbone: a:b\ntaps: [final]\nbackground: red",
        "backbone: 2001-99-99\ntaps: [final]",
        'backbone: a:b\ntaps: [final]\nframes: "\\ud800"',
        'backbone: a:b\ntaps: [final]\nframes: {num: "\\ud800"}',
    ],
)
def test_yaml_that_is_no_specification_is_refused(tmp_path, text):
    (tmp_path / "spec.yaml").write_text(text)
    with pytest.raises(SpecError):
        FeatureSpec.load(tmp_path / "spec.yaml")


def test_vissl_configurations_of_another_form_are_refused(tmp_path):
    file = tmp_path / "vissl.yaml"
    for operations in ("[[res4]]", "[5]", "[[res4, 5]]", "[[res4, []]]"):
        settings = f"{{LINEAR_EVAL_FEAT_POOL_OPS_MAP: {operations}}}"
        file.write_text(f"config: {{MODEL: {{FEATURE_EVAL_SETTINGS: {settings}}}}}")
        with pytest.raises(SpecError, match="must be pairs of a layer and an operation"):
            read_vissl_config(file)
    file.write_text("config: [MODEL]")
    assert read_vissl_config(file).layers


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"chunks": [], "images": [], "failed": ["x"]}, "it has no chunks"),
        ({"channels": 0}, r"Expected `int` >= 1 - at `\$\.channels`"),
        ({"codec": {"name": "int8", "arrays": []}}, "chunk_0000.npy is not of the codec's type"),
        ({"weights_identity": "\ud800"}, "JSON is malformed"),
        (
            {
                "codec": {
                    "name": "pca",
                    "arrays": [
                        {
                            "name": "basis",
                            "file": "codec_basis.npy",
                            "bytes": 200,
                            "shape": [],
                            "checksum": "",
                        }
                    ],
                }
            },
            "the shape of codec_basis.npy must have one or two sides",
        ),
    ],
)
def test_manifests_that_contradict_themselves_are_refused(tmp_path, change, reason):
    root = write_dataset(tmp_path / "scene", [(8, 12)])
    extract(root)
    path = folder_of(root) / "manifest.json"
    plain = json.loads(path.read_text())
    if "failed" in change:
        change["failed"] = [{"name": "x", "bytes": 0, "mtime_ns": 0, "error": "e"}]
    path.write_text(json.dumps({**plain, **change}))
    with pytest.raises(CacheError, match=reason):
        FeatureStore.open(path.parent)


def test_a_codec_file_of_some_bytes_asks_for_no_terabytes(tmp_path):
    """NumPy allocates what a header says: 3.64 TiB here, with a checksum that is right."""
    from f3rm.store.codec_files import _checksum  # noqa: PLC0415

    text = "{'descr': '<f4', 'fortran_order': False, 'shape': (1000000000000,), }"
    content = b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text.encode() + bytes(64)
    arrays = []
    for name in ("scale", "offset"):
        (tmp_path / f"codec_{name}.npy").write_bytes(content)
        arrays.append(CodecArray(name, f"codec_{name}.npy", len(content), (6,), _checksum(content)))
    with pytest.raises(CacheMismatchError, match="do not fit the shape"):
        read_codec(tmp_path, CodecRecord("int8", tuple(arrays)), 6)


def test_rows_that_a_file_does_not_have_ask_for_no_memory(tmp_path):
    """A million indices of one row of a megabyte: two files of 9 MB, a terabyte of features."""
    np.save(tmp_path / "rank0_chunk0_train_res5_features.npy", np.zeros((1, 1 << 18), np.float32))
    np.save(tmp_path / "rank0_chunk0_train_res5_inds.npy", np.arange(1 << 20))
    with pytest.raises(CacheError, match=r"must have a row of shape .* for each of its indices"):
        load_features(tmp_path, "train", "res5")
    np.save(tmp_path / "rank0_chunk0_train_res5_inds.npy", np.zeros(3))
    with pytest.raises(CacheError, match="must hold whole numbers"):
        load_features(tmp_path, "train", "res5")


def test_texts_that_are_no_unicode_are_refused(tmp_path):
    np.save(tmp_path / "list.npy", np.array([0x110000], dtype="<u4").view("<U1"))
    with pytest.raises(ValueError, match="not valid Unicode"):
        load_npy(tmp_path / "list.npy")


@pytest.mark.parametrize(
    "change",
    [
        {"applied_transform": [[1, 2], [3, 4]]},
        {"applied_transform": [[0] * 4] * 3},
        {"applied_scale": 0},
        {"applied_scale": "2"},
    ],
)
def test_transforms_that_ns_process_data_never_applied_are_refused(tmp_path, change):
    datasets = Datasets(tmp_path)
    file = tmp_path / "scene/transforms.json"
    file.write_text(json.dumps({**datasets._transforms, **change}))
    with pytest.raises(DatasetError, match="applied_transform and applied_scale"):
        scene_from_dataset(datasets._outputs, file.parent)


def test_the_guard_sees_what_it_is_for(tmp_path, monkeypatch):
    """Without this, a guard that had gone blind would let everything pass."""
    monkeypatch.setattr(watch, "SECONDS", 0.2)
    inside, outside = tmp_path / "inside", tmp_path / "outside"
    inside.mkdir()
    outside.mkdir()
    (outside / "there").touch()

    def linked() -> None:
        (inside / "link").symlink_to(outside)
        (inside / "link/file").write_text("x")

    def endless() -> None:
        while True:
            time.sleep(0.01)

    cases = {
        "accepted": lambda: (inside / "file").write_text("x"),
        "CacheError": lambda: read_codec(inside, CodecRecord("int8"), 6),
        "Elsewhere: 'open": lambda: (outside / "file").write_text("x"),
        "Elsewhere: 'os.remove": (outside / "there").unlink,
        "Elsewhere: 'os.mkdir": (outside / "new").mkdir,
        "Elsewhere": linked,
        "Hang": endless,
        "MemoryError": lambda: np.ones(1 << 32, np.uint8),
        "RuntimeError": lambda: torch.ones(1 << 31),
        "KeyError": lambda: {}["x"],
    }
    for expected, case in cases.items():
        found = watch.run_cases("guard", lambda _, case=case: case(), range(1), inside)
        text = " ".join([*found.counts, *found.failures])
        assert expected in text
        assert ("FAILED" in text) == (expected not in ("accepted", "CacheError"))
