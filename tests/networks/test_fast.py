"""The machine-code hash grid equals its torch twins: values, gradients of table and positions."""

import logging

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st
from nerfstudio.field_components.encodings import HashEncoding
from nerfstudio.field_components.spatial_distortions import SceneContraction
from nerfstudio.fields.density_fields import HashMLPDensityField

from f3rm.networks import fast
from f3rm.networks.base import NetworkConfig
from f3rm.networks.nerfacto_fast import FastContraction, FastHashEncoding, use_fast_encodings
from f3rm.networks.torch_network import HashGrid

SIZES = NetworkConfig(num_levels=4, log2_hashmap_size=10, start_res=4, max_res=40)


def _nerfstudio(features, levels=5, log2=9):
    torch.manual_seed(0)
    slow, same = (
        HashEncoding(
            levels, max_res=64, log2_hashmap_size=log2, features_per_level=features,
            implementation="torch",
        )
        for _ in range(2)
    )  # fmt: skip
    torch.nn.init.normal_(slow.hash_table)
    same.load_state_dict(slow.state_dict())
    quick = torch.nn.Sequential(same)
    use_fast_encodings(quick)
    assert type(quick[0]) is FastHashEncoding
    return slow, quick[0]


def _apart(positions, scales):
    """Moves positions off the borders of cells, where slopes differ."""
    scaled = positions[..., None] * scales
    on_border = ((scaled - scaled.round()).abs() < 1e-3).any(dim=-1)
    return torch.where(on_border, torch.full_like(positions, 0.4321), positions)


@pytest.mark.parametrize("features", [1, 2, 4])
@pytest.mark.parametrize("threads", [1, 2])
def test_nerfstudios_encoding_is_the_same_bit_by_bit(features, threads):
    slow, quick = _nerfstudio(features)
    positions = torch.rand(7, 300, 3)
    positions[0, :27] = torch.cartesian_prod(*[torch.tensor([0.0, 0.25, 1.0])] * 3)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(threads)
        assert torch.equal(quick(positions), slow(positions))
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("features", [2, 8])
def test_nerfstudios_gradients_are_the_same(features):
    slow, quick = _nerfstudio(features)
    positions = _apart(torch.rand(400, 3), slow.scalings)
    cotangent = torch.randn(400, 5 * features)
    found = []
    for encoding in (slow, quick):
        points = positions.clone().requires_grad_()
        encoded = encoding(points)
        table = encoding.get_parameter("hash_table")
        found.append(torch.autograd.grad(encoded, [table, points], cotangent))
    for expected, given_ in zip(*found, strict=True):
        torch.testing.assert_close(given_, expected, atol=1e-4, rtol=1e-4)


@settings(max_examples=20, deadline=None)
@given(
    points=st.lists(
        st.tuples(*[st.floats(-0.25, 1.25, width=32, allow_subnormal=False)] * 3),
        min_size=1,
        max_size=9,
    ),
    features=st.sampled_from([1, 3, 8]),
)
def test_the_grid_equals_its_reference(points, features):
    torch.manual_seed(1)
    grid = HashGrid(NetworkConfig(**{**vars(SIZES), "features_per_level": features}))
    assert 0 < grid.num_dense < SIZES.num_levels
    torch.nn.init.normal_(grid.table)
    positions = torch.tensor(points)
    encoded, expected = grid(positions), grid.reference(positions)
    torch.testing.assert_close(encoded, expected, atol=1e-5, rtol=1e-5)
    cotangent = torch.randn(encoded.shape)
    (mine,) = torch.autograd.grad(encoded, grid.table, cotangent)
    (theirs,) = torch.autograd.grad(expected, grid.table, cotangent)
    torch.testing.assert_close(mine, theirs, atol=1e-5, rtol=1e-5)


def test_slopes_of_the_grid_equal_the_references():
    grid = HashGrid(SIZES)
    torch.nn.init.normal_(grid.table)
    positions = _apart(torch.rand(500, 3), grid.resolutions)
    cotangent = torch.randn(500, SIZES.num_levels * SIZES.features_per_level)
    slopes = []
    for encode in (grid, grid.reference):
        points = positions.clone().requires_grad_()
        slopes += torch.autograd.grad(encode(points), points, cotangent)
    torch.testing.assert_close(slopes[0], slopes[1], atol=1e-3, rtol=1e-4)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, 1e30])
def test_what_is_no_position_reads_no_foreign_memory(bad):
    grid = HashGrid(SIZES)
    positions = torch.full((3, 3), 0.3)
    positions[1, 1] = bad
    encoded = grid(positions)
    assert torch.equal(encoded[0], encoded[2])
    assert torch.isfinite(encoded[0]).all()
    _, quick = _nerfstudio(2)
    assert torch.isfinite(quick(positions)[[0, 2]]).all()


def test_other_precisions_and_a_missing_numba_take_torch(monkeypatch, caplog):
    grid = HashGrid(SIZES)
    positions = torch.rand(5, 3)
    assert fast.is_fast(positions, grid.table)
    assert not fast.is_fast(positions.double(), grid.table)
    assert not fast.is_fast(positions.to("meta"), grid.table)
    fast._is_installed.cache_clear()
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with caplog.at_level(logging.WARNING):
        assert torch.equal(grid(positions), grid.reference(positions))
        assert "Run pip install 'numba>=0.60' (f3rm's extra 'fast';" in caplog.text
    monkeypatch.undo()
    fast._is_installed.cache_clear()


def test_parameters_and_their_names_stay():
    arguments = {"aabb": torch.tensor([[-1.0] * 3, [1.0] * 3]), "implementation": "torch"}
    torch.manual_seed(3)
    field = HashMLPDensityField(**arguments)
    before = dict(field.named_parameters())
    use_fast_encodings(field)
    after = dict(field.named_parameters())
    assert before.keys() == after.keys()
    assert all(after[name] is value for name, value in before.items())


@settings(max_examples=30, deadline=None)
@given(st.lists(st.tuples(*[st.floats(-9, 9, width=32)] * 3), min_size=1, max_size=6))
def test_contraction_is_nerfstudios_bit_by_bit(points):
    slow, quick = (SceneContraction(order=float("inf")) for _ in range(2))
    use_fast_encodings(torch.nn.ModuleList([quick]))
    assert type(quick) is FastContraction
    positions = torch.tensor([points])
    assert torch.equal(quick(positions), slow(positions))
    apart = positions + torch.tensor([0.0, 0.01, 0.023])  # ties share the slope differently
    slopes = []
    for contract in (slow, quick):
        moved = apart.clone().requires_grad_()
        slopes += torch.autograd.grad(contract(moved).square().sum(), moved)
    torch.testing.assert_close(slopes[0], slopes[1], atol=1e-5, rtol=1e-4)
