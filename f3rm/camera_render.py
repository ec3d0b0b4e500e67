"""Requests and results of camera renders, and the recorder of Nerfacto's samples."""

import threading
from collections.abc import Callable, Collection, Generator, Hashable
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from nerfstudio.cameras.cameras import Cameras
from nerfstudio.cameras.rays import RayBundle
from torch import Tensor
from torch.nn import functional

from f3rm.colours.pca import PcaBasis, pca_colours


@dataclass(frozen=True)
class RenderRequest:
    """What a camera render adds to Nerfacto's outputs."""

    pca: bool = True
    """``feature_pca``: three channels per pixel."""
    similarity: bool = True
    """``similarity``, while there is a query: one channel per pixel, or colours in a viewer."""
    composite: bool = True
    """``similarity_composite`` beside it; its automatic threshold takes a whole picture."""
    features: bool = False
    """``feature*``: all C channels per pixel; 1080p x 768 channels are 6.4 GB."""
    hidden: bool = True
    """The composited hidden vectors, as :attr:`CameraOutputs.hidden`."""

    @classmethod
    def showing(cls, outputs: Collection[str] | None) -> "RenderRequest":
        """Requests what a viewer shows, by the names of its outputs; None for the default."""
        if outputs is None:
            return cls()
        pca = any(name.startswith("feature_pca") for name in outputs)
        similarity = any(name.startswith("similarity") for name in outputs)
        return cls(pca=pca, similarity=similarity, hidden=pca or similarity)

    @property
    def anything(self) -> bool:
        """Whether the feature field is needed at all."""
        return self.pca or self.similarity or self.features or self.hidden


RGB_ONLY = RenderRequest(pca=False, similarity=False, features=False, hidden=False)
RAY_BATCH = RenderRequest(pca=False, similarity=False, features=True, hidden=False)
EVALUATED_RAY_BATCH = RenderRequest(features=True, hidden=False, composite=False)

_METRIC_PIXELS = 1 << 14
_LEAST_LENGTH = 1e-8
"""Product of two lengths below which a cosine is 0."""
_KEPT_FRAMES = 3
"""A coarse and a fine frame of one view, and one more for a second browser."""
_KEPT_BYTES = 1 << 30
"""Their total memory; the newest stays in any case. A frame of 1 MP takes 270 MB."""


class CameraOutputs(dict[str, Tensor]):
    """Images of a camera render by name, and beside them its hidden vectors.

    Attributes:
        hidden: Composited hidden vectors of shape (height, width, hidden), or None.
    """

    hidden: Tensor | None = None

    @property
    def num_bytes(self) -> int:
        """Memory of images and hidden vectors."""
        hidden = () if self.hidden is None else (self.hidden,)
        return sum(tensor.nbytes for tensor in (*self.values(), *hidden))


@runtime_checkable
class FeatureTargets(Protocol):
    """Target features of one image, as the data manager gives them with an evaluation batch."""

    def rows(self, name: str, start: int, stop: int) -> Float[Tensor, "rows width channels"]:
        """Returns the features of pixel rows ``start`` to ``stop`` for a head, on the CPU."""
        ...


def mean_cosine(
    rendered: Float[Tensor, "rays channels"], target: Float[Tensor, "rays channels"]
) -> Float[Tensor, ""]:
    """Returns the mean cosine of two batches of features, in single precision, without gradient.

    ``functional.cosine_similarity`` launches twice as many kernels, and holds three more batches.
    """
    with torch.no_grad(), torch.autocast(rendered.device.type, enabled=False):
        rows = rendered.float()[:, None]  # (rays, 1, channels)
        columns = target.float()[..., None]  # (rays, channels, 1)
        lengths = torch.linalg.vector_norm(rows, dim=2, keepdim=True)
        lengths = lengths * torch.linalg.vector_norm(columns, dim=1, keepdim=True)
        return (torch.bmm(rows, columns) / lengths.clamp_min(_LEAST_LENGTH)).mean()


@dataclass(frozen=True)
class FeatureComparison:
    """How the rendered features of a whole image compare with extracted ones.

    Attributes:
        cosine: Mean cosine over pixels.
        mse: Mean squared error over pixels and channels.
        picture: PCA colours, extracted beside rendered.
    """

    cosine: float
    mse: float
    picture: Float[Tensor, "height double_width 3"]


