"""Triton's hash grids equal their torch twins, in its interpreter, and compile without a GPU."""

import importlib
import json
import logging
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st
from nerfstudio.field_components.encodings import HashEncoding

pytest.importorskip("triton", reason="comes with torch on Linux")
from f3rm.networks import base, triton_grid
from f3rm.networks.base import (
    NetworkConfig,
    build_network,
    choose_implementation,
    resolve_implementation,
)
from f3rm.networks.fast import triton_is_interpreted
from f3rm.networks.nerfacto_fast import use_fast_encodings
from f3rm.networks.torch_network import HashGrid
from tests.nerf_fixtures import feature_model, head, rays

pytestmark = pytest.mark.skipif(not triton_is_interpreted(), reason="TRITON_INTERPRET is not 1")

ROOT = Path(__file__).resolve().parents[2]
SIZES = NetworkConfig(num_levels=3, log2_hashmap_size=9, start_res=4, max_res=30)


@pytest.fixture(autouse=True)
def few_programs(monkeypatch):
    """The interpreter takes its time per program."""
    monkeypatch.setattr(triton_grid, "BLOCK", 512)


def grid_of(config, seed=1):
    torch.manual_seed(seed)
    grid = HashGrid(config)
    grid.implementation = "triton"
    torch.nn.init.normal_(grid.table)
    return grid


def with_gradients(encode, positions, table):
    points = positions.clone().requires_grad_()
    encoded = encode(points)
    torch.manual_seed(2)
    cotangent = torch.randn(encoded.shape)
    return encoded.detach(), *torch.autograd.grad(
        encoded, (points, table), cotangent.to(encoded.dtype)
    )


def assert_equal(found, expected, tolerance=1e-5):
    for mine, twin in zip(found, expected, strict=True):
        largest = float(twin.abs().max()) if twin.numel() else 1.0
        torch.testing.assert_close(mine, twin, atol=tolerance * max(largest, 1.0), rtol=0)


@settings(max_examples=10, deadline=None)
@given(
    num_points=st.sampled_from([0, 1, 7, 257]),
    levels=st.integers(1, 4),
    features=st.sampled_from([1, 2, 3, 8]),
    log2=st.integers(3, 11),
    seed=st.integers(0, 99),
)
def test_the_grid_equals_its_reference(num_points, levels, features, log2, seed):
    config = NetworkConfig(levels, features, log2, start_res=3, max_res=24)
    grid = grid_of(config, seed)
    positions = torch.rand(num_points, 3) * 1.2 - 0.1  # some are outside, and clamped
    mine = with_gradients(grid, positions, grid.table)
    assert_equal(mine, with_gradients(grid.reference, positions, grid.table))


@pytest.mark.parametrize("features", [2, 8])
def test_blocks_and_kinds_of_levels_meet(monkeypatch, features):
    monkeypatch.setattr(triton_grid, "BLOCK", 128)
    grid = grid_of(NetworkConfig(**{**vars(SIZES), "features_per_level": features}))
    assert 0 < grid.num_dense < SIZES.num_levels
    positions = torch.rand(257, 3)
    positions[:27] = torch.cartesian_prod(*[torch.tensor([0.0, 0.5, 1.0])] * 3)
    mine = with_gradients(grid, positions, grid.table)
    assert_equal(mine, with_gradients(grid.reference, positions, grid.table))


@pytest.mark.parametrize("features", [2, 4])
def test_nerfactos_encoding_equals_nerfstudios(features):
    torch.manual_seed(0)
    encoding = HashEncoding(
        3, max_res=64, log2_hashmap_size=9, features_per_level=features, implementation="torch"
    )
    torch.nn.init.normal_(encoding.hash_table)
    positions = torch.rand(7, 30, 3)
    scaled = positions[..., None] * encoding.scalings
    near = ((scaled - scaled.round()).abs() < 1e-3).any(dim=-1)  # where slopes differ
    positions = torch.where(near, torch.full_like(positions, 0.4321), positions)
    table = encoding.get_parameter("hash_table")
    expected = with_gradients(encoding, positions, table)
    use_fast_encodings(torch.nn.Sequential(encoding), "triton")
    assert_equal(with_gradients(encoding, positions, table), expected)


def test_features_are_half_under_autocast_and_gradients_float32():
    grid = grid_of(SIZES)
    positions = torch.rand(50, 3)
    expected = with_gradients(grid.reference, positions, grid.table)
    with torch.autocast("cpu", dtype=torch.float16):
        found = with_gradients(grid, positions, grid.table)
    assert [tensor.dtype for tensor in found] == [torch.float16, torch.float32, torch.float32]
    assert torch.equal(found[0], grid(positions).detach().half())
    assert_equal([tensor.float() for tensor in found], expected, tolerance=1e-3)


