import pytest
import torch
from hypothesis import given, settings, strategies as st

from f3rm.renderer import FeatureRenderer, render_per_sample


def _rays(seed, channels, dtype):
    generator = torch.Generator().manual_seed(seed)
    hidden = torch.rand(6, 5, 16, generator=generator, dtype=dtype)
    weights = torch.rand(6, 5, 1, generator=generator, dtype=dtype) / 5
    head = torch.randn(channels, 16, generator=generator, dtype=dtype) / 4
    return [tensor.requires_grad_() for tensor in (hidden, weights, head)]


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 2**16), channels=st.sampled_from([1, 3, 384]))
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-10), (torch.float32, 1e-5)])
def test_composite_then_project_equals_project_then_composite(seed, channels, dtype, tolerance):
    inputs = _rays(seed, channels, dtype)
    hidden, weights, head = inputs
    fast = FeatureRenderer.forward(hidden, weights) @ head.T
    slow = render_per_sample(hidden, weights, head)
    torch.testing.assert_close(fast, slow, atol=tolerance, rtol=tolerance)
    target = torch.ones_like(slow)
    fast_grads = torch.autograd.grad((fast - target).square().mean(), inputs)
    slow_grads = torch.autograd.grad((slow - target).square().mean(), inputs)
    for ours, theirs in zip(fast_grads, slow_grads, strict=True):
        torch.testing.assert_close(ours, theirs, atol=tolerance, rtol=tolerance)


def test_compositing_runs_in_the_precision_of_the_weights_under_autocast():
    hidden, weights, _ = _rays(0, 3, torch.float32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        composited = FeatureRenderer.forward(hidden.bfloat16(), weights)
    expected = (hidden.bfloat16().float() * weights).sum(-2)
    torch.testing.assert_close(composited, expected)
