"""A stand-in for tiny-cuda-nn's PyTorch package, computed by torch on any device.

``import tinycudann`` finds it with its folder on ``PYTHONPATH``; ``tests.tcnn_fixtures`` does that.
It has the names, the parameter layout and the manners of the real package:

- a module's parameters are one flat float32 vector, cast to half at every call;
- input is float32, whatever it was given; output is half, padded to 16 channels and sliced;
- the batch is padded to 256 rows; an empty one is refused, as the real matrix products do;
- gradients are half from layer to layer: they are multiplied by ``loss_scale``, 128, on the way in
  and divided on the way out, so that small ones vanish and sums above 65,504 are infinite;
- FullyFusedMLP has 16, 32, 64 or 128 neurons and at least one hidden layer; CutlassMLP's widths
  are multiples of 8; a hash grid has 1, 2, 4 or 8 features per level;
- inputs of a network are padded to 16 channels with ones, which act as a bias;
- hash grids are Instant-NGP's with a half-cell offset, dense where a level fits its table;
- of encodings that read the same dimension, the last one's gradient is the dimension's;
- the import raises what ``TINYCUDANN_STANDIN_RAISES`` says, e.g. ``OSError: no extension``.

Sums are made in float32 and then rounded, where the real package adds in half here and there.
Second derivatives are not there.
"""

import builtins
import gc
import math
import os
from collections.abc import Callable
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional

from tinycudann.encodings import (
    Encoding as _Encoding,
    Rounding,
    create_encoding,
)

_REFUSAL = os.environ.get("TINYCUDANN_STANDIN_RAISES", "")
if _REFUSAL:
    _kind, _, _text = _REFUSAL.partition(": ")
    raise getattr(builtins, _kind)(_text)

_GRANULARITY = 256
_ALIGNMENT = 16
_FUSED_WIDTHS = (16, 32, 64, 128)
_ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "none": lambda x: x,
    "relu": torch.relu,
    "sigmoid": torch.sigmoid,
    "softplus": lambda x: functional.softplus(x, beta=10.0),
    "tanh": torch.tanh,
}


class _Half(torch.autograd.Function):
    """Rounds values to half on the way forward and gradients on the way back."""

    @staticmethod
    def forward(ctx, values):
        return values.half().float()

    @staticmethod
    def backward(ctx, *gradients):
        return gradients[0].half().float()


def to_half(values: Tensor) -> Tensor:
    """Rounds values and gradients to half precision, kept as float32."""
    return _Half.apply(values)


def exact(values: Tensor) -> Tensor:
    """Rounds nothing: the float32 twin of :func:`to_half`."""
    return values


def supports_jit_fusion() -> bool:
    """Whether kernels can be fused at run time: as the tests say; nothing is fused here."""
    return bool(os.environ.get("TINYCUDANN_STANDIN_FUSES"))


def free_temporary_memory() -> None:
    """Collects garbage; the real one also frees its arenas."""
    gc.collect()


