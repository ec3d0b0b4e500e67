"""What an evaluation draws while it renders: the folder of pictures, and the page."""

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from f3rm.camera_render import CameraOutputs
from f3rm.errors import StrPath
from f3rm.evaluation.commands import next_commands, splat_commands
from f3rm.evaluation.held_out import ScoredView
from f3rm.evaluation.page import PageViews, page_html
from f3rm.evaluation.pictures import PictureFolder
from f3rm.evaluation.report import Evaluation
from f3rm.evaluation.subject import Subject
from f3rm.evaluation.vocabulary import Speaker, Vocabulary
from f3rm.scene.splat.loading import LoadedSplat
from f3rm.synthetic.truth import SceneTruth


@dataclass(frozen=True)
class Drawing:
    """The folder and the page that an evaluation draws."""

    folder: PictureFolder
    page: PageViews

    @classmethod
    def open(
        cls,
        pictures: StrPath,
        subject: Subject,
        *,
        truth: SceneTruth | None,
        vocabulary: Vocabulary | None,
        speaker: Speaker | None,
        queries: Sequence[str],
    ) -> "Drawing":
        """Creates the folder, before views are rendered: what cannot be written fails at once.

        Args:
            pictures: The folder.
            subject: What is evaluated.
            truth: The dataset's truth; None for photographs of one's own.
            vocabulary: The phrases that panels show; None for none.
            speaker: What answers; None where the field has no language.
            queries: Phrases that the page asks; if empty, names of objects in its views, and one
                that the scene lacks.

        Raises:
            F3rmError: If the folder cannot be written to, a text tower cannot be loaded, or a query
                cannot be asked.
        """
        folder = PictureFolder(pictures, vocabulary or Vocabulary((), (), ()))
        return cls(folder, PageViews(subject, truth, speaker=speaker, queries=queries))

    def add(
        self, index: int, photograph: Tensor, outputs: CameraOutputs, view: ScoredView | None
    ) -> None:
        """Draws a rendered view; see :data:`f3rm.evaluation.held_out.Watch`."""
        self.page.add(index, photograph, outputs)
        if view is not None:
            self.folder.add(view)

    def finish(self, subject: Subject, found: Evaluation, *, device: str) -> None:
        """Writes the overview and the page.

        Args:
            subject: What is evaluated.
            found: Its numbers.
            device: ``cpu`` or ``cuda``, for the commands on the page.

        Raises:
            F3rmError: If a file cannot be written.
        """
        self.folder.write_overview()
        where = self.folder.path
        run = subject.run
        if isinstance(run, LoadedSplat):
            commands = splat_commands(run, pictures=where)
        else:
            video = where / "pca.mp4"
            commands = next_commands(run.config_path, pictures=where, video=video, device=device)
        text = page_html(
            self.page.views,
            found.to_dict(),
            "\n".join(commands),
            answers=self.page.answers,
            cloud=self.page.data(),
        )
        self.folder.write_page(text)
