import json
import math

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings, strategies as st

from f3rm.errors import CacheError, F3rmError
from f3rm.extract.extraction import extract_features
from f3rm.store.manifest import MANIFEST, read_manifest
from f3rm.store.reader import FeatureStore
from tests.extract.toy import ToyBackbone, items_of, toy_spec, write_dataset


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A finished cache; tests write only its manifest, which is put back."""
    root = write_dataset(tmp_path_factory.mktemp("manifest") / "scene")
    folder = root / "features" / "toy"
    extract_features(
        items_of(root),
        toy_spec(),
        folder=folder,
        shard_size=2,
        load=ToyBackbone.load,
        progress=False,
    )
    return folder, (folder / MANIFEST).read_text()


@pytest.fixture
def cache(finished):
    folder, text = finished
    yield folder, json.loads(text)
    (folder / MANIFEST).write_text(text)


def test_reading_gives_what_was_written(cache):
    folder, _ = cache
    assert read_manifest(folder).to_json() == (folder / MANIFEST).read_text()


def test_manifest_records_images_chunks_and_provenance(cache):
    folder, plain = cache
    assert plain["schema_version"] == 2
    assert plain["weights_identity"] == "hub:mean@toy"
    assert plain["provenance"] == {"library": "toy", "weights": "none"}
    assert set(plain["versions"]) >= {"f3rm", "torch"}
    assert [chunk["file"] for chunk in plain["chunks"]] == [f"chunk_000{i}.npy" for i in range(3)]
    assert 0 < max(chunk["codec_error"] for chunk in plain["chunks"]) < 2**-10
    assert {str(chunk["taps"]) for chunk in plain["chunks"]} == {"{'final': [8, 11, 3]}"}
    for chunk in plain["chunks"]:
        stored = np.load(folder / chunk["file"])
        assert list(stored.shape) == chunk["shape"]
        assert stored.dtype.name == chunk["dtype"] == "float16"
        assert chunk["bytes"] == (folder / chunk["file"]).stat().st_size
        assert chunk["bytes"] - stored.nbytes == 4096
    image = plain["images"][3]
    assert (image["name"], image["chunk"], image["row"]) == ("images/3.png", 1, 1)
    assert image["size"] == [24, 33]
    assert image["affine"]["scale_x"] == 11 / 33
    assert image["valid"] == {"x_min": -0.5, "y_min": -0.5, "x_max": 10.5, "y_max": 7.5}


def change(path, value):
    def apply(plain):
        *parents, last = path
        for part in parents:
            plain = plain[part]
        plain[last] = value

    return apply


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (["schema_version"], 3, r"schema version 2 or older, got 3\. .* update f3rm"),
        (["schema_version"], 1, r"an earlier f3rm wrote it \(schema version 1\). Extract again"),
        (["schema_version"], "1", r"Expected `int`, got `str` - at `\$\.schema_version`"),
        (
            ["chunks", 0, "file"],
            "../../secret.npy",
            r"matching regex .*chunks\[0\]\.file`",
        ),
        (["chunks", 0, "file"], "/etc/passwd", "matching regex"),
        (["chunks", 0, "file"], "chunk_0000.npy/../x", "matching regex"),
        (["chunks", 0, "file"], "chunk_0000.npy\n", "matching regex"),
        (["chunks", 1, "file"], "chunk_0000.npy", "listed twice"),
        (["chunks", 0, "shape"], [2, 10**9, 10**9, 3], "cannot have .* bytes and the shape"),
        (["chunks", 0, "shape"], [2, -8, -11, 3], r"Expected `int` >= 1 - at .*shape\[1\]"),
        (["chunks", 0, "shape"], [2, 8, 11], "Expected `array` of length 4"),
        (["chunks", 0, "shape"], [3, 8, 11, 3], "does not fit its 2 images"),
        (["chunks", 0, "shape"], [2, 4, 22, 3], "valid rectangle of 'images/0.png' is not inside"),
        (["chunks", 0, "shape", 0], True, r"got `bool` - at .*shape\[0\]"),
        (["chunks", 0, "taps"], {"final": [8, 11, 4]}, "taps of chunk_0000.npy do not fit"),
        (["chunks", 0, "taps"], {"other": [8, 11, 3]}, "taps of chunk_0000.npy do not fit"),
        (["chunks", 0, "taps"], {"final": [8, -11, 3]}, "Expected `int` >= 1"),
        (["chunks", 0, "bytes"], -1, "Expected `int` >= 0"),
        (["chunks", 0, "bytes"], 10**300, "Expected `int` <="),
        (["chunks", 0, "dtype"], "object", r"Invalid enum value 'object' - at .*\.dtype"),
        (["chunks", 0, "images", 0], "images/4.png", "is not row 0 of chunk_0000.npy"),
        (["images", 0, "chunk"], 99, "is in chunk 99, which does not exist"),
        (["images", 0, "row"], 1, "is not row 1 of chunk_0000.npy"),
        (["images", 0, "size"], [24], "Expected `array` of length 2"),
        (["images", 0, "affine", "scale_x"], "1", "Expected `float`, got `str` .*scale_x"),
        (["images", 0, "affine", "scale_x"], 1e300, "geometry of 'images/0.png' is out of bounds"),
        (["images", 0, "valid", "x_max"], 99.0, "valid rectangle of 'images/0.png' is not inside"),
        (["images", 0, "valid", "x_max"], -0.5, "valid rectangle of 'images/0.png' is"),
        (
            ["spec", "prep", "scales"],
            None,
            r"got `null` - at .*prep\.scales`. Extract",
        ),
        (["failed"], None, r"Expected `array`, got `null` - at `\$\.failed`. Extract again"),
        (["codec", "arrays"], None, r"got `null` - at `\$\.codec\.arrays`. Extract again"),
        (["images"], [], "do not list the same images"),
        (["channels"], 4, "chunk_0000.npy has 3 channels, not 4"),
        (["key"], "0" * 32, "key is not the hash of its settings"),
        (["spec", "prep", "size"], 33, "key is not the hash of its settings"),
        (["spec", "prep", "size"], 0, "size must be a number of pixels"),
        (["spec", "name"], "../up", "name must be lower-case"),
        (["spec"], None, r"Expected `object`, got `null` - at `\$\.spec`"),
        (["provenance"], {"library": 1}, r"Expected `str`, got `int` - at `\$\.provenance"),
    ],
)
def test_a_wrong_manifest_is_refused_with_the_reason(cache, path, value, message):
    folder, plain = cache
    change(path, value)(plain)
    (folder / MANIFEST).write_text(json.dumps(plain))
    with pytest.raises(CacheError, match=message):
        FeatureStore.open(folder)


@pytest.mark.parametrize(
    "text",
    ["", "{", "[]", "3", '{"schema_version": NaN}', "[" * 10**5, "9" * 5000, "\x00", '"é'],
    ids=["empty", "cut", "list", "number", "nan", "deep", "digits", "zero", "text"],
)
def test_text_that_is_no_manifest_is_refused(cache, text):
    folder, _ = cache
    (folder / MANIFEST).write_bytes(text.encode("latin1"))
    with pytest.raises(CacheError, match=r"is not a complete manifest: .*Extract again"):
        read_manifest(folder)


def test_a_cut_manifest_is_refused_wherever_it_is_cut(cache):
    folder, _ = cache
    text = (folder / MANIFEST).read_text().rstrip()
    for length in range(0, len(text), 97):
        (folder / MANIFEST).write_text(text[:length])
        with pytest.raises(CacheError):
            read_manifest(folder)


def test_a_missing_manifest_is_no_cache(tmp_path):
    with pytest.raises(
        CacheError, match=r"no finished cache in .*: no manifest\.json\. Run f3rm extract"
    ):
        read_manifest(tmp_path)


@pytest.mark.parametrize("scale", [None, "1", [], True])
def test_scales_are_numbers(cache, scale):
    folder, plain = cache
    changed = json.loads(json.dumps(plain))
    changed["spec"]["prep"]["scales"] = [scale]
    (folder / MANIFEST).write_text(json.dumps(changed))
    with pytest.raises(CacheError, match=r"Expected `float`, got .*scales"):
        read_manifest(folder)


junk = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5)
values = junk | st.lists(junk, max_size=2) | st.dictionaries(st.text(max_size=5), junk, max_size=2)


@given(st.data())
@settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_any_replaced_field_is_harmless(cache, data):
    """Whatever one field is replaced by, opening either works or raises f3rm's own error."""
    folder, plain = cache
    node = plain = json.loads(json.dumps(plain))
    while True:
        key = data.draw(st.sampled_from(list(node) if isinstance(node, dict) else range(len(node))))
        if not (isinstance(node[key], dict | list) and node[key]) or data.draw(st.booleans()):
            node[key] = data.draw(values)
            break
        node = node[key]
    (folder / MANIFEST).write_text(json.dumps(plain))
    try:
        store = FeatureStore.open(folder)
        assert math.isfinite(float(store.sample(3, seed=0).sum()))
    except F3rmError:
        pass