def _padded(width: int, multiple: int) -> int:
    return -(-width // multiple) * multiple


class _Perceptron:
    """A bias-free multi-layer perceptron, its matrices one after the other, row by row."""

    def __init__(self, n_input_dims: int, n_output_dims: int, config: dict) -> None:
        kind, neurons = config.get("otype", "MLP"), config.get("n_neurons", 128)
        hidden = config.get("n_hidden_layers", 5)
        if kind == "FullyFusedMLP" and neurons not in _FUSED_WIDTHS:
            msg = f"FullyFusedMLP only supports 16, 32, 64, and 128 neurons, but got: {neurons}"
            raise RuntimeError(msg)
        if hidden < 1:
            msg = f"{kind} requires at least 1 hidden layer (3 layers in total)."
            raise RuntimeError(msg)
        if neurons % 8:
            msg = f"{kind}: cutlass: Error Misaligned Operand, {neurons} neurons"
            raise RuntimeError(msg)
        widths = [
            _padded(n_input_dims, _ALIGNMENT),
            *[neurons] * hidden,
            _padded(n_output_dims, _ALIGNMENT),
        ]
        self.shapes = [(wide, narrow) for narrow, wide in pairwise(widths)]
        self.num_params = sum(rows * columns for rows, columns in self.shapes)
        self.inner = _ACTIVATIONS[config.get("activation", "ReLU").lower()]
        self.outer = _ACTIVATIONS[config.get("output_activation", "None").lower()]

    def initial(self, generator: torch.Generator) -> Tensor:
        parts = [
            (torch.rand(rows * columns, generator=generator) * 2 - 1)
            * math.sqrt(6 / (rows + columns))
            for rows, columns in self.shapes
        ]
        return torch.cat(parts)

    def compute(self, inputs: Tensor, params: Tensor, rounded: Rounding) -> Tensor:
        sizes = [rows * columns for rows, columns in self.shapes]
        values = inputs
        for number, (part, shape) in enumerate(zip(params.split(sizes), self.shapes, strict=True)):
            activation = self.outer if number == len(sizes) - 1 else self.inner
            values = rounded(activation(rounded(values @ part.view(shape).T)))
        return values


class Native:
    """What the compiled half of a module is: an encoding, and perhaps a network behind it."""

    def __init__(
        self,
        encoding: _Encoding,
        network: _Perceptron | None,
        precision: torch.dtype,
    ) -> None:
        self.encoding, self.network, self.precision = encoding, network, precision

    def initial_params(self, seed: int) -> Tensor:
        generator = torch.Generator().manual_seed(seed)
        network = [] if self.network is None else [self.network.initial(generator)]
        return torch.cat([*network, self.encoding.initial(generator)])

    def n_output_dims(self) -> int:
        return self.encoding.width

    def compute(self, inputs: Tensor, params: Tensor, rounded: Rounding) -> Tensor:
        """Computes the padded output in float32, rounding in between as it is told."""
        if self.network is None:
            return self.encoding.compute(inputs, params, rounded)
        of_network, of_encoding = params.split([self.network.num_params, self.encoding.num_params])
        encoded = self.encoding.compute(inputs, of_encoding, rounded)
        missing = _padded(self.encoding.width, _ALIGNMENT) - self.encoding.width
        encoded = functional.pad(encoded, (0, missing), value=self.encoding.pad_value)
        return self.network.compute(encoded, of_network, rounded)

    def evaluate(self, inputs: Tensor, params: Tensor) -> Tensor:
        rounded = to_half if self.precision == torch.half else exact
        return self.compute(inputs, params.float(), rounded)


class _ModuleFunction(torch.autograd.Function):
    """One call of a module: half parameters in, half output, gradients times the loss scale."""

    @staticmethod
    def forward(ctx, native, inputs, params, loss_scale):
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(inputs, params)
        ctx.native, ctx.loss_scale = native, loss_scale
        with torch.autocast(inputs.device.type, enabled=False):
            return native.evaluate(inputs, params).to(params.dtype)

    @staticmethod
    def backward(ctx, *gradients):
        if gradients[0] is None:
            return None, None, None, None
        inputs, params = (saved.detach() for saved in ctx.saved_tensors)
        needs = [
            need and t.numel() > 0
            for need, t in zip(ctx.needs_input_grad[1:3], (inputs, params), strict=True)
        ]
        wanted = [
            t.requires_grad_() for t, need in zip((inputs, params), needs, strict=True) if need
        ]
        if not wanted:
            return None, None, None, None
        scaled = gradients[0] * ctx.loss_scale  # in half
        with torch.enable_grad(), torch.autocast(inputs.device.type, enabled=False):
            output = ctx.native.evaluate(inputs, params)
            found = iter(torch.autograd.grad(output, wanted, scaled.float()))
        of_inputs, of_params = (next(found) / ctx.loss_scale if need else None for need in needs)
        return None, of_inputs, of_params, None


class Module(nn.Module):
    """A module of the package; see the top of this file."""

    n_output_dims: int

    def __init__(self, seed: int = 1337) -> None:
        super().__init__()
        self.native_tcnn_module = self._native_tcnn_module()
        self.dtype, self.seed = self.native_tcnn_module.precision, seed
        self.params = nn.Parameter(self.native_tcnn_module.initial_params(seed))
        self.loss_scale = 128.0 if self.dtype == torch.half else 1.0
        self.jit_fusion = False

    def _native_tcnn_module(self) -> Native:
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor:
        rows = x.shape[0]
        if rows == 0:
            msg = "cutlass_matmul.h:363 status failed with error Error Internal"
            raise RuntimeError(msg)
        padded = functional.pad(x, [0, 0, 0, _padded(rows, _GRANULARITY) - rows])
        output: Tensor = _ModuleFunction.apply(
            self.native_tcnn_module,
            padded.to(torch.float).contiguous(),
            self.params.to(self.dtype).contiguous(),
            self.loss_scale,
        )
        return output[:rows, : self.n_output_dims]


class Encoding(Module):
    """An input encoding: ``[:, n_input_dims]`` to ``[:, n_output_dims]``."""

    def __init__(
        self,
        n_input_dims: int,
        encoding_config: dict,
        seed: int = 1337,
        dtype: torch.dtype | None = None,
    ) -> None:
        self.n_input_dims, self.encoding_config = n_input_dims, encoding_config
        self.precision = torch.half if dtype is None else dtype
        super().__init__(seed)
        self.n_output_dims = self.native_tcnn_module.n_output_dims()

    def _native_tcnn_module(self) -> Native:
        encoding = create_encoding(self.n_input_dims, self.encoding_config)
        return Native(encoding, None, self.precision)


class NetworkWithInputEncoding(Module):
    """An encoding with a network behind it."""

    def __init__(
        self,
        n_input_dims: int,
        n_output_dims: int,
        encoding_config: dict,
        network_config: dict,
        seed: int = 1337,
    ) -> None:
        self.n_input_dims, self.n_output_dims = n_input_dims, n_output_dims
        self.encoding_config, self.network_config = encoding_config, network_config
        super().__init__(seed)

    def _native_tcnn_module(self) -> Native:
        encoding = create_encoding(self.n_input_dims, self.encoding_config)
        network = _Perceptron(encoding.width, self.n_output_dims, self.network_config)
        return Native(encoding, network, torch.half)


class Network(NetworkWithInputEncoding):
    """A network without an encoding."""

    def __init__(
        self, n_input_dims: int, n_output_dims: int, network_config: dict, seed: int = 1337
    ) -> None:
        identity = {"otype": "Identity"}
        super().__init__(n_input_dims, n_output_dims, identity, network_config, seed)
