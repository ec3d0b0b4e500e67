import io

import pytest
import torch
from nerfstudio.field_components.spatial_distortions import SceneContraction

from f3rm._types import F3rmError, HeadSpec, ImplementationError
from f3rm.feature_field import FeatureField, FeatureFieldConfig, FeatureStats
from f3rm.networks.base import NetworkConfig
from f3rm.semantics.pca import fit_pca
from tests.nerf_fixtures import head, scene_box

SMALL = NetworkConfig(num_levels=2, log2_hashmap_size=8, max_res=32, hidden_dim=16)


def _field(*specs: HeadSpec, contraction=True):
    distortion = SceneContraction(order=float("inf")) if contraction else None
    return FeatureField(
        FeatureFieldConfig(SMALL), specs, scene_box=scene_box(), spatial_distortion=distortion
    )


def test_positions_far_away_and_inside_the_box_land_in_the_unit_cube():
    far = torch.tensor([[1e6, -1e6, 3.0], [0.0, 0.0, 0.0]])
    contracted = _field().normalise(far)
    assert ((contracted >= 0) & (contracted <= 1)).all()
    torch.testing.assert_close(contracted[1], torch.full((3,), 0.5))
    boxed = _field(contraction=False).normalise(torch.tensor([[-1.0, 0.0, 1.0]]))
    torch.testing.assert_close(boxed, torch.tensor([[0.0, 0.5, 1.0]]))


def test_a_checkpoint_brings_its_heads_to_a_field_that_has_none():
    torch.manual_seed(0)
    trained = _field(head("dino", 6, has_text=False), head("clip", 9))
    features = torch.randn(50, 9)
    trained.head("clip").set_stats(FeatureStats.fit(features))
    buffer = io.BytesIO()
    torch.save(trained.state_dict(), buffer)
    buffer.seek(0)
    opened = _field().eval()
    opened.load_state_dict(torch.load(buffer, weights_only=True))
    assert opened.specs == trained.specs
    assert torch.equal(opened.head("clip").weight, trained.head("clip").weight)
    assert torch.equal(opened.head("clip").pca.components, fit_pca(features).components)
    assert opened.head("clip").variance == pytest.approx(float(features.var(0, False).mean()))


def test_resuming_with_other_heads_is_refused():
    state = _field(head("clip", 9)).state_dict()
    with pytest.raises(F3rmError, match=r"checkpoint has the heads .*clip.*9.*Resume"):
        _field(head("clip", 10)).load_state_dict(state)


def test_a_checkpoint_of_another_implementation_is_refused():
    state = _field(head()).state_dict()
    state["_extra_state"]["implementation"] = "tcnn"
    with pytest.raises(ImplementationError, match=r"'tcnn'.*tiny-cuda-nn"):
        _field(head()).load_state_dict(state)


def test_an_unknown_head_is_named_with_the_known_ones():
    with pytest.raises(F3rmError, match=r"\['clip'\].*'dino'"):
        _field(head("clip")).head("dino")


def test_head_spec_survives_plain_dicts():
    assert HeadSpec.from_dict(head("clip").to_dict()) == head("clip")
