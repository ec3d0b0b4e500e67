"""The numbers of ``make real``: what both fields found, as JSON and as a table."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from tools.real.fox import RealRuns
from tools.real.measure import FOUND_IOU, Answer, HeldOut, Projection, Transfer


@dataclass(frozen=True)
class Report:
    """Everything that is measured.

    Attributes:
        subject: The phrase that most photographs show.
        instances: How many instances were found for it.
        certainty: How certain that answer is.
        answers: To every phrase in every photograph that shows it.
        projections: Of the best instance.
        transfers: Of the labels of two clicks.
    """

    subject: str
    instances: int
    certainty: str
    answers: list[Answer]
    projections: list[Projection]
    transfers: list[Transfer]

    def to_dict(self) -> dict[str, Any]:
        """Returns the numbers."""
        hits: dict[str, list[tuple[bool, bool]]] = {}
        for answer in self.answers:
            hits.setdefault(answer.phrase, []).append(answer.hits())
        ious = [shown.iou for shown in self.projections]
        field, teacher = zip(*(carried.ious for carried in self.transfers), strict=True)
        return {
            "subject": self.subject,
            "localisation": {
                phrase: {
                    "views": len(pairs),
                    "field": float(np.mean([own for own, _ in pairs])),
                    "teacher": float(np.mean([taught for _, taught in pairs])),
                }
                for phrase, pairs in hits.items()
            },
            "instance": {
                "instances": self.instances,
                "certainty": self.certainty,
                "views": len(ious),
                "iou": float(np.mean(ious)) if ious else 0.0,
                "views_above": sum(iou >= FOUND_IOU for iou in ious),
            },
            "transfer": {
                "views": len(field),
                "field": float(np.mean(field)),
                "teacher": float(np.mean(teacher)),
            },
        }


def measure(runs: RealRuns) -> tuple[Report, HeldOut, HeldOut]:
    """Measures both fields."""
    words, points = HeldOut(runs.conse, runs.boxes), HeldOut(runs.dino, runs.boxes)
    counts: dict[str, int] = {}
    for boxes in runs.boxes.values():
        for phrase in boxes:
            counts[phrase] = counts.get(phrase, 0) + 1
    subject = max(counts, key=lambda phrase: counts[phrase])
    found = words.scene.find(subject)
    report = Report(
        subject,
        len(found),
        found.certainty,
        words.answers(),
        words.projections(found, subject),
        points.transfers(subject),
    )
    return report, words, points


def table(numbers: dict[str, Any]) -> str:
    """Returns the numbers as Markdown."""
    lines = ["| held-out photographs | views | field | 2D teacher |", "|---|---|---|---|"]
    for phrase, row in numbers["localisation"].items():
        lines.append(_line(f"CONSE: best pixel of {phrase!r} in its box", row))
    lines.append(_line("DINOv2: two clicks carried over, IoU of boxes", numbers["transfer"]))
    lines += ["", f"find({numbers['subject']!r}): {_instance_words(numbers['instance'])}"]
    return "\n".join(lines)


def _line(label: str, row: dict[str, Any]) -> str:
    return f"| {label} | {row['views']} | {row['field']:.2f} | {row['teacher']:.2f} |"


def _instance_words(row: dict[str, Any]) -> str:
    return (
        f"{row['instances']} instance(s), {row['certainty']}; the best one's box overlaps the "
        f"annotated one with a mean IoU of {row['iou']:.2f}, of {FOUND_IOU} or more in "
        f"{row['views_above']} of {row['views']} views."
    )
