"""How feature vectors become the numbers on disk and back: pure maths on tensors, no files.

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

CODEC_FILE = re.compile(r"codec_(scale|offset|mean|basis)\.npy")
"""File names that a codec's arrays may have in a cache folder."""

_INT8_LEVELS = 127
_TORCH_DTYPES: Mapping[CodedDtype, torch.dtype] = {
    "float16": torch.float16,
    "float32": torch.float32,
    "int8": torch.int8,
}
_ARRAYS: Mapping[CodecName, tuple[str, ...]] = {
    "none": (),
    "int8": ("scale", "offset"),
    "pca": ("mean", "basis"),
}


@dataclass(frozen=True)
class CodecSpec:
    """Which codec is asked for.

    Attributes:
        name: ``none`` (the channels as they are), ``int8`` or ``pca``.
        dtype: Type on disk.
        components: Coefficients per feature vector; None unless ``pca``.
    """

    name: CodecName
    dtype: CodedDtype
    components: int | None = None

    @property
    def text(self) -> str:
        """The words that :func:`parse_codec` reads."""
        if self.name == "pca":
            return f"pca{self.components}"
        return {"float16": "fp16", "float32": "fp32", "int8": "int8"}[self.dtype]


@dataclass(frozen=True)
class CosineError:
    """One minus the cosine between original and decoded feature vectors.

    Attributes:
        num: Vectors compared.
        mean: Mean over them.
        p99: What 99 % of them stay below.
        worst: The largest.
    """

    num: int
    mean: float
    p99: float
    worst: float


@dataclass(frozen=True)
class CodecArray:
    """One array of a codec's state, a ``.npy`` file beside the chunks.

    Attributes:
        name: ``scale``, ``offset``, ``mean`` or ``basis``.
        file: Name of the file in the cache folder.
        bytes: Length of the file.
        shape: Shape of the array.
        dtype: Its type, always ``float32``.
        checksum: ``xxh3_128:`` and the hash of the whole file.
    """

    name: str
    file: str
    bytes: int
    shape: tuple[int, ...]
    dtype: str
    checksum: str


@dataclass(frozen=True)
class CodecRecord:
    """What the manifest says about the codec.

    Attributes:
        name: ``none``, ``int8`` or ``pca``.
        arrays: Its state.
        cosine_error: What it costs over all stored vectors, if it was measured.
    """

    name: CodecName = "none"
    arrays: tuple[CodecArray, ...] = ()
    cosine_error: CosineError | None = None


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
            "parse_codec: text must be fp16, fp32, int8 or pca and a number of components, got "
            f"{text!r}. Try pca128."
        )
    return CodecSpec("pca", "float16", int(match[1]))


@dataclass(frozen=True)
class Codec:
    """A codec with its fitted state.

    Attributes:
        spec: Which codec.
        channels: Feature channels C.
        arrays: The state in fp32: ``scale`` and ``offset`` (C,), or ``mean`` (C,) and ``basis``
            (d, C) with orthonormal rows.
    """

    spec: CodecSpec
    channels: int
    arrays: Mapping[str, Float32[Tensor, "..."]] = field(default_factory=dict)

    @property
    def stored_channels(self) -> int:
        """Numbers per feature vector on disk."""
        return self.spec.components or self.channels

    def to(self, device: torch.device | str) -> "Codec":
        """Returns the codec with its state on a device."""
        arrays = {name: array.to(device) for name, array in self.arrays.items()}
        return replace(self, arrays=arrays)

    def encode(
        self, rows: Float[Tensor, "*rows channels"], dtype: CodedDtype | None = None
    ) -> Shaped[Tensor, "*rows stored"]:
        """Turns features into what is stored, on the device of the codec's state.

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
        return rows.to(_TORCH_DTYPES[dtype or self.spec.dtype])

    def decode(self, stored: Shaped[Tensor, "*rows stored"]) -> Float32[Tensor, "*rows channels"]:
        """Turns what is stored, or a blend of it, into features."""
        codes = stored.float()
        if self.spec.name == "int8":
            return torch.addcmul(self.arrays["offset"], codes, self.arrays["scale"])
        if self.spec.name == "pca":
            return codes @ self.arrays["basis"] + self.arrays["mean"]
        return codes


def fit_codec(spec: CodecSpec, rows: Float[Tensor, "rows channels"]) -> Codec:
    """Fits a codec to a sample of features; the same rows give the same codec.

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
            f"fit_codec: rows must be at least 2 with at least {spec.components or 1} channels, "
            f"got {num} with {channels}. Choose a smaller pca, or fp16."
        )
    exact = rows.detach().cpu().double()
    state = _fit_int8(exact) if spec.name == "int8" else _fit_pca(exact, spec.components or 1)
    return Codec(spec, channels, {name: array.float() for name, array in state.items()})


