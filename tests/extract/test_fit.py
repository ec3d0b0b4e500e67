"""Codecs from extraction to reading: fitted once, shared, kept, and their error recorded."""

import pytest
import torch

from f3rm.errors import CacheError, FeatureTypeError
from f3rm.extract.maintenance import repair_cache, verify_cache
from f3rm.store.codec_files import read_codec
from f3rm.store.manifest import read_manifest
from f3rm.store.reader import FeatureStore
from f3rm.store.spec import resolve_feature_type
from tests.extract.interrupted import StopError, stop_before
from tests.extract.test_cache_command import flip
from tests.extract.test_extraction import add_frame
from tests.extract.toy import (
    ToyBackbone,
    extract,
    files_of,
    folder_of,
    items_of,
    never,
    toy_spec,
)

FITTED = ["int8", "pca2"]


@pytest.fixture
def exact(dataset):
    return extract(dataset, toy_spec(codec="fp32"), folder=dataset / "exact")


@pytest.mark.parametrize(
    ("codec", "dtype", "channels", "close"),
    [("int8", "int8", 3, 0.004), ("pca2", "float16", 2, 0.4)],
)
def test_what_is_read_is_close_to_what_was_computed(dataset, exact, codec, dtype, channels, close):
    store = extract(dataset, toy_spec(codec=codec))
    assert {chunk.dtype for chunk in store.manifest.chunks} == {dtype}
    assert {chunk.shape[3] for chunk in store.manifest.chunks} == {channels}
    assert store.channels == 3
    reopened = FeatureStore.open(folder_of(dataset))
    for index in range(5):
        difference = reopened.feature_map(index) - exact.feature_map(index)
        assert difference.abs().max() < close
    error = store.manifest.codec.cosine_error
    assert error is not None
    assert 0 < error.mean < error.p99 <= error.worst
    assert error.num > 100
    assert not list(verify_cache(folder_of(dataset), items_of(dataset)))
    extract(dataset, toy_spec(codec=codec), load=never)


def test_plain_codecs_say_what_rounding_costs(dataset, exact):
    half = extract(dataset).manifest.codec
    assert (half.name, half.arrays) == ("none", ())
    assert half.cosine_error is not None
    assert half.cosine_error.worst < 1e-6
    full = exact.manifest.codec.cosine_error
    assert full is not None
    assert full.worst == 0


@pytest.mark.parametrize("codec", FITTED)
def test_an_interrupted_run_keeps_its_codec(dataset, events, monkeypatch, codec):
    spec = toy_spec(codec=codec)
    expected = files_of(extract(dataset, spec, folder=dataset / "whole").folder)
    with monkeypatch.context() as patch:
        stop_before(patch, "chunk_0001.npy")
        with pytest.raises(StopError):
            extract(dataset, spec)
    events()
    extract(dataset, spec)
    assert "run 1" not in events()[:2], "nothing is sampled again"
    assert files_of(folder_of(dataset)) == expected


@pytest.mark.parametrize("codec", FITTED)
def test_new_images_keep_the_codec_and_force_fits_anew(dataset, events, codec):
    spec = toy_spec(codec=codec)
    before = extract(dataset, spec).manifest.codec.hash
    add_frame(dataset)
    events()
    assert extract(dataset, spec).manifest.codec.hash == before
    assert events() == ["load", "run 2"], "the chunk that the image joins"
    assert extract(dataset, spec, force=True).manifest.codec.hash != before


def test_repair_keeps_the_codec_and_a_damaged_codec_costs_the_cache(dataset, events):
    extract(dataset, toy_spec(codec="int8"))
    before = files_of(folder_of(dataset))
    flip(folder_of(dataset) / "chunk_0001.npy")
    events()
    options = {"load": ToyBackbone.load, "progress": False}
    repair_cache(folder_of(dataset), items_of(dataset), **options)
    assert events() == ["load", "run 2"]
    assert files_of(folder_of(dataset)) == before
    flip(folder_of(dataset) / "codec_scale.npy")
    with pytest.raises(CacheError, match=r"codec_scale\.npy"):
        FeatureStore.open(folder_of(dataset))
    assert [what.what for what in verify_cache(folder_of(dataset), items_of(dataset))] == ["codec"]
    repair_cache(folder_of(dataset), items_of(dataset), **options)
    assert files_of(folder_of(dataset)) == before


def test_codecs_by_name(dataset):
    (plain,) = resolve_feature_type("clip", precision="float32")
    assert plain.codec == "fp16"
    (full,) = resolve_feature_type("clip", codec="fp32", precision="bfloat16")
    assert (full.codec, full.precision) == ("fp32", "bfloat16")
    (small,) = resolve_feature_type("clip", codec="PCA128", precision="float32")
    assert small.codec == "pca128"
    assert len({spec.key("") for spec in (plain, full, small)}) == 3
    with pytest.raises(FeatureTypeError, match="must be fp16, fp32, int8 or pca"):
        resolve_feature_type("clip", codec="zip")


def test_the_fitted_arrays_lie_beside_the_chunks(dataset):
    extract(dataset, toy_spec(codec="pca2"))
    names = {path.name for path in folder_of(dataset).iterdir()}
    assert {"codec_mean.npy", "codec_basis.npy"} <= names
    manifest = read_manifest(folder_of(dataset))
    codec = read_codec(folder_of(dataset), manifest.codec, 3)
    basis = codec.arrays["basis"]
    torch.testing.assert_close(basis @ basis.T, torch.eye(2))
    extract(dataset, toy_spec())
    assert not list(folder_of(dataset).glob("codec_*"))
