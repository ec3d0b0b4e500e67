"""``f3rm render``: pictures and videos of a trained run and its answers to queries."""

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import torch
import tyro

import f3rm
from f3rm.errors import F3rmError, check_number
from f3rm.language.questions import Question
from f3rm.language.relevancy import Rule
from f3rm.scene import Found, Scene
from f3rm.scene.drawing import Scale, draw_images
from f3rm.scene.images import ANSWERING, ASKING, check_outputs
from f3rm.scene.paths import CameraPath, check_views, choose_path
from f3rm.scene.writing import PictureWriter, make_writer
from f3rm.scripts.asking import Asked, how_asked
from f3rm.scripts.command import Command
from f3rm.store.progress import track

_NO_PICTURE = ("features", "hidden")
_DEPTH_SHARE = 0.99


@dataclass
class Render(Command):
    """Render views of a trained run: colours, features, and where a query matches.

    All frames share one colour scale, which the legend explains. docs/rendering.md has examples.
    """

    config: tyro.conf.Positional[Path]
    """The run's config.yml, or its folder; or the .ply of a splat with features."""
    query: str = ""
    """What to look for, with semicolons between several queries: "red mug; bowl"."""
    like: str = ""
    """Examples in place of words: VIEW@X,Y is a pixel of a photograph; see f3rm find --help."""
    compete: bool = True
    """Whether a pixel that matches several queries belongs to the best one only."""
    output: str = ""
    """With commas: rgb, depth, accumulation, pca, similarity, composite, mask, labels. Without it
    composite if there is a query, else rgb."""
    views: str = "eval"
    """eval or train for the cameras of photographs, interpolate for a path between the held-out
    ones, or a camera path (.json) saved in Nerfstudio's viewer."""
    out: Path = Path("renders")
    """A folder for PNG files, or a file ending in .mp4."""
    between: int = 10
    """Frames from one camera to the next with --views interpolate."""
    fps: float = 24.0
    """Frames per second of a video."""
    downscale: float = 1.0
    """Factor by which the pictures are smaller than the photographs."""
    threshold: float | None = None
    """Least score of a matching pixel; without it chosen from the whole scene's scores."""
    low: float = 0.0
    """The score that gets the first colour."""
    high: float = 1.0
    """The score that gets the last colour."""
    negatives: str | None = None
    """Phrases with semicolons that a query must beat; without it object, things, stuff, texture."""
    rule: Rule | None = None
    """lerf is relevancy to the negatives; scene, also without it, contrasts with the scene's mean
    feature, too; backbone counts deviations from what it gives anywhere, if calibrated."""
    head: str | None = None
    """The feature head; without it the first that has a text tower."""
    language: str | None = None
    """Name or .safetensors file of a language, to ask a head that has no text tower, as RADIO's."""
    legend: bool = True
    """Whether to add a legend below the pictures."""
    data: Path | None = None
    """The dataset, if it was moved since training."""
    device: str = "auto"
    """auto, cpu, cuda or cuda:N."""

    def run(self) -> None:
        """Renders, then prints thresholds and files.

        Raises:
            F3rmError: If it cannot be done; the message says what to do.
        """
        asked = Asked.read(self.query, self.like)
        options = how_asked(self.head, self.rule, self.negatives)
        outputs, writer = self._outputs(asked), make_writer(self.out, fps=self.fps)
        scene = f3rm.load(self.config, data=self.data, device=self.device)
        scene.language = self.language
        if self.head is not None:
            scene.head(self.head)  # before surfaces, which take long
        path = choose_path(scene, self.views, between=self.between, downscale=self.downscale)
        questions = asked.questions(scene, **options) if set(outputs) & ASKING else []
        scale = self._scale(scene, path, outputs, questions)
        with ExitStack() as if_interrupted:  # by an error or Ctrl-C
            if_interrupted.callback(writer.abandon)
            self._write(scene, path, outputs, questions, scale, writer)
            if_interrupted.pop_all()
        for place in writer.close():
            print(f"Wrote {place}")

    def _outputs(self, asked: Asked) -> tuple[str, ...]:
        names = [name.strip() for name in self.output.split(",") if name.strip()]
        outputs = check_outputs(names or ["composite" if asked else "rgb"], asked=bool(asked))
        for name in outputs:
            if name in _NO_PICTURE:
                msg = f"The output {name!r} is no picture. Scene.render returns it in Python."
                raise F3rmError(msg)
        check_views(self.views, between=self.between, downscale=self.downscale)
        check_number("--fps", self.fps, above=0)
        if self.high <= self.low:
            raise F3rmError(f"--low must be below --high, got {self.low} and {self.high}.")
        return outputs

    def _scale(
        self,
        scene: Scene,
        path: CameraPath,
        outputs: tuple[str, ...],
        questions: Sequence[Question],
    ) -> Scale:
        answers: list[Found] = []
        if set(outputs) & ANSWERING:
            answers = scene.find(questions, threshold=self.threshold, compete=self.compete)
        scale = Scale(
            labels=tuple(question.label for question in questions),
            thresholds=tuple(found.threshold for found in answers),
            certainties=tuple(found.certainty for found in answers),
            low=self.low,
            high=self.high,
            farthest=_farthest(scene, path) if "depth" in outputs else 1.0,
            unit="dataset units",
        )
        for number, found in enumerate(answers):
            print(f"{scale.named(number)}{found.reason and f' ({found.reason})'}")
        return scale

    def _write(
        self,
        scene: Scene,
        path: CameraPath,
        outputs: tuple[str, ...],
        questions: Sequence[Question],
        scale: Scale,
        writer: PictureWriter,
    ) -> None:
        cameras = scene.frames.get("dataset").cameras_from_scene(path.cameras)
        numbers = track(range(len(path.names)), total=len(path.names), label="views", show=True)
        for number in numbers:
            images = scene.render(
                cameras[number],
                outputs,
                query=questions or None,
                compete=self.compete,
                thresholds=scale.thresholds or None,
                head=self.head,
            )
            writer.add(path.names[number], draw_images(images, scale, legend=self.legend))


def _farthest(scene: Scene, path: CameraPath) -> float:
    """Returns a depth that nearly all surface points are nearer than, seen from any camera."""
    eyes = path.cameras.camera_to_worlds[:, :, 3]
    cells = scene.cells.positions
    if not len(cells):
        return 1.0
    sample = cells[:: max(1, len(cells) // 2048)]  # every pair of point and camera has a distance
    distances = torch.cdist(sample.double(), eyes.double()).flatten()
    per_unit = scene.frames.get("dataset").scene_per_unit
    return float(distances.quantile(_DEPTH_SHARE)) / per_unit