def test_only_wanted_gradients_are_computed():
    grid = grid_of(SIZES)
    positions = torch.rand(20, 3)
    whole = with_gradients(grid, positions, grid.table)
    cotangent = (torch.manual_seed(2), torch.randn(whole[0].shape))[1]
    (of_table,) = torch.autograd.grad(grid(positions), grid.table, cotangent)
    assert torch.equal(of_table, whole[2])
    grid.table.requires_grad_(False)
    points = positions.clone().requires_grad_()
    (of_points,) = torch.autograd.grad(grid(points), points, cotangent)
    assert torch.equal(of_points, whole[1])


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, 1e30])
@pytest.mark.filterwarnings("ignore:invalid value encountered")
def test_what_is_no_position_reads_no_foreign_memory(bad):
    grid = grid_of(SIZES)
    positions = torch.full((3, 3), 0.3)
    positions[1, 1] = bad
    encoded = triton_grid.interpolate(positions, grid.table, grid.levels)
    assert torch.equal(encoded[0], encoded[2])
    assert torch.isfinite(encoded[0]).all()


@pytest.mark.parametrize(("saved", "opened"), [("torch", "triton"), ("triton", "torch")])
def test_a_checkpoint_of_one_opens_with_the_other(saved, opened):
    first = feature_model(head(), implementation=saved, seed=3).eval()
    second = feature_model(head(), implementation=opened, seed=4).eval()
    assert first.feature_field.trunk.grid.implementation == saved
    state = first.state_dict()
    assert state["feature_field._extra_state"]["implementation"] == "torch"
    second.load_state_dict(state)
    assert second.feature_field.trunk.grid.implementation == opened
    bundle = rays(4)
    found, expected = (model(bundle) for model in (second, first))
    for name in ("rgb", "feature"):
        torch.testing.assert_close(found[name], expected[name], atol=1e-5, rtol=1e-5)
    second.feature_field.adopt(feature_model(head("other"), implementation=saved).feature_field)


def test_a_batch_trains_as_in_torch():
    losses = []
    for implementation in ("torch", "triton"):
        model = feature_model(head(), implementation=implementation).train()
        outputs = model(rays(4))
        loss = outputs["rgb"].sum() + outputs["feature"].square().sum()
        loss.backward()
        found = {name: p.grad for name, p in model.named_parameters() if "table" in name}
        tables = [grad for grad in found.values() if grad is not None]
        assert len(tables) == 2 < len(found)  # a proposal's has none without its loss
        assert all(grad.any() for grad in tables)
        losses.append((loss.detach(), *tables))
    assert_equal(losses[1], losses[0], tolerance=1e-4)


@pytest.fixture
def on_a_gpu(monkeypatch, tmp_path):
    """A machine where Triton runs, without tiny-cuda-nn, and with a cache folder of its own."""
    monkeypatch.setattr(base, "triton_runs_on", lambda device: True)
    monkeypatch.setattr(base, "tcnn_runs_on", lambda device: True)
    monkeypatch.setattr(base, "tcnn_installed", lambda: False)
    monkeypatch.setattr(triton_grid.platformdirs, "user_cache_dir", lambda name: str(tmp_path))
    triton_grid.problem.cache_clear()
    base._warn_once.cache_clear()
    yield tmp_path / "triton.json"
    triton_grid.problem.cache_clear()


def test_auto_takes_triton_after_one_check_per_machine(on_a_gpu, monkeypatch):
    monkeypatch.setattr(triton_grid, "BLOCK", 4096)
    state = torch.get_rng_state()
    choice = choose_implementation("auto", "cpu")
    assert (choice.implementation, choice.is_fallback) == ("triton", False)
    assert choice.reason.startswith("tiny-cuda-nn is not installed; Triton's")
    assert torch.equal(torch.get_rng_state(), state)  # training draws the same numbers
    ((key, result),) = json.loads(on_a_gpu.read_text()).items()
    assert key.startswith(f"cpu, torch {torch.__version__}, triton ")
    assert result == ""
    monkeypatch.setattr(triton_grid, "difference", lambda device: pytest.fail("checked twice"))
    for _ in range(2):
        assert resolve_implementation("auto", "cpu") == "triton"
        triton_grid.problem.cache_clear()  # as in another process
    on_a_gpu.write_text("{", encoding="utf-8")
    monkeypatch.setattr(triton_grid, "difference", lambda device: "")
    assert resolve_implementation("auto", "cpu", with_tcnn=False) == "triton"


