"""Videos among the items: selection and decoding of their frames; PyAV decodes."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import UInt8
from torch import Tensor

from f3rm.backbones.optional import require
from f3rm.errors import F3rmError, StrPath, as_path
from f3rm.store.geometry import Size
from f3rm.store.images import (
    ImageFailedError,
    ImageInfo,
    content_hash,
    inspect_images,
    prefetched,
)
from f3rm.store.items import ImageItem
from f3rm.store.progress import track
from f3rm.store.settings import check_settings

Pick = Literal["uniform", "first", "last", "all"]
Pad = Literal["repeat", "zero", "none"]
Pool = Literal["mean", "max", "none"]
ImageAs = Literal["frame", "clip"]

_MOST_FRAMES = 1 << 20

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff")
VIDEO_SUFFIXES = (".mp4", ".avi", ".mov", ".mkv", ".webm", ".m4v")


class FramesError(F3rmError):
    """A frame policy has an impossible setting, or a video is too short for it."""


@dataclass(frozen=True)
class FramePolicy:
    """Selection of a video's frames, and pooling of their features.

    Attributes:
        num: Number of frames; None takes all.
        pick: Frames of a longer video: evenly spaced, the first, or the last ``num``; ``all``
            ignores ``num``.
        pad: Padding at the end of a shorter video: its last frame ``repeat``ed, black (``zero``)
            frames, or ``none``.
        pool: Pooling over time where a backbone sees single images; ``none`` keeps all frames.
        image: Whether an image is one ``frame``, or a ``clip`` that is padded like a short video.
    """

    num: int | None = None
    pick: Pick = "uniform"
    pad: Pad = "repeat"
    pool: Pool = "none"
    image: ImageAs = "frame"

    def __post_init__(self) -> None:
        check_settings(FramePolicy, vars(self), FramesError)
        # type(), since True is an int, and YAML reads "num: yes" as True
        if self.num is not None and not (type(self.num) is int and 1 <= self.num <= _MOST_FRAMES):
            raise FramesError(
                f"FramePolicy: num must be from 1 to {_MOST_FRAMES}, got {self.num!r}."
            )

    def choose(self, available: int) -> list[int]:
        """Returns the indices of the frames to decode, in order.

        Args:
            available: Frames of the video.
        """
        num = available if self.num is None or self.pick == "all" else min(self.num, available)
        if self.pick == "last":
            return list(range(available - num, available))
        if self.pick == "uniform":
            # The middles of num equal parts, in whole numbers, so that no rounding differs.
            return [(2 * index + 1) * available // (2 * num) for index in range(num)]
        return list(range(num))

    def length(self, available: int, *, is_image: bool = False, stride: int = 1) -> int:
        """Returns the number of frames that a network sees.

        Args:
            available: Frames of the file; 1 for an image.
            is_image: Whether the file is an image.
            stride: Frames per step of a causal video network, which takes 1 + a multiple of them.
        """
        if is_image and self.image == "frame":
            return 1
        num = len(self.choose(available))
        if self.pad != "none" and self.num is not None and self.pick != "all":
            num = self.num
        steps = (num - 1) // stride if self.pad == "none" else -(-(num - 1) // stride)
        return 1 + stride * steps  # without padding rounded down, else up

    def with_num(self, num: int | None) -> "FramePolicy":
        """Returns the same policy for another number of frames; None changes nothing."""
        return self if num is None else replace(self, num=num)


@dataclass(frozen=True)
class VideoInfo:
    """Frame size (height, width) in pixels and number of frames of a video."""

    size: Size
    num_frames: int


def is_video(path: Path) -> bool:
    """Returns whether a file is a video, by its suffix."""
    return path.suffix.lower() in VIDEO_SUFFIXES


def inspect_video(path: StrPath, name: str | None = None) -> VideoInfo:
    """Decodes a video once and counts its frames; counts in headers are often wrong.

    Args:
        path: The file.
        name: Its name in errors.

    Raises:
        ImageFailedError: If it is damaged or holds no frame.
        MissingExtraError: If PyAV is missing.
    """
    path = as_path(path)
    size, count = (0, 0), 0
    for frame in _frames(path, name or str(path)):
        size, count = (frame.height, frame.width), count + 1
    return VideoInfo(size, count)


@dataclass(frozen=True)
class ClipInfo(ImageInfo):
    """A video that has been checked: as an image, and the number of its frames."""

    num_frames: int


def inspect_items(
    items: Sequence[ImageItem], *, progress: bool = False, failed: dict[str, str] | None = None
) -> list[ImageInfo]:
    """Decodes every image and every video once; see :func:`f3rm.store.images.inspect_images`.

    Raises:
        ImageError: If one is missing or damaged and ``failed`` is not given.
    """
    videos = [item for item in items if is_video(item.path)]
    if not videos:
        return inspect_images(items, progress=progress, failed=failed)
    images = [item for item in items if not is_video(item.path)]
    found = inspect_images(images, progress=progress, failed=failed) if images else []
    clips = prefetched(_inspect_clip, videos)
    for clip in track(
        clips, total=len(videos), label="checking videos", show=progress, unit="videos"
    ):
        if isinstance(clip, ImageInfo):
            found.append(clip)
        elif failed is None:
            raise clip
        else:
            failed[clip.name] = clip.reason
    order = {item.name: index for index, item in enumerate(items)}
    return sorted(found, key=lambda info: order[info.item.name])


def _inspect_clip(item: ImageItem) -> ClipInfo | ImageFailedError:
    try:
        found = inspect_video(item.path, item.name)
        status = item.path.stat()
        content = content_hash(item.path)
    except ImageFailedError as error:
        return error
    return ClipInfo(item, status.st_size, status.st_mtime_ns, content, found.size, found.num_frames)


def read_frames(
    path: Path, policy: FramePolicy, *, num_frames: int | None = None, name: str | None = None
) -> UInt8[Tensor, "frames height width 3"]:
    """Decodes the frames that a policy selects; does not pad.

    Args:
        path: The video.
        policy: Selection of the frames.
        num_frames: Number of frames of the video; None counts them first.
        name: Its name in errors.

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
    """Brings a clip to a number of frames, at its end.

    Args:
        frames: At least one.
        length: Wanted number of frames.
        pad: ``repeat`` adds the last frame again, ``zero`` black ones.

    Raises:
        FramesError: If frames are missing and ``pad`` is ``none``.
    """
    missing = length - len(frames)
    if missing <= 0:
        return frames[:length]
    if pad == "none":
        msg = f"pad='none' needs {length} frames or more, got {len(frames)}. Choose another pad."
        raise FramesError(msg)
    added = frames[-1:].expand(missing, -1, -1, -1)
    return torch.cat([frames, torch.zeros_like(added) if pad == "zero" else added])


def _frames(path: Path, name: str) -> Iterator[Any]:
    """Yields decoded frames (``av.VideoFrame``) of the first video stream."""
    av = require("av", extra="video", purpose="Decoding videos")
    count = 0
    try:
        with av.open(str(path)) as container:
            if not container.streams.video:
                raise _broken(name, "it has no video stream")
            for frame in container.decode(container.streams.video[0]):
                count += 1
                yield frame
    except (OSError, ValueError, av.error.FFmpegError) as error:
        raise _broken(name, str(error)) from error
    if not count:
        raise _broken(name, "it has no frame")


def _broken(name: str, reason: str) -> ImageFailedError:
    msg = (
        f"{name!r} is not a complete video: {reason}. Copy or export the file again, or leave it "
        "out with on_error='record' (--on-error record)."
    )
    return ImageFailedError(msg, name=name, reason=f"it is no complete video: {reason}")
