"""Text towers of transformers whose texts are lower-case and padded to the trained length."""

from abc import abstractmethod
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, cast

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 (the customary name)
from transformers import PreTrainedModel

from f3rm.backbones.base import Rgb, Tower
from f3rm.backbones.calibration import read_calibration
from f3rm.backbones.hf_backbone import HfBackbone
from f3rm.backbones.hf_source import read_hf, read_network, read_statistics
from f3rm.backbones.weights import local_weights, not_loaded, require_several, unavailable
from f3rm.errors import BackboneRef


@dataclass(frozen=True)
class HfText:
    """A text tower and its tokenizer.

    Attributes:
        network: The frozen tower; its pooled output is in the space of the image tower's.
        tokenizer: The tokenizer of transformers.
        ending: Tokens after every text, also after one that is cut off.
        is_masked: Whether the tower is told which tokens are padding.
    """

    network: PreTrainedModel
    tokenizer: Any
    ending: tuple[int, ...] = ()
    is_masked: bool = False

    def __call__(self, texts: Sequence[str]) -> Float[Tensor, "texts channels"]:
        """Embeds texts, one unit vector each, fp32."""
        config: Any = self.network.config
        rows = self.tokenizer(
            [text.lower() for text in texts],
            add_special_tokens=False,
            truncation=True,
            max_length=config.max_position_embeddings - len(self.ending),
        )["input_ids"]
        shape, device = (len(rows), config.max_position_embeddings), self.network.device
        tokens = torch.full(shape, self.tokenizer.pad_token_id, device=device)
        mask = torch.zeros_like(tokens)
        for index, row in enumerate(rows):
            known = torch.tensor([*row, *self.ending], device=device)
            tokens[index, : len(known)] = known
            mask[index, : len(known)] = 1
        options = {"attention_mask": mask} if self.is_masked else {}
        pooled = cast("nn.Module", self.network)(tokens, **options).pooler_output
        return F.normalize(pooled.float(), dim=-1)


@dataclass(frozen=True)
class HfTowers:
    """What a checkpoint of two towers is built from.

    Attributes:
        config: Its configuration, with ``vision_config`` and ``text_config``.
        image: The class of the image tower.
        text: The class of the text tower.
    """

    config: Any
    image: type[PreTrainedModel]
    text: type[PreTrainedModel]


class HfTextBackbone(HfBackbone):
    """An image tower of transformers with a text tower; each is loaded where it is asked for."""

    has_text = True
    statistics: ClassVar[tuple[Rgb, Rgb]]
    """Mean and deviation of the input, unless a local folder's preprocessor says otherwise."""

    def __init__(
        self,
        ref: BackboneRef,
        network: PreTrainedModel | None,
        text: HfText | None,
        *,
        config: Any,
        mean: Rgb,
        std: Rgb,
    ) -> None:
        """Combines loaded towers; a family's ``load`` makes them.

        Args:
            ref: The model and weights.
            network: The image tower in evaluation mode, or None.
            text: The text tower, or None.
            config: The image tower's configuration.
            mean: RGB mean of the network's input, for values in [0, 1].
            std: RGB standard deviation, likewise.
        """
        super().__init__(ref, network, config=config, mean=mean, std=std)
        self.text = text
        self.calibration = read_calibration(local_weights(ref))

    @classmethod
    @abstractmethod
    def find_towers(cls, ref: BackboneRef, source: str) -> HfTowers:
        """Chooses the classes of both towers by the configuration of a folder or repository."""

    @classmethod
    @abstractmethod
    def tokenised(cls, network: PreTrainedModel, source: str) -> HfText:
        """Adds the tokenizer of a folder or repository to its text tower."""

    @classmethod
    def load(
        cls,
        ref: BackboneRef,
        *,
        device: str | torch.device = "cpu",
        towers: Collection[Tower] = ("image",),
    ) -> "HfTextBackbone":
        """Loads one tower or both; see :meth:`f3rm.backbones.base.Backbone.load`.

        Args:
            ref: ``weights`` is a hub name (empty: the model's name is one) or a local folder.
            device: Where the parameters go.
            towers: The halves to load; the other is not kept.

        Returns:
            The frozen towers in fp32.

        Raises:
            BackboneUnavailableError: If the weights are not available or do not fit.
        """

        def read(source: str) -> tuple[Any, PreTrainedModel | None, HfText | None]:
            found = cls.find_towers(ref, source)
            config, image, text = found.config.vision_config, None, None
            if "image" in towers:
                image = read_network(ref, found.image, source, config)
            if "text" in towers:
                network = read_network(ref, found.text, source, found.config.text_config)
                text = _known(ref, cls.tokenised(network, source))
            return config, image, text

        config, image, text = read_hf(ref, read)
        for network in (image, text and text.network):
            if network is not None:
                cast("nn.Module", network).to(device)
        mean, std = read_statistics(ref, *cls.statistics)
        return cls(ref, image, text, config=config, mean=mean, std=std)

    @torch.no_grad()
    def encode_text(self, texts: Sequence[str]) -> Float[Tensor, "texts channels"]:
        """Embeds texts in lower case, as the model was trained: no prompt template is added.

        Args:
            texts: Any number of strings; each is cut off at the context length (64 tokens).

        Returns:
            Unit vectors, fp32.

        Raises:
            TypeError: If ``texts`` is one string, whose letters would be embedded one by one.
            BackboneUnavailableError: If the text tower was not loaded.
        """
        require_several(texts)
        if self.text is None:
            raise not_loaded(self.ref, "text")
        return self.text(texts) if texts else torch.empty(0, self.channels, device=self.device)

    @property
    def device(self) -> torch.device:
        """The device that the parameters are on."""
        return super().device if self.text is None else self.text.network.device


def _known(ref: BackboneRef, text: HfText) -> HfText:
    """Checks that the tokenizer is the tower's; transformers makes an empty one of no file.

    Raises:
        BackboneUnavailableError: If it knows fewer or more tokens than the tower.
    """
    config: Any = text.network.config
    known, size = len(text.tokenizer), config.vocab_size
    if not size // 2 < known <= size:
        raise unavailable(
            ref, f"its tokenizer knows {known} tokens, its text tower {size}: files are missing"
        )
    return text
