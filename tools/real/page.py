"""The page of ``make real``: held-out photographs with boxes, scores, instance and labels."""

import base64
import html
import io
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from f3rm.evaluation.page import outline
from f3rm.evaluation.pictures import Picture, heat_picture, mask_picture
from tools.real.fox import Box
from tools.real.measure import HeldOut, box_around, box_mask
from tools.real.report import Report

_WIDTH = 270
_TRUE, _OWN = (255, 255, 255), (90, 200, 255)
_EXPLANATION = (
    "Photographs that were held out. White: the annotated box. Blue: the box around the instance, "
    "or around what is labelled. Green is what is labelled inside of the annotated box, red "
    "outside, dark blue what of the box is not labelled."
)


def write_page(path: Path, report: Report, words: HeldOut, points: HeldOut, table: str) -> None:
    """Writes the page.

    Args:
        path: Its file.
        report: What was measured.
        words: The field that was asked in words.
        points: The field that carried labels.
        table: The numbers as text.
    """
    rows: list[str] = []
    projected = {shown.view: shown for shown in report.projections}
    carried = {shown.view: shown for shown in report.transfers}
    for answer in report.answers:
        if answer.phrase != report.subject:
            continue
        photograph = _photograph(words, answer.view)
        tiles = [
            _tile(heat_picture(photograph, answer.field), "field: relevancy", answer.box),
            _tile(heat_picture(photograph, answer.teacher), "2D teacher: relevancy", answer.box),
        ]
        if shown := projected.get(answer.view):
            picture = photograph.copy()
            picture[outline(shown.mask)] = _OWN
            caption = f"instance: IoU {shown.iou:.2f}"
            tiles.append(_tile(picture, caption, answer.box, box_around(shown.mask)))
        if labels := carried.get(answer.view):
            truth = box_mask(answer.box, labels.field.shape)
            for who, mask, iou in zip(
                ("field", "2D teacher"), (labels.field, labels.teacher), labels.ious, strict=True
            ):
                picture = mask_picture(_photograph(points, answer.view), mask, truth)
                caption = f"{who}, labels of two clicks: IoU {iou:.2f}"
                tiles.append(_tile(picture, caption, answer.box, box_around(mask)))
        rows.append(f"<h2>{html.escape(answer.view)}</h2><p>{''.join(tiles)}</p>")
    style = "figure{display:inline-block;margin:4px}body{font:15px system-ui;margin:2rem}"
    path.write_text(
        f'<!doctype html><meta charset="utf-8"><title>f3rm, real features</title>'
        f"<style>{style}</style><h1>{html.escape(report.subject)}</h1><p>{_EXPLANATION}</p>"
        f"<pre>{html.escape(table)}</pre>{''.join(rows)}",
        encoding="utf-8",
    )


def _photograph(held_out: HeldOut, view: str) -> Picture:
    with Image.open(held_out.scene.run.data / view) as image:
        return np.asarray(image.convert("RGB")).copy()


def _tile(picture: Picture, caption: str, true: Box, own: Box | None = None) -> str:
    image = Image.fromarray(picture)
    draw = ImageDraw.Draw(image)
    draw.rectangle(true, outline=_TRUE, width=4)
    if own is not None:
        draw.rectangle(own, outline=_OWN, width=4)
    buffer = io.BytesIO()
    image.resize((_WIDTH, _WIDTH * image.height // image.width)).save(buffer, "JPEG", quality=85)
    data = base64.b64encode(buffer.getvalue()).decode("ascii")
    source = f'<img alt="{caption}" src="data:image/jpeg;base64,{data}">'
    return f"<figure>{source}<figcaption>{caption}</figcaption></figure>"
