import math

import pytest
import torch
from hypothesis import given, settings, strategies as st
from nerfstudio.field_components.encodings import HashEncoding
from torch.utils._python_dispatch import TorchDispatchMode

from f3rm.errors import ImplementationError
from f3rm.networks.base import (
    NetworkConfig,
    build_network,
    frequency_encoding,
    resolve_implementation,
)
from f3rm.networks.nerfacto_fast import use_fast_encodings
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


class _Largest(TorchDispatchMode):
    """Notes the largest tensor that an operation makes."""

    def __init__(self, *, but: int) -> None:
        super().__init__()
        self.but, self.num_bytes = but, 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        made = func(*args, **(kwargs or {}))
        for tensor in made if isinstance(made, tuple | list) else (made,):
            if isinstance(tensor, torch.Tensor) and tensor.untyped_storage().nbytes() != self.but:
                self.num_bytes = max(self.num_bytes, tensor.untyped_storage().nbytes())
        return made


@torch.no_grad()
def test_without_gradients_only_the_hidden_vectors_grow_with_the_points(monkeypatch):
    monkeypatch.setattr("f3rm.networks.torch_network.is_fast", lambda *_: False)  # as on a GPU
    monkeypatch.setattr("f3rm.networks.torch_network._POINTS_AT_ONCE", 100)
    network = build_network(SMALL, "torch")
    largest = []
    for num_points in (100, 900):
        positions = torch.rand(num_points, 3)
        with _Largest(but=num_points * SMALL.hidden_dim * 4) as seen:
            network(positions)
        largest.append(seen.num_bytes)
    assert largest[1] == largest[0] > 0


@torch.no_grad()
def test_parts_of_points_have_the_same_hidden_vectors_as_the_whole(monkeypatch):
    network = build_network(SMALL, "torch")
    positions = torch.rand(700, 3)
    with torch.enable_grad():
        whole = network(positions).detach()
    for fast in (True, False):
        if not fast:
            monkeypatch.setattr("f3rm.networks.torch_network.is_fast", lambda *_: False)
        monkeypatch.setattr("f3rm.networks.torch_network._POINTS_AT_ONCE", 99)
        torch.testing.assert_close(network(positions), whole, atol=1e-7, rtol=1e-6)
        assert network(positions[:0]).shape == (0, SMALL.hidden_dim)


@torch.no_grad()
def test_parts_of_points_have_the_same_bits_in_nerfactos_encoding(monkeypatch):
    encoding = HashEncoding(4, log2_hashmap_size=8, max_res=64, implementation="torch")
    torch.nn.init.normal_(encoding.hash_table)
    positions = torch.rand(7, 100, 3)
    whole = encoding(positions)
    use_fast_encodings(torch.nn.Sequential(encoding))
    monkeypatch.setattr("f3rm.networks.nerfacto_fast.is_fast", lambda *_: False)  # as on a GPU
    monkeypatch.setattr("f3rm.networks.nerfacto_fast._POINTS_AT_ONCE", 99)
    with _Largest(but=whole.nbytes) as seen:
        assert torch.equal(encoding(positions), whole)
    assert seen.num_bytes < 700 * 4 * 8


@pytest.mark.parametrize("use_pe", [True, False])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-5)])
def test_the_layers_and_their_gradient_are_those_of_torch_over_both_encodings(
    use_pe, dtype, tolerance
):
    config = NetworkConfig(num_levels=2, log2_hashmap_size=6, use_pe=use_pe, num_layers=3)
    network = TorchNetwork(config).to(dtype)
    positions = torch.rand(30, 3, dtype=dtype, requires_grad=True)
    encoded = torch.randn(30, 16, dtype=dtype, requires_grad=True)
    parts = [encoded]
    if use_pe:
        parts.append(frequency_encoding(positions, config.pe_num_frequencies))
    expected = network.layers(torch.cat(parts, dim=-1))
    actual = network._layers_of(positions, encoded)
    torch.testing.assert_close(actual, expected, atol=tolerance, rtol=tolerance)
    inputs = [encoded, *network.layers.parameters()] + [positions] * use_pe
    slopes = [
        torch.autograd.grad(hidden.square().mean(), inputs, retain_graph=True)
        for hidden in (actual, expected)
    ]
    for ours, theirs in zip(*slopes, strict=True):
        torch.testing.assert_close(ours, theirs, atol=tolerance, rtol=tolerance)
