"""The page of an evaluation: a scene to turn and click, its held-out views, answers and numbers.

Everything is embedded, so that the file can be moved or sent alone.
"""

import base64
import html
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float32
from PIL import Image
from torch import Tensor

from f3rm.camera_render import CameraOutputs
from f3rm.colours.pca import pca_colours_from_hidden
from f3rm.evaluation.cloud import SceneAnswers, cloud_json
from f3rm.evaluation.metrics import fixed_mask, iou
from f3rm.evaluation.pictures import HEAT, Picture, boxed_picture, heat_picture
from f3rm.evaluation.predictions import field_scores
from f3rm.evaluation.query_scores import MIN_PIXELS
from f3rm.evaluation.subject import Subject
from f3rm.evaluation.tables import shown
from f3rm.evaluation.vocabulary import Speaker
from f3rm.scene.casting import hidden_of
from f3rm.scene.drawing import to_picture
from f3rm.synthetic.truth import SceneTruth

NUM_VIEWS = 3
NUM_QUERIES = 4

TIMES = "<!-- times of other commands -->"
"""Where :func:`with_times` adds rows."""

_JPEG_QUALITY = 88
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
    "Photographs that the field was not trained on, with the boxes of what was found in 3D. Below "
    "them the answers pixel by pixel, each alone; white outlines are the truth."
)
_CLOUD = """<p>Drag to turn, use two fingers or the wheel to come nearer. Click a point: it says
what is there, and shows what is like it.</p>
<div id="cloud-buttons"></div><div id="cloud"></div><p id="cloud-answer" aria-live="polite"></p>"""
_QUERY_COLUMNS = {
    "localisation": "localisation",
    "miou": "mIoU",
    "teacher_miou": "2D teacher's mIoU",
    "average_precision": "average precision",
}
_WEB = Path(__file__).parent / "web"


@dataclass(frozen=True)
class Answer:
    """The field's answer to one query in one view.

    Attributes:
        query: The phrase.
        scores: Relevancy in [0, 1].
        truth: The query's true mask; None where the dataset has no truth for it.
        verdict: What the whole scene answers, if that is not seen in the view: ``not found``.
    """

    query: str
    scores: Float32[np.ndarray, "height width"]
    truth: Bool[np.ndarray, "height width"] | None
    verdict: str = ""


class PageViews:
    """Collects the views of the page, as HTML, while an evaluation renders them.

    Args:
        subject: What is evaluated; the page shows a few of its held-out views.
        truth: The dataset's truth; None for photographs of one's own.
        speaker: What answers; None where the field has no language.
        queries: Phrases to ask; if empty, the names that these views show most of, and one of
            something that the scene lacks.

    Raises:
        BackboneUnavailableError: If the head's text tower cannot be loaded.
        F3rmError: If a query cannot be asked.
    """

    def __init__(
        self,
        subject: Subject,
        truth: SceneTruth | None,
        *,
        speaker: Speaker | None,
        queries: Sequence[str],
    ) -> None:
        self._subject, self._truth = subject, truth
        self._names, self._heads = subject.held_out.names, subject.source.heads
        count = len(self._names)
        self._shown = {round(i) for i in np.linspace(0, count - 1, min(NUM_VIEWS, count))}
        if not queries and truth is not None:
            queries = most_visible(truth, [self._names[index] for index in sorted(self._shown)])
            queries = [*queries, *absent_prompt(truth)]
        self._queries, self._query = queries, None
        self._head, head = next(iter(self._heads)), None
        if speaker is not None and queries:
            self._query = speaker.embedded(queries)[1]
            self._head = speaker.heads[0].spec.name
            head = self._head if len(speaker.heads) == 1 else None  # of several scales the best
        self.answers = SceneAnswers.of(subject.scene, queries if self._query else (), head)
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
            verdicts = self.answers.verdicts
            for query, score, verdict in zip(self._queries, scores, verdicts, strict=True):
                mask = seen.mask(known[query]) if seen is not None and query in known else None
                answers.append(Answer(query, score, mask, verdict if mask is None else ""))
        head = next(iter(self._heads.values()))
        pca = pca_colours_from_hidden(hidden, head.weight, head.pca)
        pictures = [to_picture(x, (height, width)) for x in (photograph, outputs["rgb"], pca)]
        boxed = self._with_boxes(index, pictures[0])
        self.views.append(view_html(name, pictures, answers, boxed=boxed))

    def _with_boxes(self, index: int, photograph: Picture) -> np.ndarray:
        """Draws the boxes of what was found, with names, where a held-out camera sees them."""
        frame = self._subject.scene.frames.get(self.answers.frame)
        colours = self.answers.colours
        boxes = [
            (frame.to_scene(torch.from_numpy(found.box.corners())), name, colours[prompt])
            for prompt, name, found in self.answers.instances()
        ]
        return boxed_picture(photograph, self._subject.held_out.cameras, index, boxes)

    def data(self) -> str | None:
        """Returns the data of the points that can be turned; None where there is no surface."""
        return cloud_json(self._subject.scene, self.answers, self._head)


