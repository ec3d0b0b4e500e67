"""Trains fields of real features on photographs with annotated boxes.

The dataset's folder has ``transforms.json`` and ``boxes.json``: in ``boxes``, by the name of a
photograph, the box of each phrase, x0 y0 x1 y1 in pixels. Annotated photographs are held out.
"""

import json
import os
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path

import torch

from f3rm.errors import DatasetError
from f3rm.scripts.demo import METHOD, Demo, RunFiles, call, child_environment, train_command
from tools.real.conse import install
from tools.real.wheels import DINO, build

STEPS = 2000
BOXES, TRANSFORMS = "boxes.json", "transforms.json"
CONSE, DINOV2 = "CONSE", "DINOV2[tap=9|norm]"

Box = tuple[int, int, int, int]
"""x0, y0, x1, y1 in pixels; x1 and y1 are outside."""


@dataclass(frozen=True)
class RealRuns:
    """The trained fields.

    Attributes:
        conse: ``config.yml`` of the field that can be asked in words.
        dino: Of the field of DINOv2's features.
        boxes: Boxes by ``file_path`` and phrase.
    """

    conse: Path
    dino: Path
    boxes: dict[str, dict[str, Box]]


def read_boxes(folder: Path) -> dict[str, dict[str, Box]]:
    """Returns the annotated boxes by ``file_path`` and phrase.

    Raises:
        DatasetError: If there are none.
    """
    try:
        stored = json.loads((folder / BOXES).read_text(encoding="utf-8"))["boxes"]
    except (OSError, ValueError, KeyError) as error:
        msg = f"{str(folder)!r} must hold photographs with a {BOXES}: {error!r}."
        raise DatasetError(msg) from error
    return {
        f"images/{name}": {phrase: tuple(box) for phrase, box in boxes.items()}
        for name, boxes in stored.items()
    }


def copy_dataset(source: Path, out: Path) -> dict[str, dict[str, Box]]:
    """Copies photographs and poses, with annotated photographs held out; returns their boxes.

    Raises:
        DatasetError: If the folder has no annotated photographs.
    """
    boxes = read_boxes(source)
    content = json.loads((source / TRANSFORMS).read_text(encoding="utf-8"))
    names = [frame["file_path"] for frame in content["frames"]]
    held_out = [name for name in names if name in boxes]
    content["train_filenames"] = [name for name in names if name not in boxes]
    content |= {"val_filenames": held_out, "test_filenames": held_out}
    for name in names:
        (out / name).parent.mkdir(parents=True, exist_ok=True)
        if not (out / name).is_file():
            shutil.copyfile(source / name, out / name)
    (out / TRANSFORMS).write_text(json.dumps(content), encoding="utf-8")
    return boxes


def offer_conse(folder: Path) -> None:
    """Makes CONSE a feature type here and in the commands that are run from here."""
    install(folder)
    found = [str(folder), str(Path(__file__).parents[2])]
    sys.path[:0] = found
    before = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = os.pathsep.join([*found, *([before] if before else [])])


def train_all(source: Path, out: Path, steps: int = STEPS) -> RealRuns:
    """Builds the weights, then trains both fields; what is finished is kept.

    Raises:
        F3rmError: If a wheel is missing, the dataset cannot be used, or a command fails.
    """
    out, data = out.absolute(), out.absolute() / source.resolve().name
    build(out / "weights")
    offer_conse(out / "package")
    boxes = copy_dataset(source, data)
    weights = out / "weights"
    conse = _train(data, out / "conse", steps, CONSE, f"CONSE={weights}")
    dino = _train(data, out / "dino", steps, DINOV2, f"DINOV2={weights / DINO}")
    return RealRuns(conse, dino, boxes)


def _train(data: Path, out: Path, steps: int, feature_type: str, weights: str) -> Path:
    """Trains f3rm-lite unless that is done; returns its ``config.yml``."""
    run = RunFiles(out, out / data.name / METHOD / "run").folder
    if not list(run.glob(f"*/step-{steps - 1:09d}.ckpt")):
        demo = Demo(data, out, steps, feature_type, (weights,))
        device = "cuda" if torch.cuda.is_available() else "cpu"
        command = train_command(demo, data=data, out=out, device=device)
        call(command, child_environment(device))
    return run / "config.yml"
