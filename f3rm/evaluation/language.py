"""The head of a field that is asked in words, and its text tower's view of the vocabulary."""

from dataclasses import dataclass

from f3rm._types import F3rmError, HeadSpec
from f3rm.evaluation.truth import SceneTruth
from f3rm.evaluation.vocabulary import CANONICAL, Scorer, Vocabulary
from f3rm.model import FeatureFieldModel
from f3rm.viewer.text_query import TextEncoder


@dataclass(frozen=True)
class Language:
    """What turns a head's features into scores of phrases.

    Attributes:
        head: The head's name.
        truth: What the dataset shows.
        vocabulary: The phrases that it gives.
        scorer: Scores features and hidden vectors of this head.
    """

    head: str
    truth: SceneTruth
    vocabulary: Vocabulary
    scorer: Scorer


def choose_head(model: FeatureFieldModel, wanted: str | None) -> HeadSpec | None:
    """Returns the wanted head, or the first that has a text tower, or None where none has.

    Args:
        model: The trained model.
        wanted: Name of a head, or None.

    Raises:
        F3rmError: If the wanted head does not exist or has no text tower.
    """
    speaking = [spec for spec in model.feature_field.specs if spec.has_text]
    if wanted is None:
        return speaking[0] if speaking else None
    spec = model.feature_field.head(wanted).spec
    if not spec.has_text:
        names = ", ".join(repr(other.name) for other in speaking) or "none of this run"
        msg = (
            f"choose_head: head must have a text tower, got {wanted!r}. Those that have one: "
            f"{names}."
        )
        raise F3rmError(msg)
    return spec


def open_language(model: FeatureFieldModel, spec: HeadSpec, truth: SceneTruth) -> Language:
    """Embeds a scene's phrases with a head's text tower, as they stand, without a template.

    Args:
        model: The trained model.
        spec: A head with a text tower.
        truth: A scene with at least one query.

    Raises:
        BackboneUnavailableError: If the text tower cannot be loaded.
    """
    vocabulary = Vocabulary.of(truth)
    texts = vocabulary.texts
    embeddings = TextEncoder(spec.backbone).encode([*texts, *CANONICAL]).to(model.device)
    weight = model.feature_field.head(spec.name).weight
    scorer = Scorer(embeddings[: len(texts)], embeddings[len(texts) :], weight)
    return Language(spec.name, truth, vocabulary, scorer)
