"""The quality of features lifted onto splats of generated scenes, beside trained fields, as tables.

``python benchmarks/splat_table.py --kinds tabletop --seeds 0 1 2 --out outputs/splats`` makes each
scene with its true splat, lifts features onto it, with and without ``--refine`` steps, and runs the
evaluation of ``f3rm eval``. ``--trained outputs/quality`` adds the fields that
``quality_table.py`` trained on the same scenes. Means are pooled over seeds; what is finished is
kept. Seconds are those of ``f3rm attach`` after the extraction of features.
"""

import argparse
import json
import os
import shutil
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, get_args

import numpy as np
import torch

from f3rm import load
from f3rm.evaluation.evaluate import evaluate_run
from f3rm.evaluation.means import mean_over
from f3rm.scene.attach import AttachSettings, LiftSettings, attach_to_splat
from f3rm.synthetic.layouts import SceneKind
from f3rm.synthetic.scenes import SceneSettings, make_scene
from f3rm.synthetic.splat import SPLAT_FILE, write_splat

ROWS = {
    "localisation": "localisation: best pixel in the object's box",
    "localisation_mask": "localisation: best pixel on the object's mask",
    "miou": "mIoU, relevancy > 0.5",
    "miou_minmax": "mIoU by LangSplat's rule",
    "average_precision": "average precision",
    "presence_auroc": "present above absent (AUROC), in a view",
    "feature_cosine_bilinear": "cosine of rendered and extracted features",
    "consistency": "one point in several views (cosine)",
    "point_accuracy": "surface points whose best label is true",
    "find_recall": "find: true objects with a box of IoU 0.25",
    "find_precision": "find: instances that are such a box",
    "find_box_iou": "find: box IoU",
    "psnr": "PSNR of the colours, dB",
}
"""What the table shows, and what it is called."""
TIMES = {
    "attach_seconds": "seconds to lift",
    "attach_cpu_seconds": "the same, of all cores together",
    "first_seconds": "seconds to open and find once",
    "later_seconds": "a later find, s",
    "load": "load of the machine after lifting",
}


def measure(
    kind: SceneKind, seed: int, refine: int, arguments: argparse.Namespace
) -> dict[str, Any]:
    """Lifts features onto a scene's splat and evaluates them, unless that is done."""
    folder = Path(arguments.out).absolute() / f"{kind}-{seed}" / f"refine-{refine}"
    lifted, result = folder / "lifted.json", folder / "eval.json"
    if result.is_file():
        return json.loads(result.read_text())
    data = _dataset(kind, seed, arguments)
    ply = folder / SPLAT_FILE
    if not lifted.is_file():
        folder.mkdir(parents=True, exist_ok=True)
        shutil.copy(data / SPLAT_FILE, ply)
        lifted.write_text(json.dumps(_lift(ply, data, refine, arguments.feature_type)))
    numbers = json.loads(lifted.read_text())
    print(f"{folder}: {numbers}", file=sys.stderr, flush=True)
    if arguments.only_lift:
        return numbers
    numbers |= evaluate_run(ply, data=data, device="cpu").to_dict()
    result.write_text(json.dumps(numbers))
    print(f"{folder}: mIoU {numbers['miou']:.3f}", file=sys.stderr, flush=True)
    return numbers


def _lift(ply: Path, data: Path, refine: int, feature_type: str) -> dict[str, float]:
    for old in ply.parent.glob("*.safetensors"):
        old.unlink()
    settings = AttachSettings(feature_type)
    start = time.process_time()
    made = attach_to_splat(ply, settings, LiftSettings(refine=refine), data=data, device="cpu")
    of_all = time.process_time() - start
    return {
        "attach_seconds": made.seconds,
        "attach_cpu_seconds": of_all,
        "load": os.getloadavg()[0],
        **_asked(ply, data),
    }


