"""Answers by what was asked: certainty by truth, and absent prompts by kind and shared words."""

from collections.abc import Mapping, Sequence
from typing import Any, get_args

from f3rm.evaluation.means import ANSWERS, mean_over
from f3rm.evaluation.metrics import RELEVANCY_THRESHOLD
from f3rm.language.threshold import Certainty
from f3rm.synthetic.truth import AbsentKind

PRESENT = "present"

Rows = Sequence[Mapping[str, Any]]


def confusion(queries: Rows, absent: Rows) -> dict[str, dict[str, int]] | None:
    """Counts how certain :meth:`Scene.find` was of each kind of prompt; None if it was not asked.

    Args:
        queries: Rows of the queries, which are true of objects.
        absent: Rows of the absent prompts.

    Returns:
        For ``present`` and every kind of absent prompt, the number of prompts by certainty.
    """
    asked = [(row.get("kind", PRESENT), row.get("certainty")) for row in (*queries, *absent)]
    if not any(certainty for _, certainty in asked):
        return None
    kinds = [PRESENT, *(kind for kind in get_args(AbsentKind) if any(k == kind for k, _ in asked))]
    return {
        kind: {certainty: asked.count((kind, certainty)) for certainty in get_args(Certainty)}
        for kind in kinds
    }


def absent_table(queries: Rows, absent: Rows) -> list[dict[str, Any]]:
    """Groups absent prompts by kind and number of words that they share with a present object.

    Args:
        queries: Rows of the queries, whose scores should be higher.
        absent: Rows of the absent prompts.

    Returns:
        For each group its ``kind``, ``shared_words`` and number of ``prompts``; of the field, and
        of the teacher as ``teacher_...``: ``accepted``, the share with a score above 0.5 somewhere,
        ``max_relevancy``, the highest score of all, and ``auroc``, the probability that a query's
        highest score is above such a prompt's.
    """
    order = get_args(AbsentKind)
    groups = sorted(
        {(row["kind"], row["shared_words"]) for row in absent},
        key=lambda group: (order.index(group[0]), group[1]),
    )
    table: list[dict[str, Any]] = []
    for kind, shared in groups:
        rows = [row for row in absent if (row["kind"], row["shared_words"]) == (kind, shared)]
        line: dict[str, Any] = {"kind": kind, "shared_words": shared, "prompts": len(rows)}
        for who in ANSWERS:
            best = [max(row[f"{who}max_relevancies"]) for row in rows if _scored(row, who)]
            above = mean_over(f"{who}presence_auroc_scene", [{"queries": queries, "absent": rows}])
            line |= {
                f"{who}accepted": sum(b > RELEVANCY_THRESHOLD for b in best) / len(best)
                if best
                else None,
                f"{who}max_relevancy": max(best, default=None),
                f"{who}auroc": above.value if above else None,
            }
        table.append(line)
    return table


def _scored(row: Mapping[str, Any], who: str) -> bool:
    return bool(row.get(f"{who}max_relevancies"))
