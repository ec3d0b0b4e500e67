"""Carries gradients through a network that computes them in half precision.

Half precision ends at 6e-8 and 65,504. The gradient of a mean over 4,096 rays and 768 channels is
near 1e-10 per sample: cast to half it is zero, and a weight's gradient sums as many samples.
Therefore the gradient is multiplied by a power of two before the cast, and the result is divided by
it in float32. The factor follows from each call's own gradient, so that a gradient scaler on the
loss changes nothing; a gradient that is not finite stays so, which scalers look for.
"""

from typing import Any

import torch
from torch import Tensor

_LARGEST_SUM = 256.0
"""A channel's sum of |gradient| over all points, after scaling. It bounds the sums of the weights'
gradients, and leaves a factor of 256 to half's largest number for activations and weights above
1."""
_SMALLEST_SUM = 2.0**-100
"""A smaller sum counts as zero; without it the factor would be infinite."""


class GradientScale:
    """The factor of one call of a network, known once its gradient arrives.

    Pass the inputs that need a gradient (parameters, positions) through :meth:`restored` and the
    network's output through :meth:`enlarged`.
    """

    factor: Tensor

    def enlarged(self, output: Tensor) -> Tensor:
        """Returns the output in float32; its gradient is multiplied and then cast."""
        scaled: Any = _Enlarged.apply(output, self)
        return scaled

    def restored(self, tensor: Tensor) -> Tensor:
        """Returns the tensor as it is; its gradient is divided."""
        scaled: Any = _Restored.apply(tensor, self)
        return scaled

    def fit(self, gradient: Tensor) -> None:
        """Sets the factor from the gradient (points, channels) of the output, without a sync."""
        total = torch.linalg.vector_norm(gradient, 1, dim=0).amax()
        self.factor = (_LARGEST_SUM / total.clamp_min(_SMALLEST_SUM)).log2().floor().exp2()


class _Enlarged(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, output: Tensor, scale: GradientScale) -> Tensor:
        ctx.scale, ctx.dtype = scale, output.dtype
        return output.float()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        (gradient,) = gradients
        ctx.scale.fit(gradient)
        return (gradient * ctx.scale.factor).to(ctx.dtype), None


class _Restored(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, tensor: Tensor, scale: GradientScale) -> Tensor:
        ctx.scale = scale
        return tensor.view_as(tensor)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        (gradient,) = gradients
        return gradient / ctx.scale.factor, None
