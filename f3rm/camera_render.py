"""What a camera render asks for and returns, and how the model sees Nerfacto's samples."""

import threading
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

from jaxtyping import Float
from nerfstudio.cameras.rays import RaySamples
from torch import Tensor

from f3rm.semantics.similarity import HiddenQuery


@dataclass(frozen=True)
class RenderRequest:
    """What a camera render adds to Nerfacto's outputs."""

    pca: bool = True
    """``feature_pca``: three channels per pixel."""
    similarity: bool = True
    """``similarity``: one channel per pixel, while a query stands."""
    features: bool = False
    """``feature*``: all C channels per pixel; 1080p x 768 channels are 6.4 GB."""
    hidden: bool = True
    """The composited hidden vectors, as :attr:`CameraOutputs.hidden`."""

    @property
    def anything(self) -> bool:
        """Whether the feature field is needed at all."""
        return self.pca or self.similarity or self.features or self.hidden


RGB_ONLY = RenderRequest(pca=False, similarity=False, features=False, hidden=False)
RAY_BATCH = RenderRequest(pca=False, similarity=False, features=True, hidden=False)
EVALUATED_RAY_BATCH = RenderRequest(features=True, hidden=False)


class CameraOutputs(dict[str, Tensor]):
    """Images of a camera render, by name; hidden vectors stand apart because they are no picture.

    Attributes:
        hidden: Composited hidden vectors of shape (height, width, hidden), or None.
    """

    hidden: Tensor | None = None


@runtime_checkable
class FeatureTargets(Protocol):
    """Target features of one image, as the data manager gives them with an evaluation batch."""

    def rows(self, name: str, start: int, stop: int) -> Float[Tensor, "rows width channels"]:
        """Returns the features of pixel rows ``start`` to ``stop`` for a head, on the CPU."""
        ...


@dataclass(frozen=True)
class Frame:
    """What holds for every ray of one render, however many chunks it takes.

    The query is taken once: a text that is typed while a frame renders must not give some of its
    chunks an output that the others lack.
    """

    request: RenderRequest
    """What is asked for."""
    query: HiddenQuery | None = None
    """The query of ``similarity`` in its head's hidden space, or None where nothing is asked."""


# The camera render that this thread is in; None for a batch of rays.
current_frame: ContextVar[Frame | None] = ContextVar("f3rm_frame", default=None)


class SampleTap:
    """Keeps the samples and weights that Nerfacto last rendered, for each thread."""

    def __init__(self) -> None:
        self._seen = threading.local()

    def hook(self, module: Any, args: Any, kwargs: dict[str, Any]) -> None:
        """A forward pre-hook of ``renderer_expected_depth``."""
        del module, args
        self._seen.samples = kwargs["ray_samples"]
        self._seen.weights = kwargs["weights"]

    def take(self) -> tuple[RaySamples, Tensor]:
        """Hands over samples and weights (rays, samples, 1) once."""
        seen = self._seen.__dict__
        return seen.pop("samples"), seen.pop("weights")
