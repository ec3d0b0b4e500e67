"""Frames of videos and images, and the rules that choose them; decoding is PyAV's."""

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from types import ModuleType
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import UInt8
from torch import Tensor

from f3rm.backbones.optional import require
from f3rm.errors import F3rmError, StrPath, as_path
from f3rm.extract.taps.choices import check_settings
from f3rm.store.geometry import Size
from f3rm.store.images import ImageFailedError

Pick = Literal["uniform", "first", "last", "all"]
Pad = Literal["repeat", "zero", "none"]
Pool = Literal["mean", "max", "none"]
ImageAs = Literal["frame", "clip"]

_CHOICES = {"pick": Pick, "pad": Pad, "pool": Pool, "image": ImageAs}

_MOST_FRAMES = 1 << 20

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff")
VIDEO_SUFFIXES = (".mp4", ".avi", ".mov", ".mkv", ".webm", ".m4v")


class FramesError(F3rmError):
    """A rule for frames makes no sense, or a video is too short for it."""


@dataclass(frozen=True)
class FramePolicy:
    """Which frames of a video count, and what happens to their features.

    Attributes:
        num: How many frames; None takes all.
        pick: Which ones of a longer video: evenly spaced, the first, or the last ``num``; ``all``
            ignores ``num``.
        pad: What a shorter video gets at its end: its last frame ``repeat``ed, black (``zero``)
            frames, or nothing (``none``).
        pool: How features of frames become one, over time, where a backbone sees single images;
            ``none`` keeps all frames.
        image: Whether an image is one ``frame``, or a ``clip`` made longer like a short video.
    """

    num: int | None = None
    pick: Pick = "uniform"
    pad: Pad = "repeat"
    pool: Pool = "none"
    image: ImageAs = "frame"

    def __post_init__(self) -> None:
        check_settings(FramePolicy, vars(self), _CHOICES, FramesError)
        _check_num(self.num)

    def choose(self, available: int) -> list[int]:
        """Returns the indices of the frames to decode, in order.

        Args:
            available: Frames of the video.
        """
        num = available if self.num is None or self.pick == "all" else min(self.num, available)
        if self.pick == "last":
            return list(range(available - num, available))
        if self.pick == "uniform":
            return [(2 * index + 1) * available // (2 * num) for index in range(num)]
        return list(range(num))

    def length(self, available: int, *, is_image: bool = False, stride: int = 1) -> int:
        """Returns how many frames a network sees.

        Args:
            available: Frames of the file; 1 for an image.
            is_image: Whether it is an image.
            stride: Frames per step in time of a causal video network, which takes 1 + a multiple.
        """
        if is_image and self.image == "frame":
            return 1
        num = len(self.choose(available))
        if self.pad != "none" and self.num is not None and self.pick != "all":
            num = self.num
        steps = (num - 1) / stride
        return 1 + stride * int(steps if self.pad == "none" else -(-steps // 1))

    def with_num(self, num: int | None) -> "FramePolicy":
        """Returns the same rule for another number of frames; None changes nothing."""
        return self if num is None else replace(self, num=num)

    def to_dict(self) -> dict[str, Any]:
        """Returns plain values for YAML and JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, plain: Mapping[str, Any]) -> "FramePolicy":
        """Rebuilds the value written by :meth:`to_dict`; what is left out has its default.

        Raises:
            FramesError: If a name or a value makes no sense.
        """
        check_settings(cls, plain, _CHOICES, FramesError)
        _check_num(plain.get("num"))
        return cls(**plain)


def _check_num(num: object) -> None:
    if num is None or (type(num) is int and 1 <= num <= _MOST_FRAMES):
        return
    msg = (
        f"FramePolicy: num must be at least 1 and at most {_MOST_FRAMES}, got {num!r}. Ask for a "
        "frame or more."
    )
    raise FramesError(msg)


@dataclass(frozen=True)
class VideoInfo:
    """What a video file holds: (height, width) and number of frames."""

    size: Size
    num_frames: int


def is_video(path: Path) -> bool:
    """Returns whether a file is treated as a video, by its suffix."""
    return path.suffix.lower() in VIDEO_SUFFIXES


def inspect_video(path: StrPath, name: str | None = None) -> VideoInfo:
    """Decodes a video once, counting its frames; what its header says is not relied upon.

    Args:
        path: The file.
        name: What it is called in errors.

    Raises:
        ImageFailedError: If it is damaged or holds no frame.
        MissingExtraError: If PyAV is missing.
    """
    path = as_path(path)
    size, count = (0, 0), 0
    for frame in _frames(path, name or str(path)):
        size, count = (frame.height, frame.width), count + 1
    return VideoInfo(size, count)


def read_frames(
    path: Path, policy: FramePolicy, *, num_frames: int | None = None, name: str | None = None
) -> UInt8[Tensor, "frames height width 3"]:
    """Decodes the frames that a policy chooses; nothing is padded yet.

    Args:
        path: The video.
        policy: Which frames.
        num_frames: How many the video has; None counts them first.
        name: What it is called in errors.

    Raises:
        ImageFailedError: If the video is damaged or holds no frame.
        MissingExtraError: If PyAV is missing.
    """
    label = name or str(path)
    available = num_frames or inspect_video(path, label).num_frames
    wanted = set(policy.choose(available))
    kept: list[np.ndarray] = []
    for index, frame in enumerate(_frames(path, label)):
        if index in wanted:
            kept.append(frame.to_ndarray(format="rgb24"))
        if len(kept) == len(wanted):
            break
    if len(kept) != len(wanted):
        raise _broken(label, f"it ended after {len(kept)} of {len(wanted)} frames")
    return torch.from_numpy(np.stack(kept))  # (frames, height, width, 3)


def fit_length(
    frames: UInt8[Tensor, "frames height width 3"], length: int, pad: Pad
) -> UInt8[Tensor, "length height width 3"]:
    """Cuts frames off at the end, or adds some there.

    Args:
        frames: At least one.
        length: How many there will be.
        pad: ``repeat`` adds the last frame again, ``zero`` black ones.

    Raises:
        FramesError: If frames are missing and ``pad`` is ``none``.
    """
    missing = length - len(frames)
    if missing <= 0:
        return frames[:length]
    if pad == "none":
        msg = f"fit_length: frames must be at least {length} with pad='none', got {len(frames)}."
        raise FramesError(msg)
    added = frames[-1:].expand(missing, -1, -1, -1)
    return torch.cat([frames, torch.zeros_like(added) if pad == "zero" else added])


def _frames(path: Path, name: str) -> Iterator[Any]:
    """Yields decoded frames of the first video stream."""
    av = _import_av()
    count = 0
    try:
        with av.open(str(path)) as container:
            if not container.streams.video:
                raise _broken(name, "it holds no video")
            for frame in container.decode(container.streams.video[0]):
                count += 1
                yield frame
    except (OSError, ValueError, av.error.FFmpegError) as error:
        raise _broken(name, str(error)) from error
    if not count:
        raise _broken(name, "it holds no frame")


def _import_av() -> ModuleType:
    return require("av", extra="video", purpose="read_frames: decoding a video")


def _broken(name: str, reason: str) -> ImageFailedError:
    msg = (
        f"read_frames: {name!r} must be a complete video, got: {reason}. Copy or export the file "
        "again, or pass on_error='record'."
    )
    return ImageFailedError(msg, name=name, reason=f"it is no complete video: {reason}")
