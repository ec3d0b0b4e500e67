"""Renders and scores the held-out views, one after the other; each is rendered once."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float32, Int, UInt8
from torch import Tensor

from f3rm.camera_render import CameraOutputs
from f3rm.evaluation.predictions import (
    FeatureCosines,
    feature_cosines,
    field_scores,
    mean_training_feature,
    render_view,
    teacher_scores,
)
from f3rm.evaluation.query_scores import Answers, QueryScores
from f3rm.evaluation.subject import Subject
from f3rm.evaluation.vocabulary import Language
from f3rm.feature_datamanager import ImageTargets
from f3rm.scene.casting import hidden_of
from f3rm.scene.drawing import to_picture
from f3rm.store.progress import track


@dataclass(frozen=True)
class ScoredView:
    """One held-out view with its score maps, at the pixels of the photograph's file.

    Attributes:
        name: Its ``file_path``.
        photograph: The photograph.
        render: The field's colours.
        ids: The object at each pixel, -1 for none.
        field: The field's relevancy of every text of the vocabulary, in its order.
        teacher: The 2D teacher's; None without a feature cache.
    """

    name: str
    photograph: UInt8[np.ndarray, "height width 3"]
    render: UInt8[np.ndarray, "height width 3"]
    ids: Int[np.ndarray, "height width"]
    field: Float32[np.ndarray, "texts height width"]
    teacher: Float32[np.ndarray, "texts height width"] | None


Watch = Callable[[int, Tensor, CameraOutputs, ScoredView | None], None]
"""Receives each held-out view as it is rendered: its index among them, its photograph in [0, 1],
the render with hidden vectors, and the scores; None without language or truth."""


@dataclass(frozen=True)
class HeldOutScores:
    """Scores of the held-out views.

    Attributes:
        psnr: Of each view, in dB.
        cosines: Of each view, by head; empty without a feature cache.
        field: The field's answers; None without language or truth.
        teacher: The 2D teacher's answers; None without language, truth or feature cache.
    """

    psnr: list[float]
    cosines: dict[str, list[FeatureCosines]]
    field: Answers | None
    teacher: Answers | None


def score_views(
    subject: Subject,
    *,
    language: Language | None,
    seed: int,
    show_progress: bool = False,
    watch: Watch | None = None,
) -> HeldOutScores:
    """Renders and scores every held-out view.

    Args:
        subject: What is evaluated.
        language: The embedded phrases; None without a text tower or ground truth.
        seed: Seed of the pixels of the mean training feature.
        show_progress: Whether a bar counts the views.
        watch: Called with every view, e.g. to draw it.
    """
    field = QueryScores(language.vocabulary) if language else None
    teacher = QueryScores(language.vocabulary) if language and subject.stores else None
    decibels: list[float] = []
    cosines: dict[str, list[FeatureCosines]] = {}
    lookup = subject.train.lookup
    means = {
        name: mean_training_feature(lookup, name, seed)
        for name in subject.stores
        if lookup is not None
    }
    views = range(len(subject.held_out.names))
    for index in track(views, total=len(views), label="held-out views", show=show_progress):
        camera, photograph = subject.picture(index)
        outputs = render_view(subject.source, camera)
        decibels.append(subject.psnr(outputs, photograph))
        for name, measured in _cosines(subject, index, outputs, means).items():
            cosines.setdefault(name, []).append(measured)
        view = None
        if language is not None and field is not None:
            view = _ask(subject, index, outputs, photograph, language)
            field.add(view.name, view.ids, view.field)
            if teacher is not None and view.teacher is not None:
                teacher.add(view.name, view.ids, view.teacher)
        if watch is not None:
            watch(index, photograph, outputs, view)
    return HeldOutScores(
        decibels,
        cosines,
        field=field.answers() if field else None,
        teacher=teacher.answers() if teacher else None,
    )


def _cosines(
    subject: Subject,
    index: int,
    outputs: CameraOutputs,
    means: dict[str, Tensor],
) -> dict[str, FeatureCosines]:
    if subject.held_out.lookup is None:
        return {}
    targets, hidden = ImageTargets(subject.held_out.lookup, index), hidden_of(outputs)
    heads = subject.source.heads
    return {
        name: feature_cosines(heads[name], hidden, targets, mean)
        for name, mean in means.items()
        if name in heads
    }


def _ask(
    subject: Subject, index: int, outputs: CameraOutputs, image: Tensor, language: Language
) -> ScoredView:
    name = subject.held_out.names[index]
    truth = language.truth.view(name)
    height, width = truth.ids.shape
    stores = {head: subject.stores[head] for head in language.heads if head in subject.stores}
    teacher = None
    if stores:
        every = {
            head: teacher_scores(store, store.index(name), language.query)
            for head, store in stores.items()
        }
        teacher = np.stack([every[head][text] for text, head in enumerate(language.heads)])
    return ScoredView(
        name=name,
        photograph=to_picture(image, (height, width)),
        render=to_picture(outputs["rgb"], (height, width)),
        ids=truth.ids,
        field=field_scores(hidden_of(outputs), language.hidden_query, (height, width)),
        teacher=teacher,
    )
