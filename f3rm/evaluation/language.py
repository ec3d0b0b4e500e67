"""The head of a field that is asked in words, and its text tower's view of the vocabulary."""

from dataclasses import dataclass

from f3rm.errors import HeadSpec
from f3rm.evaluation.vocabulary import Scorer, Vocabulary
from f3rm.language.relevancy import CANONICAL_NEGATIVES
from f3rm.language.text_encoder import TextEncoder
from f3rm.model import FeatureFieldModel
from f3rm.synthetic.truth import SceneTruth


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
    embeddings = TextEncoder(spec.backbone).encode([*texts, *CANONICAL_NEGATIVES]).to(model.device)
    weight = model.feature_field.head(spec.name).weight
    scorer = Scorer(embeddings[: len(texts)], embeddings[len(texts) :], weight)
    return Language(spec.name, truth, vocabulary, scorer)
