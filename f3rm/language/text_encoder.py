"""Typed text and its embeddings: a text tower that loads once and remembers."""

import threading
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from f3rm.backbones.base import Backbone
from f3rm.backbones.calibration import Calibration
from f3rm.backbones.known_words import KnownWords
from f3rm.backbones.registry import load_backbone
from f3rm.errors import BackboneRef, F3rmError

_REMEMBERED = 256
_MOST_PHRASES = 32


@dataclass(frozen=True)
class QueryText:
    """A query as typed.

    Attributes:
        positives: Comma-separated phrases to look for.
        negatives: Comma-separated phrases that these must beat.
        temperature: Soft-max temperature, > 0.
    """

    positives: str
    negatives: str
    temperature: float

    @property
    def phrases(self) -> tuple[list[str], list[str]]:
        """Positive and negative phrases, the first 32 of each, without empty ones."""
        positives, negatives = split_phrases(self.positives), split_phrases(self.negatives)
        return positives[:_MOST_PHRASES], negatives[:_MOST_PHRASES]

    @property
    def num_left_out(self) -> int:
        """Number of phrases beyond the first 32 of each kind."""
        kept = sum(len(phrases) for phrases in self.phrases)
        return len(split_phrases(self.positives)) + len(split_phrases(self.negatives)) - kept


def split_phrases(text: str) -> list[str]:
    """Splits on commas, strips, and drops what is empty."""
    return [phrase.strip() for phrase in text.split(",") if phrase.strip()]


class TextEncoder:
    """A backbone's text tower, loaded when first needed and kept out of every checkpoint.

    Args:
        ref: The backbone whose text tower answers.
    """

    def __init__(self, ref: BackboneRef) -> None:
        self._ref = ref
        self._backbone: Backbone | None = None
        self._embeddings: OrderedDict[str, Tensor] = OrderedDict()
        self._lock = threading.Lock()

    @property
    def is_loaded(self) -> bool:
        """Whether the text tower is in memory."""
        return self._backbone is not None

    def encode(self, texts: Sequence[str]) -> Float[Tensor, "texts channels"]:
        """Embeds texts as unit vectors on the CPU.

        Raises:
            BackboneUnavailableError: If the tower cannot be loaded.
        """
        with self._lock:
            new = [text for text in dict.fromkeys(texts) if text not in self._embeddings]
            if new:
                if self._backbone is None:
                    self._backbone = load_backbone(self._ref, device="cpu", towers=("text",))
                encoded = self._backbone.encode_text(new).cpu()
                self._embeddings.update(zip(new, encoded, strict=True))
            embeddings = torch.stack([self._embeddings[text] for text in texts])
            while len(self._embeddings) > _REMEMBERED:
                self._embeddings.popitem(last=False)
        return embeddings

    def known_words(self) -> KnownWords | None:
        """Returns the only words that the tower understands; None where any may be asked.

        Raises:
            BackboneUnavailableError: If the tower cannot be loaded.
        """
        return self._loaded().known_words

    def calibration(self) -> Calibration | None:
        """Returns what the backbone's features are like in general; None where it is not known.

        Raises:
            BackboneUnavailableError: If the tower cannot be loaded.
        """
        return self._loaded().calibration

    def _loaded(self) -> Backbone:
        with self._lock:
            if self._backbone is None:
                self._backbone = load_backbone(self._ref, device="cpu", towers=("text",))
            return self._backbone


def embed_phrases(
    encoder: TextEncoder, phrases: Sequence[str], templates: Sequence[str]
) -> Float[Tensor, "phrases channels"]:
    """Embeds phrases, each as the mean over the templates.

    Raises:
        F3rmError: If ``templates`` are no sentences with ``{}``.
        BackboneUnavailableError: If the tower cannot be loaded.
    """
    if isinstance(templates, str) or not templates or any("{}" not in t for t in templates):
        msg = (
            f"templates must be sentences with {{}} in them, got {templates!r}. For "
            "example f3rm.scene.PROMPT_TEMPLATES."
        )
        raise F3rmError(msg)
    sentences = [t.replace("{}", phrase) for phrase in phrases for t in templates]
    embeddings = encoder.encode(sentences).view(len(phrases), len(templates), -1)
    return embeddings.mean(dim=1)  # of unit vectors; make_query normalises
