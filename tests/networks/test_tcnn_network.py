"""The tiny-cuda-nn trunk through a stand-in with its manners; no CUDA needed.

What tiny-cuda-nn itself computes is checked by the tests marked ``gpu``.
"""

import builtins
import importlib
import logging
from dataclasses import replace
from typing import Any

import pytest
import torch

from f3rm.errors import ImplementationError
from f3rm.networks import base
from f3rm.networks.base import (
    NetworkConfig,
    build_network,
    choose_implementation,
    frequency_encoding,
    resolve_implementation,
    tcnn_installed,
)
from f3rm.networks.gradient_scale import GradientScale
from tests.tcnn_fixtures import tcnn

__all__ = ["tcnn"]

SMALL = NetworkConfig(num_levels=3, features_per_level=2, log2_hashmap_size=10, hidden_dim=32)
RAYS, SAMPLES, CHANNELS = 4096, 4, 768


@pytest.mark.parametrize("use_pe", [True, False])
def test_both_layers_have_relu_and_the_sizes_of_the_torch_trunk(tcnn, use_pe):
    config = replace(SMALL, use_pe=use_pe)
    network: Any = build_network(config, "tcnn")
    assert network(torch.rand(5, 3)).shape == (5, 32)
    layers = network.module.network_config
    assert (layers["activation"], layers["output_activation"]) == ("ReLU", "ReLU")
    assert (layers["otype"], layers["n_neurons"], layers["n_hidden_layers"]) == (
        "FullyFusedMLP",
        32,
        1,  # tiny-cuda-nn counts without the output layer
    )
    encoding = network.module.encoding_config
    grid = encoding["nested"][0] if use_pe else encoding
    assert grid["base_resolution"] * grid["per_level_scale"] ** 2 == pytest.approx(128)


def test_widths_that_are_not_fused_take_the_other_network(tcnn):
    network: Any = build_network(replace(SMALL, hidden_dim=48), "tcnn")
    assert network.module.network_config["otype"] == "CutlassMLP"
    assert network(torch.rand(5, 3)).shape == (5, 48)


@pytest.mark.parametrize("num_points", [0, 1, 255, 256, 257])
def test_any_number_of_points_has_hidden_vectors_and_gradients(tcnn, num_points):
    network: Any = build_network(SMALL, "tcnn")
    whole = torch.rand(300, 3)
    positions = whole[:num_points].clone().requires_grad_()
    hidden = network(positions)
    assert hidden.shape == (num_points, 32)
    assert torch.equal(hidden, network(whole)[:num_points])
    hidden.sum().backward()
    assert positions.grad is not None
    assert positions.grad.shape == (num_points, 3)
    for parameter in network.parameters():
        assert bool(parameter.grad.any()) is (num_points > 0)
        assert parameter.grad.isfinite().all()


def test_the_stand_in_refuses_what_tiny_cuda_nn_refuses(tcnn):
    network: Any = build_network(SMALL, "tcnn")
    with pytest.raises(RuntimeError, match="cutlass"):
        network.module(torch.rand(0, 6))
    for change, match in (
        ({"features_per_level": 3}, "must be 1, 2, 4, or 8"),
        ({"num_layers": 1}, "at least 1 hidden layer"),
        ({"hidden_dim": 20}, "Misaligned"),
    ):
        with pytest.raises(RuntimeError, match=match):
            build_network(replace(SMALL, **change), "tcnn")
    assert network.module(torch.rand(3, 6)).dtype == torch.half
    assert [parameter.dtype for parameter in network.parameters()] == [torch.float32]


def test_of_encodings_that_share_dimensions_the_last_has_the_gradient(tcnn):
    """Positions enter twice therefore. *Source:* grid.h and frequency.h, which assign it."""
    network: Any = build_network(SMALL, "tcnn")
    parts = network.module.encoding_config["nested"]
    shared = {"otype": "Composite", "nested": [{**p, "dims_to_encode_begin": 0} for p in parts]}
    module: Any = importlib.import_module("tinycudann")
    given = torch.rand(5, 3, requires_grad=True)
    gradients = [
        torch.autograd.grad(module.Encoding(3, encoding, dtype=torch.float32)(given).sum(), given)[
            0
        ]
        for encoding in (shared, parts[1])
    ]
    assert torch.equal(*gradients)


