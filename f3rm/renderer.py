"""Volume rendering of per-sample vectors along a ray.

A head without bias is linear, so it commutes with compositing: ``sum_i w_i (W h_i) = W (sum_i w_i
h_i)``. :class:`FeatureRenderer` therefore composites the trunk's hidden vectors and the head
projects once per ray. :func:`render_per_sample` projects every sample, as the original f3rm does;
it is the reference of the parity test.
"""

import torch
from jaxtyping import Float
from torch import Tensor, nn


class FeatureRenderer(nn.Module):
    """Composites vectors with volume-rendering weights."""

    @classmethod
    def forward(
        cls,
        features: Float[Tensor, "*batch samples channels"],
        weights: Float[Tensor, "*batch samples 1"],
    ) -> Float[Tensor, "*batch channels"]:
        """Sums ``weights * features`` over the samples of each ray.

        Runs in the weights' precision, outside of autocast: half-precision sums over a ray would
        lose the small weights.

        Args:
            features: One vector per sample, hidden or feature channels.
            weights: Volume-rendering weights; they sum to the accumulation, at most 1.

        Returns:
            One vector per ray, not divided by the accumulation.
        """
        with torch.autocast(device_type=features.device.type, enabled=False):
            # One product per ray; matmul would reach the same through seven views.
            columns = weights.transpose(-1, -2).flatten(0, -3)
            composited = torch.bmm(columns, features.to(weights.dtype).flatten(0, -3))
        return composited.view(*weights.shape[:-2], features.shape[-1])


def render_per_sample(
    hidden: Float[Tensor, "*batch samples hidden"],
    weights: Float[Tensor, "*batch samples 1"],
    head_weight: Float[Tensor, "channels hidden"],
) -> Float[Tensor, "*batch channels"]:
    """Projects every sample to all channels, then composites: the slow reference.

    *Source:* f3rm ``feature_field.py`` and ``renderer.py``. Equals
    ``FeatureRenderer.forward(hidden, weights) @ head_weight.T``.
    """
    features = hidden @ head_weight.T  # (*batch, samples, channels)
    return (weights * features).sum(dim=-2)
