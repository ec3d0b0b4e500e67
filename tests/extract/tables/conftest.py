"""Small images, videos and models that the tests of this room share."""

from collections.abc import Callable
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image

from tests.backbones import random_clip as clip, random_dino as dino

PATCH = 14


def pixels_of(size: tuple[int, int], seed: int) -> np.ndarray:
    """Random colours that a JPEG or a video would keep: one per 8 x 8 block."""
    cells = (-(-size[0] // 8), -(-size[1] // 8), 3)
    blocks = np.random.default_rng(seed).integers(0, 256, cells, dtype=np.uint8)
    return blocks.repeat(8, axis=0).repeat(8, axis=1)[: size[0], : size[1]]


@pytest.fixture
def write_images(tmp_path: Path) -> Callable[..., list[Path]]:
    """Writes images and returns their paths."""

    def write(
        names: list[str], size: tuple[int, int] = (28, 42), folder: Path | None = None
    ) -> list[Path]:
        root = folder or tmp_path / "images"
        for seed, name in enumerate(names):
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels_of(size, seed)).save(root / name)
        return [root / name for name in names]

    return write


@pytest.fixture
def write_video(tmp_path: Path) -> Callable[..., Path]:
    """Writes a video whose frame number n has the colour n * 20, without loss."""

    def write(name: str, num_frames: int, size: tuple[int, int] = (32, 48)) -> Path:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        with av.open(str(path), "w") as container:
            stream = container.add_stream("ffv1", rate=5)
            stream.height, stream.width, stream.pix_fmt = *size, "bgr0"
            for number in range(num_frames):
                frame = np.full((*size, 3), 20 * number, dtype=np.uint8)
                packets = stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24"))
                container.mux(packets)
            container.mux(stream.encode())
        return path

    return write


@pytest.fixture(scope="session")
def dinov2_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A DINOv2 of width 32, 3 blocks, 4 heads, patch 14."""
    folder = tmp_path_factory.mktemp("dinov2")
    return dino.write_random_checkpoint(
        folder, family="dinov2", width=32, patch_size=PATCH, image_size=56
    )


@pytest.fixture(scope="session")
def clip_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A QuickGELU CLIP of width 64, patch 14, 32 channels."""
    folder = tmp_path_factory.mktemp("clip")
    clip.write_random_checkpoint(folder, seed=3, quick_gelu=True)
    return folder
