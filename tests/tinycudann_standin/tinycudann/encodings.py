"""The stand-in's encodings, as tiny-cuda-nn's: widths, paddings, parameters and gradients."""

import math
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional

_PRIMES = (1, 2654435761, 805459861)

Rounding = Callable[[Tensor], Tensor]


class Identity:
    """Passes its input on, padded with ones."""

    num_params = 0

    def __init__(self, n_input_dims: int) -> None:
        self.width, self.pad_value = n_input_dims, 1.0

    def initial(self, generator: torch.Generator) -> Tensor:
        return torch.zeros(0)

    def compute(self, inputs: Tensor, params: Tensor, rounded: Rounding) -> Tensor:
        return rounded(inputs)


class Spherical:
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


class Frequency:
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


class HashGrid:
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


class Composite:
    """Encodings of some dimensions each, side by side.

    Each writes its dimensions' gradient over what an earlier one wrote there, in tiny-cuda-nn too.
    """

    def __init__(self, n_input_dims: int, nested: list[dict]) -> None:
        self.parts: list[Encoding] = []
        self.dims: list[range] = []
        begin = 0
        for config in nested:
            begin = config.get("dims_to_encode_begin", begin)
            self.dims.append(range(begin, begin + config["n_dims_to_encode"]))
            self.parts.append(create_encoding(config["n_dims_to_encode"], config))
            begin = self.dims[-1].stop
        if max(dims.stop for dims in self.dims) > n_input_dims or any(
            isinstance(part, HashGrid) for part in self.parts[1:]
        ):
            msg = "stand-in: Composite of dimensions that are there, a HashGrid only as its first"
            raise RuntimeError(msg)
        self.num_params = sum(part.num_params for part in self.parts)
        self.width, self.pad_value = sum(p.width for p in self.parts), self.parts[-1].pad_value

    def initial(self, generator: torch.Generator) -> Tensor:
        return torch.cat([part.initial(generator) for part in self.parts])

    def compute(self, inputs: Tensor, params: Tensor, rounded: Rounding) -> Tensor:
        sizes, encoded = [part.num_params for part in self.parts], []
        for number, of_part in enumerate(params.split(sizes)):
            later = {dim for dims in self.dims[number + 1 :] for dim in dims}
            columns = [
                inputs[:, dim].detach() if dim in later else inputs[:, dim]
                for dim in self.dims[number]
            ]
            encoded.append(
                self.parts[number].compute(torch.stack(columns, dim=-1), of_part, rounded)
            )
        return torch.cat(encoded, dim=-1)


Encoding = Identity | Spherical | Frequency | HashGrid | Composite


def create_encoding(n_input_dims: int, config: dict) -> Encoding:
    kind = config["otype"]
    if kind == "HashGrid":
        return HashGrid(config)
    if kind == "SphericalHarmonics":
        return Spherical(config["degree"])
    if kind == "Frequency":
        return Frequency(n_input_dims, config["n_frequencies"])
    if kind == "Composite":
        return Composite(n_input_dims, config["nested"])
    if kind == "Identity":
        return Identity(n_input_dims)
    msg = f"stand-in: no encoding {kind!r}"
    raise RuntimeError(msg)