def absent_prompt(truth: SceneTruth) -> list[str]:
    """Returns a prompt for what a scene lacks: of known words, one that no object has; or none."""
    known = [each for each in truth.absent if each.kind == "absent_word"]
    return [each.text for each in sorted(known, key=lambda each: -each.shared_words)[:1]]


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


def page_html(
    views: Sequence[str],
    metrics: Mapping[str, Any],
    commands: str,
    *,
    answers: SceneAnswers | None = None,
    cloud: str | None = None,
) -> str:
    """Returns the page as HTML.

    Args:
        views: The views, each as :func:`view_html` writes it.
        metrics: The evaluation's numbers, as its JSON has them.
        commands: Shell commands to continue with.
        answers: What the scene answered; None shows none.
        cloud: The points, from :func:`f3rm.evaluation.cloud.cloud_json`; None shows none.
    """
    style = (_WEB / "page.css").read_text(encoding="utf-8")
    return "\n".join(
        [
            '<!doctype html><html lang="en"><head><meta charset="utf-8">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            f"<title>f3rm</title><style>{style}</style></head><body>",
            "<h1>A scene that you can ask</h1>",
            _CLOUD + _scale("score", ' id="cloud-scale" hidden') if cloud else "",
            _answer_table(answers) if answers else "",
            "<h2>Views</h2>",
            f"<p>{_EXPLANATION}</p>{_scale('relevancy')}",
            *views,
            "<h2>Measured on all held-out views</h2>",
            _headline_table(metrics),
            _query_table(metrics.get("queries") or []),
            _time_table(metrics, answers),
            "<h2>Go on</h2>",
            f"<pre>{html.escape(commands)}</pre>",
            _cloud_scripts(cloud) if cloud else "",
            "</body></html>",
        ]
    )


def with_times(page: str, seconds: Mapping[str, float]) -> str:
    """Adds what other commands took to a page.

    Args:
        page: The page's HTML.
        seconds: Seconds by what was done.
    """
    return page.replace(TIMES, "".join(_time_row(*row) for row in seconds.items()))


def _time_row(what: str, seconds: float) -> str:
    return f"<tr><td>{html.escape(what)}</td><td>{seconds:.0f} s</td></tr>"


def _time_table(metrics: Mapping[str, Any], answers: SceneAnswers | None) -> str:
    rows = [TIMES]
    if answers is not None and answers.questions:
        what = f"Loading the text tower, sampling the surface, {len(answers.questions)} answers"
        rows.append(_time_row(f"{what} in 3D", answers.seconds))
    if "seconds" in metrics:
        rows.append(_time_row("Everything that is measured here, with that", metrics["seconds"]))
    return f"<h3>What it took</h3><table>{''.join(rows)}</table>"


