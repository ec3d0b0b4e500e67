"""Renders TINYCLIP's training pictures: one file per scene, made by several processes."""

import multiprocessing
import os
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from jaxtyping import UInt8
from PIL import Image
from scipy import ndimage

from f3rm.store.progress import track
from f3rm.synthetic.layouts import SceneKind, draw_layout
from f3rm.synthetic.objects import Description
from f3rm.synthetic.render import SceneRenderer
from f3rm.synthetic.scenes import SceneSettings, image_name, make_scene
from f3rm.synthetic.truth import SceneTruth
from tools.tinyclip.clutter import draw_clutter, draw_view

HEIGHT, WIDTH = 240, 320
VIEWS_PER_SCENE = 6
HELD_OUT_FROM = 1_000_000
"""Scenes from this seed on are for measuring; they also hold the pairs that training leaves out."""

_SAMPLES = 2
_LEAST_PIXELS = 14
"""A thing that is thinner than this in a picture is not aimed at."""


@dataclass(frozen=True)
class ScenePictures:
    """A scene's pictures and what can be seen in them.

    Attributes:
        rgb: The pictures.
        ids: Which of the objects each pixel shows.
        names: What the objects are called, in the order of their numbers.
        things: The same as things; None for a surface.
        boxes: Of each picture, where its things are: number, top, left, height, width.
    """

    rgb: UInt8[np.ndarray, "views height width 3"]
    ids: UInt8[np.ndarray, "views height width"]
    names: tuple[str, ...]
    things: tuple[Description | None, ...]
    boxes: tuple[tuple[tuple[int, int, int, int, int], ...], ...]


def render_scenes(folder: Path, seeds: Sequence[int], *, processes: int) -> None:
    """Renders the scenes that are not there yet.

    Args:
        folder: Where the files go; made if need be.
        seeds: The scenes.
        processes: How many work at once, each with one thread.
    """
    folder.mkdir(parents=True, exist_ok=True)
    missing = [seed for seed in seeds if not _file(folder, seed).is_file()]
    context = multiprocessing.get_context("spawn")
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    with ProcessPoolExecutor(processes, mp_context=context) as pool:
        done = pool.map(partial(_render_scene, folder), missing, chunksize=4)
        for _ in track(done, total=len(missing), label="Rendering", show=True, unit="scenes"):
            pass


def load_scene(folder: Path, seed: int) -> ScenePictures:
    """Reads a rendered scene; what is in it is drawn again from its seed."""
    with np.load(_file(folder, seed), allow_pickle=False) as arrays:
        rgb, ids = arrays["rgb"], arrays["ids"]
    clutter = draw_clutter(seed, unseen=seed >= HELD_OUT_FROM)
    names = tuple(name for name, _ in clutter.spec.objects)
    boxes = tuple(_boxes(view, clutter.things) for view in ids)
    return ScenePictures(rgb, ids, names, clutter.things, boxes)


def load_generated(folder: Path, kind: SceneKind, seed: int, *, views: int) -> ScenePictures:
    """Returns a scene of ``f3rm make-scene``, made if need be: what the model is for.

    Args:
        folder: Where such datasets are kept.
        kind: What sort of scene.
        seed: Which.
        views: How many photographs of 360 x 480 pixels.
    """
    data = folder / f"{kind}-{seed}"
    make_scene(data, kind, SceneSettings(seed, views))
    truth, layout = SceneTruth.read(data), draw_layout(kind, seed)
    files = [image_name(index) for index in range(views)]
    rgb = np.stack([np.asarray(Image.open(data / file).convert("RGB")) for file in files])
    ids = np.stack([np.maximum(truth.view(file).ids, 0) for file in files]).astype(np.uint8)
    names = tuple(name for name, _ in layout.spec.objects)
    return ScenePictures(rgb, ids, names, layout.descriptions, ((),) * views)


def _boxes(
    ids: UInt8[np.ndarray, "height width"], things: Sequence[Description | None]
) -> tuple[tuple[int, int, int, int, int], ...]:
    found = ndimage.find_objects(ids.astype(np.int32) + 1)
    boxes: list[tuple[int, int, int, int, int]] = []
    for number, slices in enumerate(found):
        if slices is None or things[number] is None:
            continue
        rows, cols = slices
        height, width = rows.stop - rows.start, cols.stop - cols.start
        if min(height, width) >= _LEAST_PIXELS:
            boxes.append((number, rows.start, cols.start, height, width))
    return tuple(boxes)


def _render_scene(folder: Path, seed: int) -> None:
    clutter = draw_clutter(seed, unseen=seed >= HELD_OUT_FROM)
    renderer = SceneRenderer(clutter.spec, samples=_SAMPLES)
    rng = np.random.default_rng([seed, 78])
    views = [
        renderer.render(draw_view(rng, clutter, HEIGHT, WIDTH)) for _ in range(VIEWS_PER_SCENE)
    ]
    aside = folder / f".{seed:07d}-{os.getpid()}.npz"
    rgb = np.stack([view.rgb for view in views])
    # A ray may slip through the seam between two walls: it counts as wall, the first surface.
    ids = np.stack([np.maximum(view.ids, 0) for view in views]).astype(np.uint8)
    np.savez(aside, rgb=rgb, ids=ids)
    aside.rename(_file(folder, seed))


def _file(folder: Path, seed: int) -> Path:
    return folder / f"{seed:07d}.npz"