@pytest.mark.parametrize("fuses", [True, False])
def test_kernels_are_fused_where_tiny_cuda_nn_can(tcnn, monkeypatch, fuses):
    monkeypatch.setenv("TINYCUDANN_STANDIN_FUSES", "yes" if fuses else "")
    network: Any = build_network(SMALL, "tcnn")
    assert network.module.jit_fusion is fuses
    monkeypatch.delattr("tinycudann.supports_jit_fusion")  # as before version 2
    network = build_network(SMALL, "tcnn")
    assert network.module.jit_fusion is False


def _earlier_trunk(config: NetworkConfig) -> Any:
    """The trunk of f3rm's first version: two modules, and torch's positional encoding."""
    module: Any = importlib.import_module("tinycudann")
    built: Any = build_network(config, "tcnn").module
    whole = built.encoding_config
    grid = module.Encoding(3, whole["nested"][0] if config.use_pe else whole)
    mlp = module.Network(config.encoding_dim, config.hidden_dim, built.network_config, seed=1)
    torch.nn.init.normal_(grid.params)

    def trunk(positions):
        encoded = grid(positions)
        if config.use_pe:
            pe = frequency_encoding(positions, config.pe_num_frequencies)
            encoded = torch.cat((encoded, pe.half()), dim=-1)
        return mlp(encoded).float()

    return {"grid.params": grid.params.detach(), "mlp.params": mlp.params.detach()}, trunk


EARLIER = (
    SMALL,
    replace(SMALL, pe_num_frequencies=4, num_layers=3),
    replace(SMALL, use_pe=False, num_levels=8),  # 16 channels, which are not padded
    replace(SMALL, hidden_dim=48),
)


@pytest.mark.parametrize("config", EARLIER)
def test_a_trunk_of_two_modules_opens_with_the_same_outputs(tcnn, config):
    state, trunk = _earlier_trunk(config)
    network: Any = build_network(config, "tcnn").eval()
    holder = torch.nn.ModuleDict({"trunk": network})
    loaded = holder.load_state_dict({f"trunk.{name}": value for name, value in state.items()})
    assert not loaded.missing_keys
    positions = torch.rand(300, 3)
    with torch.no_grad():
        expected = trunk(positions)
        torch.testing.assert_close(network(positions), expected, atol=2e-3, rtol=2e-3)
    assert expected.std() > 0.1
    counted = sum(value.numel() for value in state.values())
    assert network.module.params.numel() == counted  # every number has its place


def test_a_trunk_of_two_modules_does_not_resume_and_says_so(tcnn):
    state, _ = _earlier_trunk(SMALL)
    with pytest.raises(ImplementationError, match=r"earlier version.*training cannot go on"):
        build_network(SMALL, "tcnn").train().load_state_dict(state)


def test_a_trunk_of_two_modules_that_was_padded_with_ones_is_refused(tcnn):
    config = replace(SMALL, use_pe=False)  # 6 channels
    state, _ = _earlier_trunk(config)
    with pytest.raises(ImplementationError, match=r"earlier version.*cannot be converted"):
        build_network(config, "tcnn").eval().load_state_dict(state)


class _Trained:
    """The trunk with a head and weights of samples, and a twin of it in float32."""

    def __init__(self, seed: int = 0) -> None:
        torch.manual_seed(seed)
        config = NetworkConfig(num_levels=4, log2_hashmap_size=12, max_res=64)
        self.network: Any = build_network(config, "tcnn")
        with torch.no_grad():
            self.parts(self.network.module.params)[1].normal_(std=0.1)
        self.head = torch.nn.Linear(config.hidden_dim, CHANNELS, bias=False)
        self.weights = torch.rand(RAYS, SAMPLES, 1).softmax(dim=1)
        self.positions = torch.rand(RAYS * SAMPLES, 3)
        generator = torch.Generator().manual_seed(7)
        self.target = torch.randn(RAYS, CHANNELS, generator=generator)

    def loss(self, hidden: torch.Tensor) -> torch.Tensor:
        composited = (self.weights * hidden.float().view(RAYS, SAMPLES, -1)).sum(1)
        return 1e-3 * (self.head(composited) - self.target).square().mean()

    def twin(self, positions, params):
        native = self.network.module.native_tcnn_module
        return native.compute(positions.repeat(1, 2), params, lambda x: x)

    def parts(self, params):
        """Splits parameters, or their gradient, into the network's and the grid's."""
        native = self.network.module.native_tcnn_module
        return params.split([native.network.num_params, native.encoding.num_params])


def _difference(found, expected):
    return float((found.double() - expected.double()).norm() / expected.double().norm())


