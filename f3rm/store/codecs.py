"""Codecs: features to the numbers on disk and back. Pure maths on tensors, no files.

``fp16`` and ``fp32`` store the channels themselves; ``int8`` stores each channel on a uniform scale
of 255 steps; ``pca<d>`` stores fp16 coefficients in an orthonormal basis of ``d`` vectors. Every
decoding is affine, so interpolating codes and then decoding equals the reverse order.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float, Float32, Shaped
from torch import Tensor
from torch.nn import functional

from f3rm.errors import CacheError, FeatureTypeError

CodecName = Literal["none", "int8", "pca"]
CodedDtype = Literal["float16", "float32", "int8"]

_INT8_LEVELS = 127


@dataclass(frozen=True)
class CodecSpec:
    """The choice of a codec.

    Attributes:
        name: ``none`` (the channels themselves), ``int8`` or ``pca``.
        dtype: Type on disk.
        components: Coefficients per feature vector; None unless ``pca``.
    """

    name: CodecName
    dtype: CodedDtype
    components: int | None = None

    @property
    def text(self) -> str:
        """The text that :func:`parse_codec` reads."""
        if self.name == "pca":
            return f"pca{self.components}"
        return {"float16": "fp16", "float32": "fp32", "int8": "int8"}[self.dtype]


@dataclass(frozen=True)
class CosineError:
    """One minus the cosine between original and decoded feature vectors.

    Attributes:
        num: Number of vectors compared.
        mean: Mean over them.
        p99: 99th percentile.
        worst: The largest.
    """

    num: int
    mean: float
    p99: float
    worst: float


def parse_codec(text: str) -> CodecSpec:
    """Reads ``fp16``, ``fp32``, ``int8`` or ``pca<d>``, e.g. ``pca128``.

    Raises:
        FeatureTypeError: If it is none of these.
    """
    plain: dict[str, CodecSpec] = {
        "fp16": CodecSpec("none", "float16"),
        "fp32": CodecSpec("none", "float32"),
        "int8": CodecSpec("int8", "int8"),
    }
    wanted = text.strip().lower()
    if wanted in plain:
        return plain[wanted]
    match = re.fullmatch(r"pca([1-9]\d{0,4})", wanted)
    if match is None:
        raise FeatureTypeError(
            "--codec must be fp16, fp32, int8 or pca with a number of components, e.g. pca128, got "
            f"{text!r}."
        )
    return CodecSpec("pca", "float16", int(match[1]))


@dataclass(frozen=True)
class Codec:
    """A codec with its fitted arrays.

    Attributes:
        spec: Which codec.
        channels: Feature channels C.
        arrays: In fp32: ``scale`` and ``offset`` (C,), or ``mean`` (C,) and ``basis``
            (d, C) with orthonormal rows.
    """

    spec: CodecSpec
    channels: int
    arrays: Mapping[str, Float32[Tensor, "..."]] = field(default_factory=dict)

    @property
    def stored_channels(self) -> int:
        """Stored numbers per feature vector."""
        return self.spec.components or self.channels

    def to(self, device: torch.device | str) -> "Codec":
        """Returns the codec with its arrays on a device."""
        arrays = {name: array.to(device) for name, array in self.arrays.items()}
        return replace(self, arrays=arrays)

    def encode(
        self, rows: Float[Tensor, "*rows channels"], dtype: CodedDtype | None = None
    ) -> Shaped[Tensor, "*rows stored"]:
        """Encodes features, on the device of the codec's arrays.

        Args:
            rows: Features.
            dtype: Stored type instead of the codec's own: ``float32`` where the result is infinite
                in float16. int8 has no other; values outside the fitted range are clipped.
        """
        rows = rows.float()
        if self.spec.name == "int8":
            levels = ((rows - self.arrays["offset"]) / self.arrays["scale"]).round()
            return levels.clamp(-_INT8_LEVELS, _INT8_LEVELS).to(torch.int8)
        if self.spec.name == "pca":
            rows = (rows - self.arrays["mean"]) @ self.arrays["basis"].T  # (..., d)
        return rows.to(getattr(torch, dtype or self.spec.dtype))

    def decode(self, stored: Shaped[Tensor, "*rows stored"]) -> Float32[Tensor, "*rows channels"]:
        """Decodes stored numbers, or a blend of them, which affine decoding keeps exact."""
        codes = stored.float()
        if self.spec.name == "int8":
            return torch.addcmul(self.arrays["offset"], codes, self.arrays["scale"])
        if self.spec.name == "pca":
            return codes @ self.arrays["basis"] + self.arrays["mean"]
        return codes


def fit_codec(spec: CodecSpec, rows: Float[Tensor, "rows channels"]) -> Codec:
    """Fits a codec to a sample of features, deterministically.

    Args:
        spec: Which codec.
        rows: Finite features, a few thousand of them from many images.

    Raises:
        CacheError: If there are fewer than two rows, or fewer channels than components.
    """
    num, channels = rows.shape
    if spec.name == "none":
        return Codec(spec, channels)
    if num < 2 or (spec.components or 0) > channels:
        raise CacheError(
            f"--codec {spec.text} needs at least 2 features of at least {spec.components or 1} "
            f"channels, got {num} of {channels}. Choose a smaller pca, or fp16."
        )
    # fp64 on the CPU, so that the arrays, and with them the chunks, do not depend on the device.
    exact = rows.detach().cpu().double()
    state = _fit_int8(exact) if spec.name == "int8" else _fit_pca(exact, spec.components or 1)
    return Codec(spec, channels, {name: array.float() for name, array in state.items()})


def load_codec(name: CodecName, arrays: Mapping[str, np.ndarray], channels: int) -> Codec:
    """Rebuilds a codec from its name and arrays.

    Args:
        name: ``none``, ``int8`` or ``pca``.
        arrays: Its arrays by name, fp32.
        channels: Feature channels C.

    Raises:
        CacheError: If arrays are missing, or have the wrong shape.
    """
    shapes = {key: array.shape for key, array in arrays.items()}
    components = shapes.get("basis", (0,))[0]
    expected: dict[str, tuple[int, ...]] = {
        "none": {},
        "int8": {"scale": (channels,), "offset": (channels,)},
        "pca": {"mean": (channels,), "basis": (components, channels)},
    }[name]
    if shapes != expected or (name == "pca" and not 1 <= components <= channels):
        raise CacheError(
            f"The codec {name!r} needs arrays of the shapes {expected}, got {shapes}. "
            "Extract again."
        )
    state = {key: torch.from_numpy(array.astype(np.float32)) for key, array in arrays.items()}
    if name == "pca":
        return Codec(CodecSpec("pca", "float16", components), channels, state)
    return Codec(CodecSpec(name, "int8" if name == "int8" else "float16"), channels, state)


def cosine_error(
    original: Float[Tensor, "rows channels"], decoded: Float[Tensor, "rows channels"]
) -> CosineError:
    """Compares features with their decoded selves; equal vectors of zeros have no error.

    Args:
        original: Features before encoding, at least one row.
        decoded: The same after decoding.
    """
    first, second = original.detach().cpu().double(), decoded.detach().cpu().double()
    errors = 1 - functional.cosine_similarity(first, second, dim=-1, eps=1e-30)
    # Two equal zero vectors have cosine 0, and rounding can put a cosine slightly above 1.
    errors = torch.where((first == second).all(dim=-1), 0.0, errors).clamp_min(0)
    p99 = float(np.quantile(errors.numpy(), 0.99))
    return CosineError(len(errors), float(errors.mean()), p99, float(errors.max()))


def combine_errors(errors: Sequence[CosineError]) -> CosineError:
    """Combines errors: the mean over all vectors, the largest p99 and worst of any part.

    Args:
        errors: At least one.
    """
    num = sum(error.num for error in errors)
    mean = sum(error.mean * error.num for error in errors) / max(num, 1)
    p99, worst = max(error.p99 for error in errors), max(error.worst for error in errors)
    return CosineError(num, mean, p99, worst)


def _fit_int8(rows: Float[Tensor, "rows channels"]) -> dict[str, Tensor]:
    """Spreads the steps over each channel's range; a constant channel gets a step of one."""
    low, high = rows.amin(dim=0), rows.amax(dim=0)
    span = high - low
    scale = torch.where(span > 0, span / (2 * _INT8_LEVELS), 1.0)
    return {"scale": scale, "offset": (low + high) / 2}


def _fit_pca(rows: Float[Tensor, "rows channels"], components: int) -> dict[str, Tensor]:
    """Computes the leading eigenvectors of the covariance, each with its largest entry positive."""
    mean = rows.mean(dim=0)
    centred = rows - mean
    _, vectors = torch.linalg.eigh(centred.T @ centred / len(rows))  # ascending; (C, C)
    basis = vectors[:, -components:].flip(-1).T  # (d, C)
    # An eigenvector's sign is arbitrary; fixing it keeps the codes the same between libraries.
    largest = basis.abs().argmax(dim=1, keepdim=True)
    return {"mean": mean, "basis": (basis * basis.gather(1, largest).sign()).contiguous()}