def _answer_table(answers: SceneAnswers) -> str:
    """Returns what the scene answered in 3D: each prompt with its colour, and why not."""
    if not answers.questions:
        return ""
    rows = [
        f"<tr><td>{_swatch(colour)}{html.escape(question.label)}</td>"
        f"<td>{'not found' if found.certainty == 'absent' else found.certainty}</td>"
        f"<td>{'<br>'.join(_sizes(answers, index))}{html.escape(found.reason)}</td></tr>"
        for index, (question, found, colour) in enumerate(
            zip(answers.questions, answers.found, answers.colours, strict=True)
        )
    ]
    head = "<tr><th>prompt</th><th>answer</th><th>size, or why not</th></tr>"
    table = f'<table class="words">{head}{"".join(rows)}</table>'
    return f'<h2>Asked in 3D</h2><div class="wide">{table}</div>'


def _sizes(answers: SceneAnswers, prompt: int) -> list[str]:
    return [
        html.escape(name.rpartition(", ")[2])
        for index, name, _ in answers.instances()
        if index == prompt
    ]


def _swatch(colour: Sequence[int]) -> str:
    red, green, blue = colour
    return f'<span class="swatch" style="background:rgb({red},{green},{blue})"></span>'


def _scale(of_what: str, attributes: str = "") -> str:
    """Returns the scale of colours; the white line is the score from which a pixel matches."""
    stops = ", ".join(f"rgb({red:.0f},{green:.0f},{blue:.0f})" for red, green, blue in HEAT)
    bar = f'<i style="background:linear-gradient(to right, {stops})"></i>'
    return f'<div class="scale"{attributes}><b>{of_what}</b><span>0</span>{bar}<span>1</span></div>'


def _cloud_scripts(cloud: str) -> str:
    bundle = (_WEB / "bundle.js").read_text(encoding="utf-8")
    data = f'<script type="application/json" id="cloud-data">{cloud}</script>'
    return f"{data}<script>{bundle}</script>"


def view_html(
    name: str,
    pictures: Sequence[Picture],
    answers: Sequence[Answer],
    *,
    boxed: np.ndarray | None = None,
) -> str:
    """Returns one view as HTML.

    Args:
        name: The photograph's ``file_path``.
        pictures: Photograph, render, and PCA colours of the features.
        answers: One per query.
        boxed: The photograph with boxes, to be shown in its place; None for none.
    """
    photograph, *rendered = pictures
    shown = _figure(photograph if boxed is None else boxed, "photograph")
    shown += "".join(map(_figure, rendered, ("rendered colours", "rendered features (PCA)")))
    asked = "".join(_answer_figure(pictures[1], answer) for answer in answers)
    rows = [f'<div class="row">{row}</div>' for row in (shown, asked) if row]
    return f"<h3>{html.escape(Path(name).name)}</h3>" + "".join(rows)


def _answer_figure(render: Picture, answer: Answer) -> str:
    picture = heat_picture(render, answer.scores)
    words = f"“{html.escape(answer.query)}”"
    if answer.truth is not None and answer.truth.sum() >= MIN_PIXELS:
        picture[outline(answer.truth)] = _OUTLINE
        words += f": IoU {iou(fixed_mask(answer.scores), answer.truth):.2f}"
    elif answer.truth is not None:
        words += ": not in this view"
    elif answer.verdict:
        words += f": {answer.verdict}"
    return _figure(picture, words)


def outline(mask: Bool[np.ndarray, "height width"]) -> Bool[np.ndarray, "height width"]:
    """Returns the pixels of a mask with one of their four neighbours outside of it."""
    padded = np.pad(mask, 1, mode="edge")
    inside = padded[:-2, 1:-1] & padded[2:, 1:-1] & padded[1:-1, :-2] & padded[1:-1, 2:]
    return mask & ~inside


def _figure(picture: np.ndarray, caption: str) -> str:
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
    return f'<div class="wide"><table>{"".join(rows)}</table></div>'


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
    table = f"<table><tr>{head}</tr>{''.join(rows)}</table>"
    return f'<h3>Per query</h3><div class="wide">{table}</div>'
