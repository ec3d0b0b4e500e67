"""Writes pictures one by one: as PNG files, or as frames of videos."""

import contextlib
import os
from collections.abc import Mapping
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from av.container import OutputContainer
from av.error import FFmpegError
from av.video.stream import VideoStream
from jaxtyping import UInt8
from PIL import Image

from f3rm.errors import F3rmError

VIDEO = ".mp4"
_OTHER_SUFFIXES = (".gif", ".avi", ".mov", ".mkv", ".webm", ".png", ".jpg", ".jpeg")

_CODEC = "libx264"
_QUALITY = {"crf": "18"}


class PictureFolders:
    """Writes ``<out>/<output>/<name>.png``.

    Args:
        out: The folder.
    """

    def __init__(self, out: Path) -> None:
        self._out = out
        self._folders: dict[Path, None] = {}  # a set that keeps its order

    def add(self, name: str, pictures: Mapping[str, UInt8[np.ndarray, "_ _ 3"]]) -> None:
        """Writes the pictures of one camera, by output name.

        Raises:
            F3rmError: If a file cannot be written.
        """
        for output, picture in pictures.items():
            folder = self._out / output
            try:
                folder.mkdir(parents=True, exist_ok=True)
                Image.fromarray(picture).save(folder / f"{name}.png")
            except OSError as error:
                raise _not_writable(self._out, error) from error
            self._folders[folder] = None

    def close(self) -> list[Path]:
        """Returns the folders."""
        return list(self._folders)

    def abandon(self) -> None:
        """Keeps the pictures that were written: each is complete."""


class VideoFiles:
    """Writes one H.264 video per output, a frame at a time.

    Args:
        out: The file; with several outputs the output's name is added to it.
        fps: Frames per second.
    """

    def __init__(self, out: Path, fps: float) -> None:
        self._out, self._fps = out, fps
        self._videos: dict[str, tuple[Path, OutputContainer, VideoStream]] = {}

    def add(self, name: str, pictures: Mapping[str, UInt8[np.ndarray, "_ _ 3"]]) -> None:
        """Adds a frame to each video; all frames of one must be of the same size.

        Raises:
            F3rmError: If a file cannot be written, or a frame is of another size.
        """
        for output, picture in pictures.items():
            try:
                self._add_frame(name, output, picture, several=len(pictures) > 1)
            except (OSError, FFmpegError) as error:
                raise _not_writable(self._out, error) from error

    def _add_frame(
        self, name: str, output: str, picture: UInt8[np.ndarray, "_ _ 3"], *, several: bool
    ) -> None:
        height, width = picture.shape[:2]
        even = np.pad(picture, ((0, height % 2), (0, width % 2), (0, 0)), "edge")  # H.264 needs it
        if output not in self._videos:
            self._videos[output] = self._open(output, even.shape[:2], several=several)
        _, container, stream = self._videos[output]
        if (stream.height, stream.width) != even.shape[:2]:
            msg = (
                f"All frames of a video must be of {stream.height} x {stream.width} pixels, got "
                f"{even.shape[0]} x {even.shape[1]} in {name}. Write PNG files, or choose --views "
                "whose cameras are alike."
            )
            raise F3rmError(msg)
        container.mux(stream.encode(av.VideoFrame.from_ndarray(even, format="rgb24")))

    def _open(
        self, output: str, size: tuple[int, ...], *, several: bool
    ) -> tuple[Path, OutputContainer, VideoStream]:
        path = self._out.with_stem(f"{self._out.stem}_{output}") if several else self._out
        path.parent.mkdir(parents=True, exist_ok=True)
        container = av.open(str(_partial(path)), mode="w", format="mp4")
        # MP4 stores the rate as a fraction: 29.97 is 30000/1001.
        rate = Fraction(self._fps).limit_denominator(1001)
        stream = container.add_stream(_CODEC, rate=rate, options=_QUALITY)
        stream.height, stream.width = size[0], size[1]
        stream.pix_fmt = "yuv420p"
        return path, container, stream

    def close(self) -> list[Path]:
        """Finishes the videos and returns their files.

        Raises:
            F3rmError: If a file cannot be written.
        """
        try:
            for path, container, stream in self._videos.values():
                container.mux(stream.encode())  # frames that the encoder still holds
                container.close()
                _partial(path).replace(path)
        except (OSError, FFmpegError) as error:
            raise _not_writable(self._out, error) from error
        return [path for path, _, _ in self._videos.values()]

    def abandon(self) -> None:
        """Removes the unfinished videos."""
        for path, container, _ in self._videos.values():
            with contextlib.suppress(OSError, FFmpegError):
                container.close()
            _partial(path).unlink(missing_ok=True)


PictureWriter = PictureFolders | VideoFiles


def make_writer(out: Path, *, fps: float) -> PictureWriter:
    """Chooses how pictures are written: a video where ``out`` ends in .mp4, else a folder.

    Args:
        out: File or folder.
        fps: Frames per second of a video.

    Raises:
        F3rmError: If ``out`` has the ending of a picture or another kind of video.
    """
    out = out.expanduser().absolute()
    if out.suffix.lower() in _OTHER_SUFFIXES:
        msg = f"--out must be a folder for PNG files or a file ending in .mp4, got {out.name!r}."
        raise F3rmError(msg)
    return VideoFiles(out, fps) if out.suffix.lower() == VIDEO else PictureFolders(out)


def _partial(path: Path) -> Path:
    """Returns where a video is written until it is complete; one file per process."""
    return path.with_name(f".{path.stem}.{os.getpid()}.tmp{path.suffix}")


def _not_writable(out: Path, error: Exception) -> F3rmError:
    return F3rmError(f"Cannot write to {str(out)!r}: {error}. Give another --out.")
