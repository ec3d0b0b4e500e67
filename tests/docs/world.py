"""The folder that the pages' commands run in: the files that they name, small."""

import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path

import av
import numpy as np
import torch
from torchvision.models import resnet50

from tests.backbones import random_clip as clip, random_dino as dino, random_vae as vae
from tests.backbones.llava_checkpoint import write_llava
from tests.docs.pages import ROOT
from tests.scene_fixtures import write_image

HUB: Mapping[str, dino.DinoFamily] = {
    "facebook/dino-vits8": "dino",
    "facebook/dinov2-base": "dinov2",
    "facebook/dinov2-large": "dinov2",
}
CLIP_HUB = "timm/vit_large_patch14_clip_336.openai"
CLIP_CONFIG = "ViT-L-14-336-quickgelu"
_COMMIT = "0" * 40


def write_hub(home: Path) -> Path:
    """Writes small checkpoints under the hub's names; returns open_clip's small configuration."""
    for name, family in HUB.items():
        patch = 8 if family == "dino" else 14
        dino.write_random_checkpoint(
            _snapshot(home, name), family=family, width=16, layers=2, patch_size=patch
        )
    folder = clip.write_random_checkpoint(_snapshot(home, CLIP_HUB), layers=2, image_size=28)
    config = json.loads((folder / "open_clip_config.json").read_text())["model_cfg"]
    file = home / "configs" / f"{CLIP_CONFIG}.json"
    file.parent.mkdir()
    file.write_text(json.dumps(config))
    return file


def _snapshot(home: Path, name: str) -> Path:
    repository = home / "hub" / f"models--{name.replace('/', '--')}"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text(_COMMIT)
    return repository / "snapshots" / _COMMIT


def write_folder(folder: Path) -> None:
    """Writes what the pages name and do not make: a checkout, photographs, videos, weights."""
    link_checkout(folder)
    for number, name in enumerate(("train/cat/0", "train/cat/1", "train/dog/0", "train/dog/1")):
        write_image(folder / "photos" / f"{name}.png", 64, 64, seed=number)
        write_image(folder / "photos" / f"{name.replace('train', 'test')}.png", 64, 64, seed=number)
    for subject in ("01", "02"):
        images = f"algonauts/subj{subject}/training_split/training_images"
        write_image(folder / images / "0.png", 56, 56)
    vae.write_random_autoencoder(folder / "checkpoint")
    (folder / "clips").mkdir()
    _write_video(folder / "clips" / "moving.mkv")
    (folder / "clips" / "broken.mp4").write_bytes(b"no video")  # for --on-error record
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        torch.save(resnet50().state_dict(), folder / "weights.pth")
    dino.write_random_checkpoint(folder / "checkpoints" / "dino", width=16, layers=2)
    write_llava(folder / "checkpoints" / "robopoint")
    camera = {"camera_to_world": np.eye(4).ravel().tolist(), "fov": 50}
    path = {"render_height": 21, "render_width": 33, "camera_path": [camera] * 2}
    (folder / "path.json").write_text(json.dumps(path))


def _write_video(path: Path) -> None:
    generator = np.random.default_rng(0)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("ffv1", rate=5)
        stream.height, stream.width, stream.pix_fmt = 32, 48, "bgr0"
        for _ in range(3):
            pixels = generator.integers(0, 255, (32, 48, 3), dtype=np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(stream.encode())


def link_checkout(folder: Path) -> None:
    """Makes the files of a checkout that commands name appear in a folder."""
    for name in ("Makefile", "benchmarks", "constraints.txt", "f3rm", "pyproject.toml", "tools"):
        (folder / name).symlink_to(ROOT / name)


def copy_folder(source: Path, target: Path) -> None:
    """Copies a folder for a page that changes it."""
    shutil.copytree(source, target, symlinks=True, copy_function=_copy)


def _copy(source: str, target: str) -> str:
    if source.endswith(".pth"):  # large, and only read
        os.link(source, target)
        return target
    return str(shutil.copy2(source, target))
