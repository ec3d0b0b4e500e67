"""How certain the answer to a query is, with the reason in one sentence.

``docs/python.md`` has the rules for users. Their numbers were chosen on generated scenes of the
seeds 10 to 14.
"""

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Int

from f3rm.language.relevancy import similarity_from_hidden
from f3rm.language.threshold import Certainty, presence, presence_threshold
from f3rm.scene.finding.scored import ScoredSurface

MANY = 4
"""More pieces than this that are about equal are rarely as many objects."""

_ABOUT_EQUAL = 0.5
"""Pieces are about equal if their number of points is at least this share of the largest one's."""

Pieces = Sequence[Int[np.ndarray, " _"]]
Verdict = tuple[Certainty, str]
"""The certainty and its reason, which is empty for ``found``."""


def judge(scored: ScoredSurface, pieces: Pieces) -> Verdict:
    """Tells how certain the answer to a query is.

    Args:
        scored: The scene's points and their scores.
        pieces: The indices of each instance's points, best score first.
    """
    question = scored.question
    if question.unknown:
        return "unknown word", question.unknown
    if not len(scored.scores):
        return "absent", f"{question.label!r} not found: the field has no surface at all"
    return _some(scored, pieces) if pieces else _none(scored)


def _none(scored: ScoredSurface) -> Verdict:
    question, best, least = scored.question, float(scored.scores.max()), scored.threshold
    absent = f"{question.label!r} not found"
    if scored.rival:
        return "absent", f"{absent}: all that matches it fits {scored.rival!r} better"
    if best >= least:
        return "uncertain", f"{absent}: its matches are scattered over a few points"
    kind = "threshold"
    if scored.is_automatic:  # the threshold is infinity, which says nothing to a reader
        kind, least = "presence threshold", presence_threshold(compares=question.compares)
    certainty = presence(best, compares=question.compares) if scored.is_automatic else "absent"
    below = "just below" if certainty == "uncertain" else "below"
    return certainty, f"{absent}: best score {best:.2f} is {below} the {kind} {least:.2f}"


def _some(scored: ScoredSurface, pieces: Pieces) -> Verdict:
    question, best = scored.question, float(scored.scores.max())
    close = presence(best, compares=question.compares) == "uncertain"
    if scored.is_automatic and close and not question.is_present:
        least = presence_threshold(compares=question.compares)
        return "uncertain", f"best score {best:.2f} is close to the presence threshold {least:.2f}"
    largest = max(map(len, pieces))
    equal = sum(len(piece) >= _ABOUT_EQUAL * largest for piece in pieces)
    if equal > MANY:
        return "uncertain", f"{equal} pieces of about the same size match: name it more precisely"
    rival = strongest_rival(scored, pieces[0])
    return ("uncertain", rival) if rival else ("found", "")


def strongest_rival(scored: ScoredSurface, piece: Int[np.ndarray, " piece"]) -> str:
    """Returns which phrase fits a piece better than the query that it contradicts; else nothing."""
    question = scored.question
    if question.rival_query is None:
        return ""
    hidden = scored.points.hidden[torch.from_numpy(piece)].to(question.device)
    own = float(question.scores(hidden).mean())
    scores = similarity_from_hidden(hidden, question.rival_query).mean(dim=0)
    best = int(scores.argmax())
    if float(scores[best]) <= own:
        return ""
    other = question.rivals[best]
    return f"what was found is rather {other!r}: score {scores[best]:.2f} beside {own:.2f}"
