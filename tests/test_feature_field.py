import io
from dataclasses import replace

import pytest
import torch
from hypothesis import given, strategies as st
from nerfstudio.field_components.spatial_distortions import SceneContraction
from torch.nn import functional

from f3rm.colours.pca import fit_pca
from f3rm.errors import F3rmError, HeadSpec, ImplementationError
from f3rm.feature_field import FeatureField, FeatureFieldConfig, FeatureStats
from f3rm.networks.base import NetworkConfig
from tests.nerf_fixtures import head, scene_box

SMALL = NetworkConfig(num_levels=2, log2_hashmap_size=8, max_res=32, hidden_dim=16)


def _field(*specs: HeadSpec, contraction=True, network=SMALL):
    distortion = SceneContraction(order=float("inf")) if contraction else None
    return FeatureField(
        FeatureFieldConfig(network), specs, scene_box=scene_box(), spatial_distortion=distortion
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


@given(length=st.floats(0.1, 20.0), seed=st.integers(0, 99))
def test_the_mean_of_unit_features_is_known_where_features_have_one_length(length, seed):
    generator = torch.Generator().manual_seed(seed)
    units = functional.normalize(torch.rand(50, 12, generator=generator), dim=-1)
    module = _field(head("clip", 12)).head("clip")
    module.set_stats(FeatureStats.fit(length * units))
    torch.testing.assert_close(module.unit_mean, units.mean(0))


def test_an_unknown_head_is_named_with_the_known_ones():
    with pytest.raises(F3rmError, match=r"\['clip'\].*'dino'"):
        _field(head("clip")).head("dino")


def test_head_spec_survives_plain_dicts():
    assert HeadSpec.from_dict(head("clip").to_dict()) == head("clip")


def _filled(field, seed):
    torch.manual_seed(seed)
    for parameter in field.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return field.eval()


def test_adopted_heads_and_own_ones_keep_their_features_bit_for_bit():
    positions = torch.rand(7, 5, 3, generator=torch.Generator().manual_seed(0)) * 2 - 1
    fields = [
        _filled(_field(head("clip", 12)), 1),
        _filled(_field(head("dino", 6), head("pixels", 3)), 2),
        _filled(_field(head("siglip", 9)), 3),
    ]
    expected = {
        name: field.head(name)(field.hidden(positions)) for field in fields for name in field.heads
    }
    whole = fields[0]
    whole.adopt(fields[1])
    whole.adopt(fields[2])
    hidden = whole.hidden(positions)
    assert hidden.shape == (7, 5, whole.hidden_dim) == (7, 5, 48)
    assert list(whole.heads) == ["clip", "dino", "pixels", "siglip"]
    for name, features in expected.items():
        module = whole.head(name)
        assert torch.equal(module(hidden), features), name
        assert module.weight.shape == (module.spec.channels, 48)
        torch.testing.assert_close(hidden @ module.weight.T, features)
        elsewhere = module.weight.clone()
        elsewhere[:, module.columns] = 0
        assert not elsewhere.any()


def test_a_checkpoint_brings_its_trunks():
    whole = _filled(_field(head("clip", 12)), 1)
    whole.adopt(_filled(_field(head("dino", 6)), 2))
    opened = _field().eval()
    opened.load_state_dict(whole.state_dict())
    positions = torch.rand(9, 3)
    assert torch.equal(opened.hidden(positions), whole.hidden(positions))
    for name in whole.heads:
        features = whole.head(name)(whole.hidden(positions))
        assert torch.equal(opened.head(name)(opened.hidden(positions)), features), name
    with pytest.raises(F3rmError, match="'dino' was added to this run later"):
        _field(head("clip", 12), head("dino", 6)).train().load_state_dict(whole.state_dict())


def test_a_field_of_other_sizes_or_with_a_name_twice_is_not_adopted():
    field = _field(head("clip", 12))
    with pytest.raises(F3rmError, match=r"got \['clip'\] twice"):
        field.adopt(_field(head("clip", 12)))
    other = _field(head("dino", 6), network=replace(SMALL, num_levels=3))
    with pytest.raises(F3rmError, match="the same sizes"):
        field.adopt(other)


def _identified(identity, *, model="small", weights="/first"):
    plain = head("clip")
    ref = replace(plain.backbone, model=model, weights=weights)
    return replace(plain, backbone=ref, identity=identity)


@pytest.mark.parametrize(
    ("saved", "now"),
    [
        (_identified("xxh3:1"), _identified("xxh3:1", weights="/second")),
        (_identified("hub:small@a"), _identified("hub:small@a")),
        (_identified(""), _identified("xxh3:1", weights="/second")),
    ],
    ids=["moved", "hub", "of-before"],
)
def test_training_goes_on_with_the_same_model(saved, now):
    resumed = _field(now).train()
    resumed.load_state_dict(_field(saved).state_dict())
    assert resumed.specs == (now,)


@pytest.mark.parametrize(
    ("saved", "now"),
    [
        (_identified("xxh3:1"), _identified("xxh3:2")),
        (_identified("xxh3:1 final"), _identified("xxh3:1 3")),
        (_identified("hub:small@a"), _identified("xxh3:2")),
        (_identified(""), _identified("xxh3:1", model="other")),
    ],
    ids=["other-bytes", "other-tap", "hub-and-file", "of-before"],
)
def test_training_does_not_go_on_with_another_model_of_the_same_width(saved, now):
    state = _field(saved).state_dict()
    resumed = _field(now).train()
    with pytest.raises(F3rmError, match=r"distils clip:small@/first.*the data has features of"):
        resumed.load_state_dict(state)
    opened = _field(now).eval()
    opened.load_state_dict(state)
    assert opened.specs == (saved,)


def test_a_checkpoint_without_identities_opens():
    state = _field(head("clip")).state_dict()
    for plain in state["_extra_state"]["heads"]:
        del plain["identity"]
    opened = _field().eval()
    opened.load_state_dict(state)
    assert opened.specs == (head("clip"),)
