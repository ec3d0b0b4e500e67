"""The machine-code hash grid equals its torch twins: values, gradients of table and positions."""

import logging

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st
from nerfstudio.cameras.camera_optimizers import CameraOptimizerConfig
from nerfstudio.field_components.encodings import HashEncoding, SHEncoding
from nerfstudio.field_components.spatial_distortions import SceneContraction
from nerfstudio.fields.density_fields import HashMLPDensityField
from nerfstudio.models.nerfacto import NerfactoModelConfig
from torch import Tensor

from f3rm.compat import lazy_lpips
from f3rm.networks import fast
from f3rm.networks.base import NetworkConfig
from f3rm.networks.nerfacto_fast import (
    FastContraction,
    FastHarmonics,
    FastHashEncoding,
    use_fast_encodings,
)
from f3rm.networks.torch_network import HashGrid
from tests.nerf_fixtures import NERFACTO_SIZES, rays, scene_box

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
    slopes = []
    for contract in (slow, quick):
        moved = positions.clone().requires_grad_()
        slopes += torch.autograd.grad(contract(moved).square().sum(), moved)
    known = slopes[0].isfinite()  # Nerfstudio's slope at the origin is none
    assert torch.equal(slopes[0][known], slopes[1][known])
    assert slopes[1].isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_harmonics_are_nerfstudios_bit_by_bit(dtype):
    slow, quick = (SHEncoding(levels=4, implementation="torch") for _ in range(2))
    use_fast_encodings(torch.nn.ModuleList([quick]))
    assert type(quick) is FastHarmonics
    directions = torch.nn.functional.normalize(torch.randn(7, 300, 3), dim=-1).to(dtype)
    assert quick(directions).dtype == torch.float32
    assert torch.equal(quick(directions), slow(directions))


@pytest.mark.parametrize("mode", ["off", "SO3xR3", "SE3"])
@pytest.mark.parametrize("autocast", [False, True])
def test_a_step_of_nerfacto_is_the_same_bit_by_bit(mode, autocast):
    results = []
    for change in (_use_fast_grids, use_fast_encodings):
        model = _nerfacto(mode)
        change(model)
        change(model)  # as a run does that is opened
        torch.manual_seed(4)
        for parameter in model.camera_optimizer.parameters():
            torch.nn.init.normal_(parameter, std=0.03)
        bundle, truth = rays(48), {"image": torch.rand(48, 3)}
        with torch.autocast("cpu", enabled=autocast):
            outputs = model(bundle)
            metrics = model.get_metrics_dict(outputs, truth)
            losses = model.get_loss_dict(outputs, truth, metrics)
        torch.stack(list(losses.values())).sum().backward()
        pictures = {name: value for name, value in outputs.items() if isinstance(value, Tensor)}
        weights = dict(enumerate(outputs["weights_list"]))
        trained = [(name, value.grad) for name, value in model.named_parameters()]
        slopes = {name: slope for name, slope in trained if slope is not None}
        results.append((pictures, weights, metrics, losses, slopes))
    for before, after in zip(*results, strict=True):
        assert before.keys() == after.keys()
        for name, value in before.items():
            assert torch.equal(torch.as_tensor(value), torch.as_tensor(after[name])), name
    assert (results[0][-1]["field.mlp_base.model.0.hash_table"] != 0).any()
    if mode != "off":
        assert (results[0][-1]["camera_optimizer.pose_adjustment"] != 0).all()


def _nerfacto(mode):
    torch.manual_seed(0)
    config = NerfactoModelConfig(**NERFACTO_SIZES)
    config.camera_optimizer = CameraOptimizerConfig(mode=mode)
    with lazy_lpips():
        model = config.setup(scene_box=scene_box(), num_train_data=3, metadata={}, device="cpu")
    return model.train()


def _use_fast_grids(model):
    for module in model.modules():
        if isinstance(module, HashEncoding):
            use_fast_encodings(module)
