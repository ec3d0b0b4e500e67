"""The page of an evaluation: held-out views, their features, answers and numbers in one HTML file.

Pictures are embedded, so that the file can be moved or sent alone.
"""

import base64
import html
import io
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Float32
from PIL import Image
from torch import Tensor

from f3rm.camera_render import CameraOutputs
from f3rm.colours.pca import pca_colours_from_hidden
from f3rm.evaluation.metrics import fixed_mask, iou
from f3rm.evaluation.pictures import Picture, heat_picture
from f3rm.evaluation.predictions import field_scores
from f3rm.evaluation.query_scores import MIN_PIXELS
from f3rm.evaluation.subject import Subject
from f3rm.evaluation.tables import shown
from f3rm.evaluation.vocabulary import Speaker
from f3rm.scene.casting import hidden_of
from f3rm.scene.drawing import to_picture
from f3rm.scene.splat.loading import LoadedSplat
from f3rm.synthetic.truth import SceneTruth

NUM_VIEWS = 3
NUM_QUERIES = 4

_JPEG_QUALITY = 85
_OUTLINE = (255, 255, 255)
_HEADLINES = (
    ("localisation", "Localisation: the best pixel is in the box of the object"),
    ("localisation_mask", "the same, on the object itself"),
    ("miou", "mIoU of relevancy &gt; 0.5 with the truth"),
    ("teacher_miou", "the same of the 2D teacher, picture by picture"),
    ("average_precision", "Average precision of the relevancy"),
    ("point_accuracy", "Surface points named rightly, in 3D"),
    ("feature_cosine_bilinear", "Cosine of rendered and extracted features"),
    ("feature_cosine_teacher_mean", "what the mean over all views reaches"),
    ("psnr", "PSNR of the colours in dB"),
)
_EXPLANATION = (
    "Views that the field was not trained on. Colours of an answer go from dark (not this) to "
    "yellow (this); white outlines are the truth."
)
_QUERY_COLUMNS = {
    "localisation": "localisation",
    "miou": "mIoU",
    "teacher_miou": "2D teacher's mIoU",
    "average_precision": "average precision",
}
_STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 1500px; padding: 0 1rem;
       color: #1c2024; background: #fbfbfa; }
