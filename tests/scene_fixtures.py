"""Small datasets on disk, in the formats that Nerfstudio reads."""

import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from f3rm.synthetic import splat as true_splat
from f3rm.synthetic.layouts import SceneKind
from f3rm.synthetic.render import Raycaster, RaycastError
from f3rm.synthetic.scenes import SceneSettings, make_scene


def need_raycaster() -> None:
    """Skips tests, saying why, where Open3D's system libraries are missing."""
    try:
        Raycaster([])
    except RaycastError as error:
        pytest.skip(str(error))


def write_scene(folder: Path, kind: SceneKind = "tabletop", *, seed: int = 0, **sizes: int) -> Path:
    """Writes a small generated dataset with truth.

    Args:
        folder: Where to.
        kind: What sort of scene.
        seed: Draws it.
        sizes: ``views``, ``height`` and ``width``, if others than 4, 48 and 64.
    """
    need_raycaster()
    settings = SceneSettings(seed=seed, **{"views": 4, "height": 48, "width": 64, **sizes})
    make_scene(folder, kind, settings)
    return folder


def write_splat_scene(
    folder: Path, kind: SceneKind = "tabletop", *, gaussians: int = 40_000, **sizes: int
) -> tuple[Path, Path]:
    """Writes a small generated dataset with truth, and its true splat; returns both.

    Args:
        folder: Where to.
        kind: What sort of scene.
        gaussians: How many the splat has.
        sizes: ``views``, ``height`` and ``width``.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(true_splat, "NUM_GAUSSIANS", gaussians)
        data = write_scene(folder, kind, **sizes)
        return data, true_splat.write_splat(data, kind, SceneSettings(seed=0, **sizes))


def write_image(path: Path, height: int, width: int, seed: int = 0) -> None:
    """Writes a smooth colourful photograph."""
    generator = np.random.default_rng(seed)
    coarse = generator.integers(0, 255, (4, 4, 3), dtype=np.uint8)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC).save(path)


def pose(number: int, total: int) -> list[list[float]]:
    """Camera-to-world of a camera on a circle that looks at the origin (OpenGL axes)."""
    angle = 2 * np.pi * number / total
    back = np.array([np.cos(angle), np.sin(angle), 0.4])
    eye = 2 * back
    back = back / np.linalg.norm(back)
    right = np.cross([0, 0, 1.0], back)
    right /= np.linalg.norm(right)
    matrix = np.eye(4)
    matrix[:3] = np.stack([right, np.cross(back, right), back, eye], axis=-1)
    return matrix.tolist()


def write_dataset(
    root: Path, sizes: Mapping[str, tuple[int, int]], *, downscaled: int = 1, masks: bool = False
) -> Path:
    """Writes images and transforms.json.

    Args:
        root: The dataset folder.
        sizes: Height and width by image name; a name with "eval" in it is an evaluation image.
        downscaled: Also write a folder ``images_N`` with images that many times smaller.
        masks: Also write masks that keep the left half.
    """
    frames = []
    for number, (name, (height, width)) in enumerate(sizes.items()):
        path = root / "images" / name
        write_image(path, height, width, seed=number)
        frame = {
            "file_path": f"images/{name}",
            "transform_matrix": pose(number, len(sizes)),
            "fl_x": width * 1.2,
            "fl_y": width * 1.2,
            "cx": width / 2,
            "cy": height / 2,
            "w": width,
            "h": height,
        }
        if downscaled > 1:
            write_image(
                root / f"images_{downscaled}" / name,
                height // downscaled,
                width // downscaled,
                seed=number,
            )
        if masks:
            mask = np.zeros((height, width), dtype=np.uint8)
            mask[:, : width // 2] = 255
            (root / "masks").mkdir(exist_ok=True)
            Image.fromarray(mask).save(root / "masks" / f"{path.stem}.png")
            frame["mask_path"] = f"masks/{path.stem}.png"
        frames.append(frame)
    content = {"camera_model": "OPENCV", "frames": frames}
    (root / "transforms.json").write_text(json.dumps(content), encoding="utf-8")
    return root


def write_colmap(root: Path, num_images: int, height: int, width: int) -> Path:
    """Writes images and a COLMAP text model, as the COLMAP dataparser reads them."""
    sparse = root / "colmap" / "sparse" / "0"
    sparse.mkdir(parents=True)
    focal = width * 1.2
    camera = f"1 PINHOLE {width} {height} {focal} {focal} {width / 2} {height / 2}\n"
    (sparse / "cameras.txt").write_text(camera)
    lines = []
    for number in range(num_images):
        name = f"frame_{number:03d}.png"
        write_image(root / "images" / name, height, width, seed=number)
        angle = np.pi * number / num_images
        rotation = f"{np.cos(angle / 2)} 0 {np.sin(angle / 2)} 0"
        lines.append(f"{number + 1} {rotation} 0 0 2 1 {name}\n\n")
    (sparse / "images.txt").write_text("".join(lines))
    (sparse / "points3D.txt").write_text("1 0.0 0.1 0.2 255 0 0 0.5 1 0\n2 1 1 1 0 255 0 0.5 1 0\n")
    return root