def load_codec(name: CodecName, arrays: Mapping[str, np.ndarray], channels: int) -> Codec:
    """Rebuilds a codec from its name and state.

    Args:
        name: ``none``, ``int8`` or ``pca``.
        arrays: Its state by name, fp32.
        channels: Feature channels C.

    Raises:
        CacheError: If arrays are missing, or have the wrong shape.
    """
    shapes = {key: array.shape for key, array in arrays.items()}
    components = shapes.get("basis", (0,))[0]
    expected: dict[str, tuple[int, ...]] = dict.fromkeys(_ARRAYS[name], (channels,))
    if name == "pca":
        expected["basis"] = (components, channels)
    if shapes != expected or (name == "pca" and not 1 <= components <= channels):
        raise CacheError(
            f"load_codec: arrays must be {expected} for the codec {name!r}, got {shapes}. Extract "
            "again."
        )
    state = {key: torch.from_numpy(array.astype(np.float32)) for key, array in arrays.items()}
    if name == "pca":
        return Codec(CodecSpec("pca", "float16", components), channels, state)
    return Codec(CodecSpec(name, "int8" if name == "int8" else "float16"), channels, state)


def cosine_error(
    original: Float[Tensor, "rows channels"], decoded: Float[Tensor, "rows channels"]
) -> CosineError:
    """Compares features with what came back; a vector of zeros that stayed one has no error.

    Args:
        original: Features before encoding, at least one row.
        decoded: The same after decoding.
    """
    first, second = original.detach().cpu().double(), decoded.detach().cpu().double()
    errors = 1 - functional.cosine_similarity(first, second, dim=-1, eps=1e-30)
    errors = torch.where((first == second).all(dim=-1), 0.0, errors).clamp_min(0)
    p99 = float(np.quantile(errors.numpy(), 0.99))
    return CosineError(len(errors), float(errors.mean()), p99, float(errors.max()))


def combine_errors(errors: Sequence[CosineError]) -> CosineError:
    """Joins the errors of parts: the mean over all vectors, the largest p99 and worst of a part.

    Args:
        errors: At least one.
    """
    num = sum(error.num for error in errors)
    mean = sum(error.mean * error.num for error in errors) / max(num, 1)
    p99, worst = max(error.p99 for error in errors), max(error.worst for error in errors)
    return CosineError(num, mean, p99, worst)


def _fit_int8(rows: Float[Tensor, "rows channels"]) -> dict[str, Tensor]:
    """Spreads the steps over each channel's range; a constant channel gets steps of one."""
    low, high = rows.amin(dim=0), rows.amax(dim=0)
    span = high - low
    scale = torch.where(span > 0, span / (2 * _INT8_LEVELS), 1.0)
    return {"scale": scale, "offset": (low + high) / 2}


def _fit_pca(rows: Float[Tensor, "rows channels"], components: int) -> dict[str, Tensor]:
    """Takes the leading eigenvectors of the covariance, each with its largest entry positive."""
    mean = rows.mean(dim=0)
    centred = rows - mean
    _, vectors = torch.linalg.eigh(centred.T @ centred / len(rows))  # ascending; (C, C)
    basis = vectors[:, -components:].flip(-1).T  # (d, C)
    largest = basis.abs().argmax(dim=1, keepdim=True)
    return {"mean": mean, "basis": (basis * basis.gather(1, largest).sign()).contiguous()}