def test_auto_stays_in_torch_where_triton_computes_something_else(on_a_gpu, monkeypatch, caplog):
    monkeypatch.setattr(triton_grid, "_POINTS", 64)
    reference = HashGrid.reference
    monkeypatch.setattr(HashGrid, "reference", lambda grid, points: reference(grid, points) * 1.001)
    for _ in range(2):
        assert resolve_implementation("auto", "cpu") == "torch"
        triton_grid.problem.cache_clear()
    said = r"Triton is left out, its values of 2 features differ from torch's by 1.0e-03"
    warned = [record for record in caplog.records if record.levelname == "WARNING"]
    assert sum(said in record.getMessage() for record in warned) == 1, caplog.text
    assert next(iter(json.loads(on_a_gpu.read_text()).values())).startswith("its values")
    assert resolve_implementation("triton", "cpu") == "triton"  # who asks for it decides


def test_an_error_of_the_check_is_said_and_not_remembered(on_a_gpu, monkeypatch, caplog):
    def fail(device):
        raise RuntimeError("ptxas says:\nFailed to find C compiler.")

    monkeypatch.setattr(triton_grid, "difference", fail)
    assert resolve_implementation("auto", "cpu") == "torch"
    assert "Triton is left out, its check ended with RuntimeError: Failed to find C" in caplog.text
    assert not on_a_gpu.exists()


@pytest.mark.parametrize("choice", ["auto", "triton"])
def test_where_triton_is_not_installed_the_model_runs_in_torch(
    on_a_gpu, monkeypatch, caplog, choice
):
    monkeypatch.setenv("TRITON_INTERPRET", "0")
    monkeypatch.delitem(sys.modules, "f3rm.networks.triton_grid")
    monkeypatch.setitem(sys.modules, "triton", None)
    with caplog.at_level(logging.INFO):
        assert resolve_implementation(choice, "cpu") == "torch"
    assert "which comes with torch on Linux, cannot be imported" in caplog.text
    assert "--pipeline.model.implementation torch needs none" in caplog.text


def test_a_cpu_takes_torch_by_itself_and_with_a_warning_when_asked_for_triton(monkeypatch, caplog):
    assert choose_implementation("auto", "cpu").reason == "the device is not CUDA"
    assert isinstance(build_network(SIZES, "triton"), triton_grid.TritonNetwork)
    monkeypatch.setenv("TRITON_INTERPRET", "0")
    base._warn_once.cache_clear()
    assert resolve_implementation("triton", "cpu") == "torch"
    assert "The device is not CUDA: the model runs in torch" in caplog.text
    moved = grid_of(SIZES)  # a model of a GPU, on a CPU
    positions = torch.rand(5, 3)
    torch.testing.assert_close(moved(positions), moved.reference(positions))


@pytest.mark.slow
def test_compiled_for_every_gpu_nothing_spills():
    done = subprocess.run(
        [sys.executable, "benchmarks/triton_table.py", "--json"],
        cwd=ROOT,
        env={**os.environ, "TRITON_INTERPRET": "0"},
        capture_output=True,
        text=True,
        check=False,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    found = json.loads(done.stdout)
    assert list(found) == ["75", "80", "86", "89", "90"]
    for kernels in found.values():
        assert len(kernels) == 4
        for used in kernels.values():
            assert used["spilled"] == 0
            assert used["registers"] <= 128  # four blocks of 128 threads fit a multiprocessor


@pytest.mark.gpu
def test_the_check_holds_on_this_gpu():
    code = (
        "import torch; from f3rm.networks import triton_grid; "
        "print(repr(triton_grid.difference(torch.device('cuda'))))"
    )
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code],
        cwd=ROOT,
        env={**os.environ, "TRITON_INTERPRET": "0"},
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert done.stdout.strip() == "''", done.stderr[-4000:]


def test_kernels_are_imported_only_where_triton_runs():
    code = (
        "import sys, torch; sys.modules['triton'] = None; from f3rm.networks import base, "
        "nerfacto_fast; base.build_network(base.NetworkConfig(2, 2, 4), 'torch')(torch.rand(2, 3))"
    )
    subprocess.run([sys.executable, "-W", "ignore", "-c", code], cwd=ROOT, check=True, timeout=300)
    importlib.import_module("f3rm.networks.triton_grid")
