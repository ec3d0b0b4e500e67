"""Photographs of a run or a splat by name, with their cameras."""

import difflib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import UInt8
from nerfstudio.cameras.cameras import Cameras
from PIL import Image, UnidentifiedImageError

from f3rm.errors import F3rmError, ImageError
from f3rm.language.active_query import shortened
from f3rm.scene.frames import FileCamera
from f3rm.scene.kept.packed import PackedScene
from f3rm.scene.run_loading import LoadedRun, Split
from f3rm.scene.splat.loading import LoadedSplat
from f3rm.store.geometry import Size
from f3rm.store.images import read_image
from f3rm.store.items import dataset_root, is_regular_file
from f3rm.store.spec import FeatureSpec

Photographed = LoadedRun | LoadedSplat | PackedScene


@dataclass(frozen=True)
class View:
    """A photograph of a run or a splat.

    Attributes:
        name: Its ``file_path`` in transforms.json.
        file: The photograph's file; the run may have been trained on smaller copies.
        split: The split that it is of.
        index: Its index there.
        known_size: Height and width of the file, if they are known without it.
    """

    name: str
    file: Path
    split: Split
    index: int
    known_size: Size | None = None

    @property
    def camera(self) -> Cameras:
        """Its camera in the scene frame, shape (1,)."""
        return self.split.cameras[self.index : self.index + 1].to("cpu")

    def file_size(self) -> Size:
        """Returns height and width of the photograph's file.

        Raises:
            ImageError: If it cannot be read.
        """
        if self.known_size is not None:
            return self.known_size
        self._check_present()
        try:
            with Image.open(self.file) as picture:
                return picture.height, picture.width
        except (OSError, UnidentifiedImageError) as error:
            msg = f"{str(self.file)!r} must be a readable photograph, got: {error}. Restore it."
            raise ImageError(msg) from error

    @property
    def size(self) -> Size:
        """Height and width of the pictures that the run was trained on."""
        return int(self.camera.height[0]), int(self.camera.width[0])

    def file_camera(self, size: Size) -> FileCamera:
        """Returns its camera, addressed by pixels of a picture of any size.

        Raises:
            DatasetError: If it is no perspective camera.
        """
        return FileCamera(self.camera, 0, size)

    def photograph(self) -> UInt8[np.ndarray, "height width 3"]:
        """Reads the photograph.

        Raises:
            ImageError: If it cannot be read.
        """
        self._check_present()
        return read_image(self.file, FeatureSpec.background)

    def _check_present(self) -> None:
        if not is_regular_file(self.file):
            raise ImageError(
                f"There is no photograph {str(self.file)!r}. Say where the dataset is with --data "
                "(data= in Python)."
            )


def views_of(run: Photographed, split: Split) -> list[View]:
    """Returns the photographs of a split."""
    root = dataset_root(run.data)
    sizes = run.file_sizes if isinstance(run, PackedScene) else {}
    return [
        View(name, root / name, split, index, sizes.get(name))
        for index, name in enumerate(split.names)
    ]


def find_view(run: Photographed, name: str) -> View:
    """Returns a photograph, of training or held out.

    Args:
        run: The run or splat.
        name: Its ``file_path``, or the file's name with or without its ending.

    Raises:
        F3rmError: If there is none, or several have that name.
    """
    views = [*views_of(run, run.train), *views_of(run, run.held_out)]
    exact = [view for view in views if view.name == name]
    alike = [view for view in views if name in (Path(view.name).name, Path(view.name).stem)]
    found = exact or alike
    if len(found) == 1:
        return found[0]
    if found:
        shown = ", ".join(view.name for view in found[:3])
        raise F3rmError(f"{len(found)} views are called {name!r}. Give the path of one: {shown}.")
    name = shortened(name)
    known = [part for view in views for part in (view.name, Path(view.name).name)]
    near = difflib.get_close_matches(name, known, n=1)
    hint = f"Did you mean {near[0]!r}?" if near else f"The first of {len(views)} is {known[0]!r}."
    raise F3rmError(f"There is no view {name!r} in the dataset. {hint}")