h1 { margin-bottom: 0; } h2 { margin-top: 2.5rem; }
figure { margin: 0; } figcaption { font-size: .85rem; color: #555; }
img { width: 100%; border-radius: 4px; display: block; }
.row { display: grid; grid-template-columns: repeat(auto-fill, minmax(260px, 1fr)); gap: .8rem;
       margin-bottom: .8rem; }
table { border-collapse: collapse; } td, th { padding: .25rem .8rem; text-align: right; }
td:first-child, th:first-child { text-align: left; } tr:nth-child(even) { background: #f0f0ee; }
pre { background: #22262a; color: #eee; padding: 1rem; border-radius: 4px; overflow-x: auto; }
.scale { height: 10px; width: 260px; border-radius: 3px; }
"""


@dataclass(frozen=True)
class Answer:
    """The field's answer to one query in one view.

    Attributes:
        query: The phrase.
        scores: Relevancy in [0, 1].
        truth: The query's true mask; None where the dataset has no truth for it.
    """

    query: str
    scores: Float32[np.ndarray, "height width"]
    truth: Bool[np.ndarray, "height width"] | None


class PageViews:
    """Collects the views of the page, as HTML, while an evaluation renders them.

    Args:
        subject: What is evaluated; the page shows a few of its held-out views.
        truth: The dataset's truth; None for photographs of one's own.
        speaker: What answers; None where the field has no language.
        queries: Phrases to ask; if empty, the names that these views show most of.

    Raises:
        BackboneUnavailableError: If the head's text tower cannot be loaded.
    """

    def __init__(
        self,
        subject: Subject,
        truth: SceneTruth | None,
        *,
        speaker: Speaker | None,
        queries: Sequence[str],
    ) -> None:
        self._names, self._heads, self._truth = subject.held_out.names, subject.source.heads, truth
        count = len(self._names)
        self._shown = {round(i) for i in np.linspace(0, count - 1, min(NUM_VIEWS, count))}
        if not queries and truth is not None:
            queries = most_visible(truth, [self._names[index] for index in sorted(self._shown)])
        self._queries = queries
        self._query = None
        if speaker is not None and queries:
            self._query = speaker.embedded(queries)[1]
        self.views: list[str] = []

    def add(self, index: int, photograph: Tensor, outputs: CameraOutputs) -> None:
        """Writes a rendered view as HTML if the page shows it.

        Args:
            index: The view's place among the held-out views.
            photograph: Its photograph in [0, 1], shape (height, width, 3 or 4).
            outputs: Its render, with hidden vectors.
        """
        if index not in self._shown:
            return
        name, hidden = self._names[index], hidden_of(outputs)
        seen = None if self._truth is None else self._truth.view(name)
        height, width = hidden.shape[:2] if seen is None else seen.ids.shape
        answers: list[Answer] = []
        if self._query is not None:
            scores = field_scores(hidden, self._query, (height, width))
            known = {} if self._truth is None else {q.text: q.ids for q in self._truth.queries}
            for query, score in zip(self._queries, scores, strict=True):
                mask = seen.mask(known[query]) if seen is not None and query in known else None
                answers.append(Answer(query, score, mask))
        head = next(iter(self._heads.values()))
        pca = pca_colours_from_hidden(hidden, head.weight, head.pca)
        pictures = [to_picture(x, (height, width)) for x in (photograph, outputs["rgb"], pca)]
        self.views.append(view_html(name, pictures, answers))


def most_visible(truth: SceneTruth, names: Sequence[str]) -> list[str]:
    """Returns the queries that cover the most pixels of some views, largest first.

    The smallest area over the views counts, so that a chosen query is seen in all of them; the
    total decides between queries that some view does not show at all.

    Args:
        truth: The scene.
        names: ``file_path`` of the views.
    """
    views = [truth.view(name) for name in names]
    areas: dict[str, float] = {}
    for query in truth.queries:
        pixels = [int(view.mask(query.ids).sum()) for view in views]
        areas[query.text] = min(pixels) + 0.01 * sum(pixels)
    return sorted(areas, key=lambda text: -areas[text])[:NUM_QUERIES]


def page_html(views: Sequence[str], metrics: Mapping[str, Any], commands: str) -> str:
    """Returns the page as HTML.

    Args:
        views: The views, each as :func:`view_html` writes it.
        metrics: The evaluation's numbers, as its JSON has them.
        commands: Shell commands to continue with.
    """
    return "\n".join(
        [
            '<!doctype html><html lang="en"><head><meta charset="utf-8">',
            f"<title>f3rm</title><style>{_STYLE}</style></head><body>",
            "<h1>A scene that you can ask</h1>",
            f"<p>{_EXPLANATION}</p>",
            *views,
            "<h2>Measured on all held-out views</h2>",
            _headline_table(metrics),
            _query_table(metrics.get("queries") or []),
            "<h2>Go on</h2>",
            f"<pre>{html.escape(commands)}</pre>",
            "</body></html>",
        ]
    )


def view_html(name: str, pictures: Sequence[Picture], answers: Sequence[Answer]) -> str:
    """Returns one view as HTML.

    Args:
        name: The photograph's ``file_path``.
        pictures: Photograph, render, and PCA colours of the features.
        answers: One per query.
    """
    captions = ("photograph", "rendered colours", "rendered features (PCA)")
    shown = "".join(map(_figure, pictures, captions))
    asked = "".join(_answer_figure(pictures[1], answer) for answer in answers)
    rows = [f'<div class="row">{row}</div>' for row in (shown, asked) if row]
    return f"<h2>{html.escape(Path(name).name)}</h2>" + "".join(rows)


def _answer_figure(render: Picture, answer: Answer) -> str:
    picture = heat_picture(render, answer.scores)
    words = f"“{html.escape(answer.query)}”"
    if answer.truth is not None and answer.truth.sum() >= MIN_PIXELS:
        picture[outline(answer.truth)] = _OUTLINE
        words += f": IoU {iou(fixed_mask(answer.scores), answer.truth):.2f}"
    elif answer.truth is not None:
        words += ": not in this view"
    return _figure(picture, words)


def outline(mask: Bool[np.ndarray, "height width"]) -> Bool[np.ndarray, "height width"]:
    """Returns the pixels of a mask with one of their four neighbours outside of it."""
    padded = np.pad(mask, 1, mode="edge")
    inside = padded[:-2, 1:-1] & padded[2:, 1:-1] & padded[1:-1, :-2] & padded[1:-1, 2:]
    return mask & ~inside


def _figure(picture: Picture, caption: str) -> str:
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, "JPEG", quality=_JPEG_QUALITY)
    data = base64.b64encode(buffer.getvalue()).decode("ascii")
    source = f'<img alt="{caption}" src="data:image/jpeg;base64,{data}">'
    return f"<figure>{source}<figcaption>{caption}</figcaption></figure>"


def _headline_table(metrics: Mapping[str, Any]) -> str:
    rows = [
        f"<tr><td>{label}</td><td>{metrics[key]:.3f}</td></tr>"
        for key, label in _HEADLINES
        if isinstance(metrics.get(key), int | float)
    ]
    return f"<table>{''.join(rows)}</table>"


def _query_table(queries: Sequence[Mapping[str, Any]]) -> str:
    rows = [
        f"<tr><td>{html.escape(str(row['text']))}</td>"
        + "".join(f"<td>{shown(row.get(key), digits=2)}</td>" for key in _QUERY_COLUMNS)
        + "</tr>"
        for row in queries
    ]
    if not rows:
        return ""
    head = "".join(f"<th>{label}</th>" for label in ("query", *_QUERY_COLUMNS.values()))
    return f"<h3>Per query</h3><table><tr>{head}</tr>{''.join(rows)}</table>"


def next_commands(config: Path, *, pictures: Path, video: Path, device: str) -> list[str]:
    """Returns the lines of a shell session that continues with a run.

    Args:
        config: The run's ``config.yml``.
        pictures: Folder for the pictures of an evaluation.
        video: File for a video.
        device: ``cpu`` or ``cuda``; for a CPU the video is shorter and smaller.
    """
    run = shown_path(config)
    render = f"ns-render interpolate --load-config {run} --pose-source train"
    if device == "cpu":
        render += " --interpolation-steps 3 --downscale-factor 4"
    return [
        *activation(),
        "# Open it in the viewer, type something and choose the output 'similarity':",
        f"ns-viewer --load-config {run}",
        "# Measure it, with pictures of every query:",
        f"f3rm eval {run} --pictures {shown_path(pictures)}",
        "# Render a video of its features (needs ffmpeg):",
        f"{render} --rendered-output-names feature_pca --output-path {shown_path(video)}",
    ]


def splat_commands(splat: LoadedSplat, *, pictures: Path) -> list[str]:
    """Returns the lines of a shell session that continues with a splat.

    Args:
        splat: The splat.
        pictures: Folder for the pictures of an evaluation.
    """
    named = f"{shown_path(splat.config_path)} --data {shown_path(splat.data)}"
    return [
        *activation(),
        "# Measure it, with pictures of every query:",
        f"f3rm eval {named} --pictures {shown_path(pictures)}",
        "# Render pictures of its features:",
        f"f3rm render {named} --outputs pca --out {shown_path(pictures / 'pca')}",
    ]


def activation() -> list[str]:
    """Returns the lines that activate this virtual environment; none if it is active.

    Python started by its path, as ``make demo`` does, runs without its environment being active.
    """
    if os.environ.get("VIRTUAL_ENV") or sys.prefix == sys.base_prefix:
        return []
    script = shown_path(Path(sys.prefix) / "bin" / "activate")
    return ["# Once in this shell, so that it finds the commands below:", f"source {script}"]


def shown_path(path: Path) -> str:
    """Returns a path as one would type it: relative if it is inside the working directory."""
    here = Path.cwd()
    return str(path.relative_to(here) if path.is_relative_to(here) else path)
