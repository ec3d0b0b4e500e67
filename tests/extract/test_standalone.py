import pytest
import torch

from f3rm.errors import CacheError, FeatureTypeError
from f3rm.extract import standalone
from f3rm.scripts import extract_features_standalone as script
from f3rm.store.items import read_items
from f3rm.store.spec import FeatureSpec
from tests.extract.toy import ToyBackbone, toy_spec, write_dataset


@pytest.fixture
def store(dataset):
    return standalone.feature_saver(
        read_items(dataset),
        toy_spec(),
        folder=dataset / "features" / "toy",
        load=ToyBackbone.load,
        progress=False,
    )


def test_the_script_offers_the_same_names():
    for name in script.__all__:
        assert getattr(script, name) is getattr(standalone, name)


def test_lazy_features_are_indexed_like_an_array(store):
    features = standalone.feature_loader(store.folder)
    assert len(features) == 5
    assert features.shape == (5, 8, 11, 3)
    every = torch.stack([store.feature_map(i) for i in range(5)])
    assert torch.equal(features[3, 2, 1], every[3, 2, 1])
    images, rows, cols = torch.tensor([[0, 4], [2, 2]]), torch.tensor([7, 0]), torch.tensor(10)
    assert torch.equal(features[images, rows, cols], every[images, rows, cols])
    assert torch.equal(features[2, torch.arange(8)[:, None], torch.arange(11)], every[2])
    with pytest.raises(IndexError):
        features[5, 0, 0]


def test_lazy_features_of_several_sizes_have_no_shape(tmp_path):
    root = write_dataset(tmp_path / "scene", [(24, 33), (33, 24)])
    store = standalone.feature_saver(
        read_items(root), toy_spec(), folder=tmp_path / "c", load=ToyBackbone.load, progress=False
    )
    features = standalone.LazyFeatures(store)
    assert features[1, 10, 7].shape == (3,)
    with pytest.raises(CacheError, match=r"have one size, got \[\(8, 11\), \(11, 8\)\]"):
        _ = features.shape


class _ToyClip(ToyBackbone):
    default_tap = "-1|dense(maskclip)"


def test_a_combination_makes_ordinary_caches_in_order(dataset, monkeypatch):
    loaded: list[str] = []

    def load(ref, **options):
        loaded.append(ref.adapter)
        adapter = _ToyClip if ref.adapter == "clip" else ToyBackbone
        return adapter(ref, ToyBackbone.load(ref, **options).device)

    options = {"progress": False, "load": load}
    both = standalone.extract_features_for_dataset(dataset, "DINOCLIP", **options)
    assert list(both) == loaded == ["dino", "clip"]
    one = standalone.extract_features_for_dataset(dataset, "clip", **options)
    assert loaded == ["dino", "clip"]
    assert one["clip"].folder == dataset / "features" / "clip"
    assert isinstance(one["clip"].manifest.spec, FeatureSpec)


def test_names_are_checked_before_the_dataset(tmp_path):
    with pytest.raises(FeatureTypeError, match="no feature type 'CLOP'"):
        standalone.extract_features_for_dataset(tmp_path / "nowhere", "CLOP")