def compare_features(
    hidden: Float[Tensor, "height width hidden"],
    rows: Callable[[int, int], Tensor],
    head: Callable[[Tensor], Tensor],
    basis: PcaBasis,
    device: torch.device,
) -> FeatureComparison:
    """Compares a head's features with extracted ones; C channels exist for a few rows at a time.

    Args:
        hidden: Composited hidden vectors of the image.
        rows: Extracted features (rows, width, channels) from one pixel row up to another.
        head: From hidden vectors to features.
        basis: Colours of the picture.
        device: Where it is computed.
    """
    height, width = hidden.shape[:2]
    step = max(1, _METRIC_PIXELS // width)
    cosine, error, pictures = 0.0, 0.0, []
    for start in range(0, height, step):
        stop = min(start + step, height)
        rendered = head(hidden[start:stop].to(device))  # (rows, width, channels)
        target = rows(start, stop).to(device)
        cosine += float(functional.cosine_similarity(rendered, target, dim=-1).sum())
        error += float((rendered - target).square().mean(-1).sum())
        pictures.append(pca_colours(torch.cat((target, rendered), dim=1), basis))
    pixels = height * width
    return FeatureComparison(cosine / pixels, error / pixels, torch.cat(pictures))


@dataclass
class CameraRender:
    """A camera render under way.

    Attributes:
        request: What it adds to Nerfacto's outputs.
        hidden: Composited hidden vectors of the chunks of rays rendered so far; apart from the
            outputs, in which Nerfstudio expects pictures.
    """

    request: RenderRequest
    hidden: list[Float[Tensor, "rays hidden"]] = field(default_factory=list)

    @contextmanager
    def current(self) -> Generator[None]:
        """Makes this the render that :meth:`get` returns in this thread."""
        token = _current_render.set(self)
        try:
            yield
        finally:
            _current_render.reset(token)

    @staticmethod
    def get() -> "CameraRender | None":
        """Returns the camera render that this thread is in; None for a batch of rays."""
        return _current_render.get()


_current_render: ContextVar[CameraRender | None] = ContextVar("f3rm_render", default=None)


def camera_key(camera: Cameras) -> tuple[bytes | None, ...]:
    """Returns the bytes of all that determines a camera's rays, to tell cameras apart."""
    tensors = (
        camera.camera_to_worlds,
        *(camera.fx, camera.fy, camera.cx, camera.cy, camera.height, camera.width),
        *(camera.distortion_params, camera.camera_type, camera.times),
    )
    return tuple(None if t is None else t.detach().cpu().numpy().tobytes() for t in tensors)


def single_ray(
    origin: tuple[float, float, float], direction: tuple[float, float, float]
) -> RayBundle:
    """Returns one ray as an image of one pixel.

    Args:
        origin: Where it starts, in the scene frame.
        direction: Where it goes, of any length.
    """
    return RayBundle(
        origins=torch.tensor([[origin]]),
        directions=functional.normalize(torch.tensor([[direction]]), dim=-1),
        pixel_area=torch.full((1, 1, 1), 1e-6),
        camera_indices=torch.zeros((1, 1, 1), dtype=torch.long),
        metadata={"directions_norm": torch.ones((1, 1, 1))},
    )


class FrameCache:
    """The last frames of a model, so that another query of the same view need not render it again.

    A frame is Nerfacto's outputs and hidden vectors, which no query changes; training does, and
    clears it. Only frames that a viewer shows belong here: a photograph is evaluated once.
    """

    def __init__(self) -> None:
        self._frames: dict[Hashable, CameraOutputs] = {}

    def get(self, key: Hashable) -> CameraOutputs | None:
        """Returns a frame that was put here."""
        return self._frames.get(key)

    def put(self, key: Hashable, frame: CameraOutputs) -> None:
        """Keeps a frame and forgets the oldest ones that there is no room for."""
        frames = {**self._frames, key: frame}
        room = _KEPT_BYTES - frame.num_bytes
        for other in [name for name in frames if name != key][::-1]:  # the newest first
            room -= frames[other].num_bytes
            if room < 0:
                del frames[other]
        for other in [name for name in frames if name != key][: -(_KEPT_FRAMES - 1)]:
            del frames[other]
        self._frames = frames

    @property
    def num_bytes(self) -> int:
        """Memory of the kept frames."""
        return sum(frame.num_bytes for frame in self._frames.values())

    def clear(self) -> None:
        """Forgets all frames."""
        if self._frames:
            self._frames = {}


class SampleRecorder:
    """Keeps the samples that Nerfacto last rendered, for each thread.

    Their positions are those that Nerfacto's own field reads, so that nobody computes them twice.

    Args:
        of_positions: Whether anything asks for a gradient of positions. Nerfacto computes it in any
            case, which is a tenth of a step on a CPU; without it, training has the same bits.
    """

    def __init__(self, *, of_positions: bool = True) -> None:
        self._of_positions = of_positions
        self._seen = threading.local()

    def positions_hook(self, module: Any, args: tuple[Tensor]) -> tuple[Tensor]:
        """A forward pre-hook of ``field.mlp_base``."""
        del module
        (positions,) = args
        self._seen.positions = positions if self._of_positions else positions.detach()
        return (self._seen.positions,)

    def weights_hook(self, module: Any, args: Any, kwargs: dict[str, Any]) -> None:
        """A forward pre-hook of ``renderer_expected_depth``."""
        del module, args
        self._seen.weights = kwargs["weights"]

    def take(self) -> tuple[Float[Tensor, "points 3"], Float[Tensor, "rays samples 1"]]:
        """Hands over positions in [0, 1]^3, ray by ray, and weights, once.

        A sample outside of the cube has the weight 0, and the position 0.
        """
        seen = self._seen.__dict__
        return seen.pop("positions"), seen.pop("weights")