@pytest.mark.parametrize("outer", [1.0, 65536.0])  # without and with a gradient scaler
def test_gradients_of_a_small_loss_are_those_of_the_float32_twin(tcnn, outer):
    trained = _Trained()
    network = trained.network
    mine = [trained.positions.clone().requires_grad_(), network.module.params]
    theirs = [tensor.detach().clone().requires_grad_() for tensor in mine]
    found = torch.autograd.grad(trained.loss(network(mine[0])) * outer, mine)
    expected = torch.autograd.grad(trained.loss(trained.twin(*theirs)) * outer, theirs)
    both = [(of_points, *trained.parts(of_params)) for of_points, of_params in (found, expected)]
    for ours, twins in zip(*both, strict=True):
        assert twins.abs().max() < 1e-5 * outer
        assert _difference(ours, twins) < 0.03  # half precision's own error, and flipped ReLUs


def test_tiny_cuda_nns_own_factor_alone_loses_these_gradients(tcnn):
    trained = _Trained()
    module = trained.network.module
    module.loss_scale = 128.0
    loss = trained.loss(module(trained.positions.repeat(1, 2)))
    (grad,) = torch.autograd.grad(loss, module.params)
    assert not grad.any()


def test_a_trunk_learns_without_a_gradient_scaler(tcnn):
    trained = _Trained()
    directions = torch.randn(3, trained.network.config.hidden_dim)
    with torch.no_grad():
        hidden = (trained.positions @ directions).sin().relu()
        composited = (trained.weights * hidden.view(RAYS, SAMPLES, -1)).sum(1)
        trained.target = trained.head(composited)
    optimizer = torch.optim.Adam(trained.network.parameters(), lr=1e-2, eps=1e-15)
    losses = []
    for _ in range(16):
        loss = trained.loss(trained.network(trained.positions))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.5 * losses[0]


@pytest.mark.parametrize("size", [1e-30, 1e-12, 1.0, 1e12])
def test_gradients_of_any_size_come_through(tcnn, size):
    network: Any = build_network(SMALL, "tcnn")
    positions = torch.rand(64, 3)
    cotangent = torch.rand(64, 32)
    (whole,) = torch.autograd.grad(network(positions), network.module.params, cotangent)
    (scaled,) = torch.autograd.grad(network(positions), network.module.params, cotangent * size)
    torch.testing.assert_close(
        scaled / size, whole, rtol=2e-3, atol=1e-3 * float(whole.abs().max())
    )


def test_many_gradients_of_one_sign_do_not_overflow(tcnn):
    network: Any = build_network(SMALL, "tcnn")
    positions = torch.full((1 << 16, 3), 0.3)  # every one in the same cells
    (grad,) = torch.autograd.grad(network(positions).sum(), network.module.params)
    assert grad.isfinite().all()
    num_layers = network.module.native_tcnn_module.network.num_params
    assert grad[:num_layers].any()
    assert grad[num_layers:].any()


@pytest.mark.parametrize("bad", [torch.inf, torch.nan])
def test_a_gradient_that_is_not_finite_stays_so(tcnn, bad):
    network: Any = build_network(SMALL, "tcnn")
    cotangent = torch.ones(5, 32)
    cotangent[2, 3] = bad
    (grad,) = torch.autograd.grad(network(torch.rand(5, 3)), network.module.params, cotangent)
    assert not grad.isfinite().any()  # a gradient scaler looks for it and leaves the step out


def test_the_factor_of_a_call_is_its_own():
    scales = [GradientScale(), GradientScale()]
    point = torch.ones(2, 3, requires_grad=True)
    outputs = [scale.enlarged(scale.restored(point).half() * 2) for scale in scales]
    (1e-9 * outputs[0].sum() + outputs[1].sum()).backward()
    assert point.grad is not None
    torch.testing.assert_close(point.grad, torch.full((2, 3), 2.0))
    assert scales[0].factor / scales[1].factor >= 2**29


def test_implementation_choice(tcnn, monkeypatch):
    choice = choose_implementation("auto", "cpu")
    assert (choice.implementation, choice.is_fallback) == ("tcnn", False)
    assert resolve_implementation("tcnn", "cuda") == "tcnn"
    monkeypatch.undo()
    monkeypatch.setattr(base, "tcnn_runs_on", lambda device: device == "cuda")
    assert choose_implementation("auto", "cpu").reason == "the device is not CUDA"