def _dataset(kind: SceneKind, seed: int, arguments: argparse.Namespace) -> Path:
    height, width = arguments.size
    settings = SceneSettings(seed, arguments.views, height, width)
    folder = Path(arguments.datasets or Path(arguments.out) / "datasets").absolute()
    data = folder / f"{kind}-{seed}-{arguments.views}x{height}x{width}"
    make_scene(data, kind, settings)
    if not (data / SPLAT_FILE).is_file():
        write_splat(data, kind, settings)
    return data


def _asked(ply: Path, data: Path) -> dict[str, float]:
    names = ["ball", "box", "mug", "bottle"]
    start = time.perf_counter()
    scene = load(str(ply), data=str(data), device="cpu")
    scene.find("cone")
    first = time.perf_counter() - start
    seconds: list[float] = []
    for name in names:
        start = time.perf_counter()
        scene.find(name)
        seconds.append(time.perf_counter() - start)
    return {"first_seconds": first, "later_seconds": float(np.median(seconds))}


def markdown(kind: str, columns: dict[str, Sequence[dict[str, Any]]]) -> str:
    """Returns a table: a row per number, its pooled mean in each column."""
    lines = [f"| {kind} | {' | '.join(columns)} | 2D teacher |", f"|{'---|' * (len(columns) + 2)}"]
    fields = next(iter(columns.values()))
    for name, label in ROWS.items():
        cells = [_pooled(name, found) for found in columns.values()]
        cells.append(_pooled(f"teacher_{name}", fields))
        lines.append(f"| {label} | {' | '.join(cells)} |")
    for name, label in TIMES.items():
        cells = [_plain(name, found) for found in columns.values()]
        lines.append(f"| {label} | {' | '.join(cells)} | |")
    lines.append("")
    for name in ("miou", "localisation_mask"):
        each = {who: [row[name] for row in found] for who, found in columns.items()}
        each["2D teacher"] = [row[f"teacher_{name}"] for row in fields]
        shown = [f"{who} {', '.join(f'{x:.3f}' for x in values)}" for who, values in each.items()]
        lines.append(f"{ROWS[name]}, by seed: {'; '.join(shown)}.")
    return "\n".join(lines)


def _pooled(name: str, found: Sequence[dict[str, Any]]) -> str:
    try:
        mean = mean_over(name, found)
    except KeyError:
        return ""
    if mean is not None:
        return f"{mean.value:.3f}"
    return _plain(name, found)


def _plain(name: str, found: Sequence[dict[str, Any]]) -> str:
    values = [each[name] for each in found if isinstance(each.get(name), int | float)]
    return f"{np.mean(values):.3f}" if values else ""


def main() -> None:
    """Parses the command line, measures what is missing and prints the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kinds", nargs="+", default=["tabletop"], choices=get_args(SceneKind))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument(
        "--refine", nargs="+", type=int, default=[0, 84], help="steps, a column each"
    )
    parser.add_argument("--trained", help="folder of quality_table.py with the same scenes")
    parser.add_argument("--out", default="outputs/splats", help="folder for everything")
    parser.add_argument("--datasets", help="folder of the scenes, to share them between calls")
    parser.add_argument("--feature-type", default="TINYCLIP")
    parser.add_argument("--views", type=int, default=48)
    parser.add_argument("--size", nargs=2, type=int, default=[360, 480], help="height width")
    parser.add_argument("--only-lift", action="store_true", help="lift and time, evaluate later")
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    for kind in arguments.kinds:
        columns: dict[str, Sequence[dict[str, Any]]] = {}
        for refine in arguments.refine:
            name = f"lifted, {refine} steps" if refine else "lifted"
            columns[name] = [measure(kind, seed, refine, arguments) for seed in arguments.seeds]
        if arguments.only_lift:
            continue
        if arguments.trained:
            files = [Path(arguments.trained) / f"{kind}-{seed}" for seed in arguments.seeds]
            columns["trained"] = [json.loads((f / "eval.json").read_text()) for f in files]
        print(markdown(kind, columns))


if __name__ == "__main__":
    main()
