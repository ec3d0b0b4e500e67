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

_REFUSAL = os.environ.get("TINYCUDANN_STANDIN_RAISES", "")
if _REFUSAL:
    _kind, _, _text = _REFUSAL.partition(": ")
    raise getattr(builtins, _kind)(_text)

_GRANULARITY = 256
_ALIGNMENT = 16
_FUSED_WIDTHS = (16, 32, 64, 128)
_PRIMES = (1, 2654435761, 805459861)
_ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "none": lambda x: x,
    "relu": torch.relu,
    "sigmoid": torch.sigmoid,
    "softplus": lambda x: functional.softplus(x, beta=10.0),
    "tanh": torch.tanh,
}

Rounding = Callable[[Tensor], Tensor]


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


def free_temporary_memory() -> None:
    """Collects garbage; the real one also frees its arenas."""
    gc.collect()


def _padded(width: int, multiple: int) -> int:
    return -(-width // multiple) * multiple


class _Identity:
    """Passes its input on, padded with ones."""

    num_params = 0

    def __init__(self, n_input_dims: int) -> None:
        self.width, self.pad_value = n_input_dims, 1.0

    def initial(self, generator: torch.Generator) -> Tensor:
        return torch.zeros(0)

    def compute(self, inputs: Tensor, params: Tensor, rounded: Rounding) -> Tensor:
        return rounded(inputs)


class _Spherical:
    """Spherical harmonics of a direction in [0, 1]^3, up to degree 4."""

    num_params = 0

    def __init__(self, degree: int) -> None:
        if not 1 <= degree <= 4:
            msg = f"stand-in: SphericalHarmonics of degree 1 to 4, got {degree}"
            raise RuntimeError(msg)
        self.width, self.pad_value = degree**2, 1.0

    def initial(self, generator: torch.Generator) -> Tensor:
        return torch.zeros(0)

    def compute(self, inputs: Tensor, params: Tensor, rounded: Rounding) -> Tensor:
        x, y, z = (inputs * 2 - 1).unbind(-1)
        pi = math.pi
        second, third = math.sqrt(15 / pi) / 2, math.sqrt(35 / (2 * pi)) / 4
        columns = [
            torch.full_like(x, math.sqrt(1 / pi) / 2),
            *(math.sqrt(3 / (4 * pi)) * axis for axis in (-y, z, -x)),
            second * x * y,
            -second * y * z,
            math.sqrt(5 / pi) / 4 * (3 * z * z - 1),
            -second * x * z,
            second / 2 * (x * x - y * y),
            third * y * (y * y - 3 * x * x),
            math.sqrt(105 / pi) / 2 * x * y * z,
            math.sqrt(21 / (2 * pi)) / 4 * y * (1 - 5 * z * z),
            math.sqrt(7 / pi) / 4 * z * (5 * z * z - 3),
            math.sqrt(21 / (2 * pi)) / 4 * x * (1 - 5 * z * z),
            math.sqrt(105 / pi) / 4 * z * (x * x - y * y),
            third * x * (3 * y * y - x * x),
        ]
        return rounded(torch.stack(columns[: self.width], dim=-1))


class _Frequency:
    """Sines and cosines of ``2^k pi x``, per input and octave."""

    num_params = 0

    def __init__(self, n_input_dims: int, octaves: int) -> None:
        self.octaves, self.pad_value = octaves, 1.0
        self.width = n_input_dims * octaves * 2

    def initial(self, generator: torch.Generator) -> Tensor:
        return torch.zeros(0)

    def compute(self, inputs: Tensor, params: Tensor, rounded: Rounding) -> Tensor:
        angles = inputs[..., None] * math.pi * 2.0 ** torch.arange(self.octaves).to(inputs)
        return rounded(torch.stack((angles.sin(), angles.cos()), dim=-1).flatten(1))


class _HashGrid:
    """Instant-NGP's hash grid (section 3) with tiny-cuda-nn's cells and table sizes."""

    def __init__(self, config: dict) -> None:
        self.features = config.get("n_features_per_level", 2)
        if self.features not in (1, 2, 4, 8):
            msg = "GridEncoding: n_features_per_level must be 1, 2, 4, or 8."
            raise RuntimeError(msg)
        levels = torch.arange(config.get("n_levels", 16), dtype=torch.float64)
        growth = float(config.get("per_level_scale", 2.0))
        self.scales = growth**levels * config.get("base_resolution", 16) - 1
        resolutions = self.scales.ceil().long() + 1
        table = 1 << config.get("log2_hashmap_size", 19)
        cells = -(-(resolutions**3) // 8) * 8
        self.sizes = cells.clamp(max=table)
        self.offsets = self.sizes.cumsum(0) - self.sizes
        self.is_dense = resolutions**3 <= self.sizes
        self.strides = torch.stack((torch.ones_like(resolutions), resolutions, resolutions**2), -1)
        self.num_params = int(self.sizes.sum()) * self.features
        self.width, self.pad_value = len(levels) * self.features, 0.0

    def initial(self, generator: torch.Generator) -> Tensor:
        return (torch.rand(self.num_params, generator=generator) * 2 - 1) * 1e-4

    def compute(self, inputs: Tensor, params: Tensor, rounded: Rounding) -> Tensor:
        device = inputs.device
        places = inputs[:, None] * self.scales.to(inputs)[:, None] + 0.5  # (points, levels, 3)
        lower = places.detach().floor()
        fractions = places - lower
        corners = torch.cartesian_prod(*[torch.arange(2, device=device)] * 3)  # (8, 3)
        keys = (lower.long()[:, :, None] + corners) & 0xFFFFFFFF  # (points, levels, 8, 3)
        summed = (keys * self.strides.to(device)[:, None]).sum(-1)
        primes = torch.tensor(_PRIMES, device=device)
        x, y, z = (keys * primes & 0xFFFFFFFF).unbind(-1)
        mixed = torch.where(self.is_dense.to(device)[:, None], summed, x ^ y ^ z)
        rows = mixed % self.sizes.to(device)[:, None] + self.offsets.to(device)[:, None]
        sides = torch.where(corners.bool(), fractions[:, :, None], 1 - fractions[:, :, None])
        features = functional.embedding_bag(
            rows.reshape(-1, 8),
            params.view(-1, self.features),
            mode="sum",
            per_sample_weights=sides.prod(-1).reshape(-1, 8),
        )
        return rounded(features.view(len(inputs), self.width))


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
        encoding: "_Encoding",
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


_Encoding = _Identity | _Spherical | _Frequency | _HashGrid


def _create_encoding(n_input_dims: int, config: dict) -> _Encoding:
    kind = config["otype"]
    if kind == "HashGrid":
        return _HashGrid(config)
    if kind == "SphericalHarmonics":
        return _Spherical(config["degree"])
    if kind == "Frequency":
        return _Frequency(n_input_dims, config["n_frequencies"])
    if kind == "Identity":
        return _Identity(n_input_dims)
    msg = f"stand-in: no encoding {kind!r}"
    raise RuntimeError(msg)


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
        encoding = _create_encoding(self.n_input_dims, self.encoding_config)
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
        encoding = _create_encoding(self.n_input_dims, self.encoding_config)
        network = _Perceptron(encoding.width, self.n_output_dims, self.network_config)
        return Native(encoding, network, torch.half)


class Network(NetworkWithInputEncoding):
    """A network without an encoding."""

    def __init__(
        self, n_input_dims: int, n_output_dims: int, network_config: dict, seed: int = 1337
    ) -> None:
        identity = {"otype": "Identity"}
        super().__init__(n_input_dims, n_output_dims, identity, network_config, seed)