BROKEN = {
    "ImportError": "undefined symbol: _ZN3c105ErrorC2",
    "OSError": "Could not find compatible tinycudann extension for compute capability 90.",
    "NameError": "name '_C' is not defined",
    "RuntimeError": "CUDA error: no kernel image is available",
    "AttributeError": "module '_90_C' has no attribute 'preferred_precision'",
}


@pytest.mark.parametrize(("kind", "said"), BROKEN.items())
def test_auto_goes_on_in_torch_where_the_package_is_broken_and_says_why_once(
    tcnn, monkeypatch, caplog, kind, said
):
    monkeypatch.setenv("TINYCUDANN_STANDIN_RAISES", f"{kind}: {said}")
    base._warn_once.cache_clear()
    for _ in range(2):
        assert resolve_implementation("auto", "cpu") == "torch"
    warnings = [record for record in caplog.records if record.levelno == logging.WARNING]
    assert len(warnings) == 1
    assert f"Tiny-cuda-nn cannot be imported ({kind}: {said})" in warnings[0].getMessage()
    choice = choose_implementation("auto", "cpu")
    assert choice.is_fallback
    assert said in choice.reason
    with pytest.raises(
        ImplementationError, match=r"cannot be imported.*implementation torch"
    ) as got:
        resolve_implementation("tcnn", "cpu")
    assert type(got.value.__cause__) is getattr(builtins, kind)
    assert resolve_implementation("torch", "cpu") == "torch"  # which does not ask for it


@pytest.mark.parametrize(
    ("change", "option"),
    [
        ({"num_layers": 1}, "--pipeline.model.feat-num-layers is 1"),
        ({"features_per_level": 3}, "--pipeline.model.feat-features-per-level is 3"),
        ({"features_per_level": 16}, "--pipeline.model.feat-features-per-level is 16"),
        ({"hidden_dim": 20}, "--pipeline.model.feat-hidden-dim is 20"),
    ],
)
def test_sizes_that_tiny_cuda_nn_has_not_run_in_torch_or_are_refused(tcnn, caplog, change, option):
    base._warn_once.cache_clear()
    config = replace(SMALL, **change)
    assert resolve_implementation("auto", "cpu", config) == "torch"
    assert option in caplog.text
    assert build_network(config, "torch")(torch.rand(3, 3)).shape == (3, config.hidden_dim)
    with pytest.raises(ImplementationError, match=f"{option}. Change .*implementation torch"):
        resolve_implementation("tcnn", "cpu", config)


@pytest.mark.parametrize("option", ["num-layers", "num-levels", "features-per-level", "hidden-dim"])
def test_sizes_that_no_implementation_has_are_refused(option):
    config = replace(SMALL, **{option.replace("-", "_"): 0})
    for choice in ("auto", "torch", "tcnn"):
        match = f"--pipeline.model.feat-{option} must be at least 1, got 0"
        with pytest.raises(ImplementationError, match=match):
            resolve_implementation(choice, "cpu", config)


@pytest.mark.gpu
@pytest.mark.skipif(not tcnn_installed(), reason="tiny-cuda-nn is not installed")
def test_tiny_cuda_nn_gives_non_negative_hidden_vectors_with_gradients():
    network: Any = build_network(SMALL, "tcnn").cuda()
    hidden = network(torch.rand(256, 3, device="cuda"))
    assert hidden.shape == (256, 32)
    assert hidden.dtype == torch.float32
    assert hidden.min() >= 0
    (hidden.sum() * 1e-12).backward()
    assert all(parameter.grad.any() for parameter in network.parameters())
    assert network(torch.rand(0, 3, device="cuda")).shape == (0, 32)


@pytest.mark.gpu
@pytest.mark.skipif(not tcnn_installed(), reason="tiny-cuda-nn is not installed")
def test_tiny_cuda_nns_gradients_do_not_depend_on_their_size():
    network: Any = build_network(SMALL, "tcnn").cuda()
    positions = torch.rand(1000, 3, device="cuda", requires_grad=True)
    wanted = [positions, *network.parameters()]
    cotangent = torch.rand(1000, 32, device="cuda")
    whole = torch.autograd.grad(network(positions), wanted, cotangent)
    for size in (1e-12, 65536.0):
        scaled = torch.autograd.grad(network(positions), wanted, cotangent * size)
        for found, expected in zip(scaled, whole, strict=True):
            assert expected.any()
            assert _difference(found / size, expected) < 0.01
