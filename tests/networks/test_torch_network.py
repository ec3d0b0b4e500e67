import math

import pytest
import torch
from hypothesis import given, settings, strategies as st

from f3rm._types import ImplementationError
from f3rm.networks.base import NetworkConfig, build_network, resolve_implementation
from f3rm.networks.encoding import frequency_encoding
from f3rm.networks.torch_network import HashGrid, TorchNetwork

SMALL = NetworkConfig(
    num_levels=4, features_per_level=3, log2_hashmap_size=10, start_res=4, max_res=16, hidden_dim=8
)


def reference_grid(grid: HashGrid, positions: torch.Tensor) -> torch.Tensor:
    """The hash grid as the paper says it: level by level, corner by corner."""
    encoded = []
    table_size = 1 << SMALL.log2_hashmap_size
    start = 0
    for resolution in grid.resolutions.tolist():
        cells = (resolution + 1) ** 3
        size = min(cells, table_size)
        table = grid.table[start : start + size]
        start += size
        rows = []
        for point in positions:
            lower = [min(math.floor(p * resolution), resolution - 1) for p in point.tolist()]
            value = torch.zeros(grid.table.shape[1], dtype=positions.dtype)
            for corner in range(8):
                offset = [(corner >> axis) & 1 for axis in range(3)]
                i, j, k = (low + off for low, off in zip(lower, offset, strict=True))
                if cells <= table_size:
                    index = i + (resolution + 1) * (j + (resolution + 1) * k)
                else:
                    index = (i ^ (j * 2654435761) ^ (k * 805459861)) % table_size
                weight = torch.ones((), dtype=positions.dtype)
                for axis in range(3):
                    fraction = point[axis] * resolution - lower[axis]
                    weight = weight * (fraction if offset[axis] else 1 - fraction)
                value = value + weight * table[index]
            rows.append(value)
        encoded.append(torch.stack(rows))
    return torch.cat(encoded, dim=-1)


def _grid():
    torch.manual_seed(0)
    grid = HashGrid(SMALL).double()
    torch.nn.init.normal_(grid.table)
    return grid


@settings(max_examples=15, deadline=None)
@given(points=st.lists(st.tuples(*[st.floats(0, 1, width=32)] * 3), min_size=1, max_size=6))
def test_grid_equals_the_reference_with_all_gradients(points):
    grid = _grid()
    assert 0 < grid.num_dense < SMALL.num_levels  # both kinds of level are exercised
    fast = torch.tensor(points, dtype=torch.float64, requires_grad=True)
    slow = fast.detach().clone().requires_grad_()
    encoded, expected = grid(fast), reference_grid(grid, slow)
    torch.testing.assert_close(encoded, expected, atol=1e-10, rtol=0)
    cotangent = torch.randn(encoded.shape, dtype=torch.float64)
    table_fast, points_fast = torch.autograd.grad((encoded * cotangent).sum(), [grid.table, fast])
    table_slow, points_slow = torch.autograd.grad((expected * cotangent).sum(), [grid.table, slow])
    torch.testing.assert_close(table_fast, table_slow, atol=1e-10, rtol=0)
    torch.testing.assert_close(points_fast, points_slow, atol=1e-10, rtol=0)


def test_gradients_do_not_depend_on_how_many_bags_are_added_at_once(monkeypatch):
    grid = _grid()
    points = torch.rand(50, 3, dtype=torch.float64)
    (whole,) = torch.autograd.grad(grid(points).square().sum(), grid.table)
    monkeypatch.setattr("f3rm.networks.torch_network._BAGS_AT_ONCE", 7)
    (parts,) = torch.autograd.grad(grid(points).square().sum(), grid.table)
    torch.testing.assert_close(parts, whole, atol=1e-12, rtol=0)


def test_corner_weights_are_a_partition_of_unity_and_rows_stay_in_their_level():
    grid = _grid()
    rows, weights = grid.corners(torch.rand(200, 3, dtype=torch.float64))
    torch.testing.assert_close(weights.sum(-1), torch.ones(200, 4, dtype=torch.float64))
    assert weights.min() >= 0
    assert (rows >= grid.offsets[:, None]).all()
    assert (rows < (grid.offsets + grid.sizes)[:, None]).all()


def test_positions_outside_the_cube_read_its_border():
    grid = _grid()
    outside = torch.tensor([[-0.5, 0.3, 1.7]], dtype=torch.float64)
    torch.testing.assert_close(grid(outside), grid(outside.clamp(0, 1)))


def test_default_resolutions_grow_from_16_to_128_by_a_fifth():
    resolutions = HashGrid(NetworkConfig(features_per_level=1, log2_hashmap_size=4)).resolutions
    assert resolutions[0] == 16
    assert resolutions[-1] == 128
    assert len(resolutions) == 12


def test_frequency_encoding_is_sin_and_cos_of_octaves():
    encoded = frequency_encoding(torch.tensor([[0.25, 0.5, 1.0]], dtype=torch.float64), 2)
    angles = [math.pi * x * 2**k for x in (0.25, 0.5, 1.0) for k in (0, 1)]
    expected = [*map(math.sin, angles), *map(math.cos, angles)]
    torch.testing.assert_close(encoded[0], torch.tensor(expected, dtype=torch.float64))


@pytest.mark.parametrize("use_pe", [True, False])
def test_network_has_no_bias_and_non_negative_output_of_the_asked_width(use_pe):
    config = NetworkConfig(**{**vars(SMALL), "use_pe": use_pe})
    network = build_network(config, "torch")
    assert isinstance(network, TorchNetwork)
    assert not [name for name, _ in network.named_parameters() if "bias" in name]
    hidden = network(torch.rand(5, 3))
    assert hidden.shape == (5, config.hidden_dim)
    assert hidden.min() >= 0


def test_implementation_choice(monkeypatch):
    assert resolve_implementation("auto", "cpu") == "torch"
    assert resolve_implementation("torch", "cuda") == "torch"
    with pytest.raises(ImplementationError, match="not CUDA"):
        resolve_implementation("tcnn", "cpu")
    monkeypatch.setattr("f3rm.networks.base.tcnn_installed", lambda: False)
    assert resolve_implementation("auto", "cuda") == "torch"
    with pytest.raises(ImplementationError, match=r"not installed.*implementation torch"):
        resolve_implementation("tcnn", "cuda")
