"""``f3rm export``: writes a trained scene, or the instances of a query, to files."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal

import numpy as np
import tyro
from numpy import ndarray

from f3rm.errors import check_number
from f3rm.language.questions import Question
from f3rm.language.relevancy import Rule
from f3rm.scene.export.features import FEATURE_SUFFIXES, export_features
from f3rm.scene.export.files import CLOUD_SUFFIXES, MESH_SUFFIXES, ExportError, check_file
from f3rm.scene.export.mesh import Meshing, export_mesh
from f3rm.scene.export.objects import BOX_SUFFIXES, export_boxes, export_object, metres_per_unit
from f3rm.scene.export.points import Colour, Look, Sampling, export_points
from f3rm.scene.export.splats import export_splat
from f3rm.scene.found import Found
from f3rm.scene.frames import FrameName
from f3rm.scene.opening import load
from f3rm.scene.scene import Scene
from f3rm.scripts.asking import Asked, how_asked
from f3rm.scripts.command import Command

Kind = Literal["points", "features", "object", "mesh", "boxes", "splat"]

_SUFFIXES: dict[Kind, tuple[str, ...]] = {
    "points": CLOUD_SUFFIXES,
    "features": FEATURE_SUFFIXES,
    "object": CLOUD_SUFFIXES,
    "mesh": MESH_SUFFIXES,
    "boxes": BOX_SUFFIXES,
    "splat": CLOUD_SUFFIXES,
}


@dataclass
class Export(Command):
    """Write a trained scene, or the part of it that matches a query, to files for other programs.

    - points: all surfaces as a coloured point cloud (.ply).
    - features: points with all their feature channels (.safetensors, or plain .npy).
    - object: the points that match --query (.ply).
    - mesh: triangles of the scene, or of what matches --query (.ply, .obj, .glb, .stl).
    - boxes: an oriented box for every instance that matches --query (.json).
    - splat: a Gaussian on every surface point (.ply), with the features beside it.

    docs/export.md shows each.
    """

    when_interrupted: ClassVar[str] = "Stopped. Nothing was written."

    config: tyro.conf.Positional[Path]
    """The run's config.yml, or its folder; or the .ply of a splat with features."""
    kind: tyro.conf.Positional[Kind]
    """Kind of the file's content."""
    out: Path
    """The file."""
    query: str | None = None
    """What to look for, with semicolons between several queries: "red mug; bowl"."""
    like: str = ""
    """Examples in place of words: VIEW@X,Y is a pixel of a photograph; see f3rm find --help."""
    compete: bool = True
    """Of object and boxes: whether what matches several queries belongs to the best one only."""
    threshold: float | None = None
    """Least score of a point that matches the query; without it chosen from the scene's scores."""
    rule: Rule | None = None
    """How words are scored; see f3rm find --help."""
    head: str | None = None
    """The feature head, where the run has several; without it the first that fits."""
    language: str | None = None
    """Name or .safetensors file of a language, to ask a head that has no text tower, as RADIO's."""
    colour: Colour = "rgb"
    """Of points and object: the photographs' colours, the PCA of the features, or the score."""
    frame: FrameName = "dataset"
    """Frame of all numbers: dataset (that of transforms.json), metres (where the dataset gives its
    scale), or nerfstudio (the run's own)."""
    rays: int = Sampling.rays
    """Of points, features, object and splat: pixels to render; most give a point."""
    spacing: float | None = None
    """Of points, features, object and splat: average the points in cells of this size."""
    voxel: float | None = None
    """Of a mesh: edge of its voxels; without it derived from the size of the object or scene."""
    views: int = Meshing.views
    """Of a mesh: largest number of training views whose depth is used."""
    height: int = Meshing.height
    """Of a mesh: largest number of rows that they are rendered with."""
    data: Path | None = None
    """The dataset, if it was moved since training; of a .ply always."""
    device: str = "auto"
    """auto, cpu, cuda or cuda:N."""

    def run(self) -> None:
        """Writes the file, then prints its size and frame.

        Raises:
            F3rmError: If it cannot be done; the message says what to do.
        """
        asked = Asked.read(self.query, self.like)
        if not asked and (self.kind in ("object", "boxes") or self.colour == "similarity"):
            raise ExportError(
                f"{self.kind} needs a query, got none. Give one with --query or --like."
            )
        check_file(self.out, _SUFFIXES[self.kind], what=self.kind)  # opening the run takes long
        check_number("--rays", self.rays, above=0)
        check_number("--spacing", self.spacing, above=0)
        scene = load(self.config, data=self.data, device=self.device, show_progress=True)
        scene.language = self.language
        # The head of other colours may have no text tower.
        head = self.head if self.kind != "points" or self.colour == "similarity" else None
        questions = asked.questions(scene, self.frame, **how_asked(head, self.rule))
        writers: dict[Kind, Callable[[Scene, list[Question]], str]] = {
            "points": self._points,
            "features": self._features,
            "object": self._object,
            "mesh": self._mesh,
            "boxes": self._boxes,
            "splat": self._splat,
        }
        print(writers[self.kind](scene, questions))
        metres = metres_per_unit(scene, self.frame)
        unit = "" if metres is None else f"; a unit is {metres:.4g} m"
        print(f"Wrote {self.out} in the frame {self.frame!r}{unit}")

    @property
    def _sampling(self) -> Sampling:
        return Sampling(self.rays, self.spacing, self.frame)

    @property
    def _look(self) -> Look:
        return Look(self.colour, self.head)

    def _points(self, scene: Scene, questions: list[Question]) -> str:
        points = export_points(scene, self.out, self._sampling, self._look, query=questions or None)
        return f"{len(points)} points, {_extent(points.positions.numpy())}"

    def _features(self, scene: Scene, _: list[Question]) -> str:
        points = export_features(
            scene, self.out, self._sampling, head=self.head, show_progress=True
        )
        spec = scene.head(self.head).spec
        return f"{len(points)} points with the {spec.channels} channels of {spec.name}"

    def _splat(self, scene: Scene, _: list[Question]) -> str:
        points = export_splat(scene, self.out, self._sampling)
        return f"{len(points)} Gaussians, {_extent(points.positions.numpy())}"

    def _object(self, scene: Scene, questions: list[Question]) -> str:
        answers = export_object(
            scene,
            self.out,
            self._sampling,
            self._look,
            query=questions,
            threshold=self.threshold,
            compete=self.compete,
        )
        return _counted(answers)

    def _mesh(self, scene: Scene, questions: list[Question]) -> str:
        mesh = export_mesh(
            scene,
            self.out,
            Meshing(self.voxel, self.views, self.height, self.frame),
            query=questions or None,
            threshold=self.threshold,
            show_progress=True,
        )
        return f"{len(mesh.triangles)} triangles, {_extent(mesh.vertices)}"

    def _boxes(self, scene: Scene, questions: list[Question]) -> str:
        answers = export_boxes(
            scene,
            self.out,
            query=questions,
            threshold=self.threshold,
            compete=self.compete,
            frame=self.frame,
        )
        return _counted(answers)


def _counted(answers: list[Found]) -> str:
    return "\n".join(f"{len(found)} x {found.verdict}" for found in answers)


def _extent(positions: ndarray) -> str:
    sides = np.ptp(positions, axis=0)
    return " x ".join(f"{side:.3g}" for side in sides) + " units"
