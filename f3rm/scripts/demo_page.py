"""The demo's page: photographs, renders, features and answers in one HTML file of its own."""

import base64
import html
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float32, UInt8
from PIL import Image

from f3rm.camera_render import RenderRequest
from f3rm.errors import DatasetError, F3rmError
from f3rm.evaluation.metrics import fixed_mask, iou
from f3rm.evaluation.pictures import heat_picture
from f3rm.evaluation.predictions import field_scores
from f3rm.evaluation.query_scores import MIN_PIXELS
from f3rm.language.questions import choose_head
from f3rm.language.relevancy import CANONICAL_NEGATIVES, HiddenQuery, make_query, to_hidden
from f3rm.language.text_encoder import TextEncoder
from f3rm.model import FeatureFieldModel
from f3rm.scene.drawing import to_picture
from f3rm.scene.run_loading import LoadedRun, field_model, load_run
from f3rm.scene.surface import hidden_of
from f3rm.store.progress import track
from f3rm.synthetic.truth import SceneTruth

NUM_VIEWS = 3
NUM_QUERIES = 4

_REQUEST = RenderRequest(pca=True, similarity=False, hidden=True)
_QUALITY = 85
_OUTLINE = (255, 255, 255)
_HEADLINES = (
    ("localisation", "Localisation: the best pixel lies in the box of the object"),
    ("miou", "mIoU of relevancy &gt; 0.5 with the truth"),
    ("teacher_miou", "the same of the 2D teacher, picture by picture"),
    ("average_precision", "Average precision of the relevancy"),
    ("point_accuracy", "Surface points named rightly, in 3D"),
    ("feature_cosine", "Cosine of rendered and extracted features"),
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
    """What the field says of a query in one view.

    Attributes:
        query: The phrase.
        scores: Relevancy in [0, 1].
        truth: Where it is true; None where that is not known.
    """

    query: str
    scores: Float32[np.ndarray, "height width"]
    truth: Bool[np.ndarray, "height width"] | None


@dataclass(frozen=True)
class ShownView:
    """One held-out view on the page.

    Attributes:
        name: The photograph's ``file_path``.
        photograph: What the camera took; the field was not trained on it.
        render: The field's colours.
        pca: The field's features.
        answers: What it says of the queries.
    """

    name: str
    photograph: UInt8[np.ndarray, "height width 3"]
    render: UInt8[np.ndarray, "height width 3"]
    pca: UInt8[np.ndarray, "height width 3"]
    answers: tuple[Answer, ...]


def collect_views(config: Path, queries: Sequence[str], *, device: str) -> list[ShownView]:
    """Renders some held-out views of a run, and asks it the queries.

    Args:
        config: The run's ``config.yml``.
        queries: Phrases; where there are none, names of what a generated scene shows most of.
        device: ``cpu`` or ``cuda``.

    Returns:
        Views without answers where the field has no language, or nothing is to be asked.

    Raises:
        F3rmError: If the run cannot be opened.
    """
    run = load_run(config, device=torch.device(device))
    model = field_model(run)
    truth = _truth(run)
    count = len(run.held_out.names)
    indices = sorted({round(i) for i in np.linspace(0, count - 1, min(NUM_VIEWS, count))})
    if not queries and truth is not None:
        queries = most_visible(truth, [run.held_out.names[index] for index in indices])
    scorer = _scorer(model, queries)
    bar = track(indices, total=len(indices), label="Pictures of the page", show=True)
    return [_view(run, model, index, truth, scorer, queries) for index in bar]


def most_visible(truth: SceneTruth, names: Sequence[str]) -> list[str]:
    """Returns the queries of a scene that take the most room in some of its views, largest first.

    Args:
        truth: The scene.
        names: ``file_path`` of the views.
    """
    views = [truth.view(name) for name in names]
    shares = {
        query.text: min(int(view.mask(query.ids).sum()) for view in views)
        + 0.01 * sum(int(view.mask(query.ids).sum()) for view in views)
        for query in truth.queries
    }
    return sorted(shares, key=lambda text: -shares[text])[:NUM_QUERIES]


def _truth(run: LoadedRun) -> SceneTruth | None:
    try:
        return SceneTruth.read(run.data)
    except DatasetError:
        return None  # photographs of someone's own


def _scorer(model: FeatureFieldModel, queries: Sequence[str]) -> HiddenQuery | None:
    spec = choose_head(model.heads, None)
    if spec is None or not queries:
        return None
    weight = model.feature_field.head(spec.name).weight.detach()
    encoder = TextEncoder(spec.backbone)
    prompts, negatives = encoder.encode(queries), encoder.encode(CANONICAL_NEGATIVES)
    return to_hidden(make_query(prompts.to(weight), negatives.to(weight)), weight)


def _view(
    run: LoadedRun,
    model: FeatureFieldModel,
    index: int,
    truth: SceneTruth | None,
    scorer: HiddenQuery | None,
    queries: Sequence[str],
) -> ShownView:
    camera, batch = run.picture(index)
    outputs = model.get_outputs_for_camera(camera.to(model.device), request=_REQUEST)
    size = (outputs["rgb"].shape[0], outputs["rgb"].shape[1])
    seen = None if truth is None else truth.view(run.held_out.names[index])
    size = size if seen is None else (seen.ids.shape[0], seen.ids.shape[1])
    answers: list[Answer] = []
    if scorer is not None:
        scores = field_scores(hidden_of(outputs), scorer, size)
        known = {} if truth is None else {query.text: query.ids for query in truth.queries}
        for query, score in zip(queries, scores, strict=True):
            mask = seen.mask(known[query]) if seen is not None and query in known else None
            answers.append(Answer(query, score, mask))
    pca = next(outputs[key] for key in outputs if key.startswith("feature_pca"))
    return ShownView(
        name=run.held_out.names[index],
        photograph=to_picture(batch["image"], size),
        render=to_picture(outputs["rgb"], size),
        pca=to_picture(pca, size),
        answers=tuple(answers),
    )


def write_page(
    path: Path, views: Sequence[ShownView], metrics: Mapping[str, Any], commands: str
) -> None:
    """Writes the page.

    Args:
        path: The file.
        views: What is shown.
        metrics: What ``f3rm eval`` measured.
        commands: What to type next.

    Raises:
        F3rmError: If it cannot be written.
    """
    body = [
        "<h1>A scene that you can ask</h1>",
        f"<p>{_EXPLANATION}</p>",
        *(_view_html(view) for view in views),
        "<h2>Measured on all held-out views</h2>",
        _headline_table(metrics),
        _query_table(metrics.get("queries") or {}),
        "<h2>Go on</h2>",
        f"<pre>{html.escape(commands)}</pre>",
    ]
    page = "\n".join(
        [
            '<!doctype html><html lang="en"><head><meta charset="utf-8">',
            f"<title>f3rm demo</title><style>{_STYLE}</style></head><body>",
            *body,
            "</body></html>",
        ]
    )
    try:
        aside = path.with_name(f".{path.name}.new")
        aside.write_text(page, encoding="utf-8")
        aside.replace(path)
    except OSError as error:
        msg = (
            f"write_page: {str(path)!r} must be a file that can be written, got: {error}. Choose "
            "another --out."
        )
        raise F3rmError(msg) from error


def _view_html(view: ShownView) -> str:
    figures = [
        _figure(view.photograph, "photograph"),
        _figure(view.render, "rendered colours"),
        _figure(view.pca, "rendered features (PCA)"),
    ]
    for answer in view.answers:
        picture = heat_picture(view.render, answer.scores)
        words = f"“{html.escape(answer.query)}”"
        if answer.truth is not None and answer.truth.sum() >= MIN_PIXELS:
            picture[outline(answer.truth)] = _OUTLINE
            words += f": IoU {iou(fixed_mask(answer.scores), answer.truth):.2f}"
        elif answer.truth is not None:
            words += ": not in this view"
        figures.append(_figure(picture, words))
    shown, asked = figures[:3], figures[3:]
    rows = [f'<div class="row">{"".join(row)}</div>' for row in (shown, asked) if row]
    return f"<h2>{html.escape(Path(view.name).name)}</h2>" + "".join(rows)


def outline(mask: Bool[np.ndarray, "height width"]) -> Bool[np.ndarray, "height width"]:
    """Returns the pixels of a mask that touch a pixel outside of it."""
    padded = np.pad(mask, 1, mode="edge")
    inside = padded[:-2, 1:-1] & padded[2:, 1:-1] & padded[1:-1, :-2] & padded[1:-1, 2:]
    return mask & ~inside


def _figure(picture: UInt8[np.ndarray, "height width 3"], caption: str) -> str:
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, "JPEG", quality=_QUALITY)
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


def _query_table(queries: Any) -> str:
    rows = [
        f"<tr><td>{html.escape(str(row['text']))}</td>"
        + "".join(f"<td>{_number(row, key)}</td>" for key in _QUERY_COLUMNS)
        + "</tr>"
        for row in queries
    ]
    if not rows:
        return ""
    head = "".join(f"<th>{label}</th>" for label in ("query", *_QUERY_COLUMNS.values()))
    return f"<h3>Per query</h3><table><tr>{head}</tr>{''.join(rows)}</table>"


def _number(row: Mapping[str, Any], key: str) -> str:
    value = row.get(key)
    return f"{value:.2f}" if isinstance(value, int | float) else "-"
