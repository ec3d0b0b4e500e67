"""A backbone that needs no weights and means something: it sees colours and reads their names."""

import torch
from torch.nn import functional

from f3rm.backbones.base import Backbone
from f3rm.errors import BackboneRef, BackboneUnavailableError
from f3rm.store.geometry import Prep
from f3rm.store.spec import FeatureSpec

COLOURS = {
    "red": (0.75, 0.12, 0.1),
    "orange": (0.9, 0.45, 0.02),
    "yellow": (0.9, 0.85, 0.2),
    "green": (0.15, 0.6, 0.2),
    "turquoise": (0.1, 0.7, 0.7),
    "blue": (0.15, 0.25, 0.8),
    "purple": (0.45, 0.1, 0.65),
    "pink": (0.95, 0.45, 0.7),
    "grey": (0.5, 0.5, 0.5),
}
SPECS = {
    "COLOURS": FeatureSpec(
        BackboneRef("colours", "colours", "none"), ("final",), Prep(size=120), name="colours"
    ),
    "MUTE": FeatureSpec(
        BackboneRef("mute", "mute", "none"), ("final",), Prep(size=120), name="mute"
    ),
}
ADAPTERS = {
    "colours": "tests.viewer.colour_backbone:ColourBackbone",
    "mute": "tests.viewer.colour_backbone:MuteBackbone",
}

_SHARPNESS = 20.0


def _tints(colours):
    """Colours without their brightness, so that a thing is of one colour in light and shade."""
    return (colours + 0.02) / (colours + 0.02).sum(-1, keepdim=True)


class ColourBackbone(Backbone):
    channels, patch_size, has_text = len(COLOURS), 4, True
    mean, std = (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)
    texts_can_be_had = True
    loads = 0

    def __init__(self, ref):
        self.ref = ref

    @classmethod
    def load(cls, ref, *, device, towers):
        del device
        if "text" in towers:
            ColourBackbone.loads += 1
            if not ColourBackbone.texts_can_be_had:
                msg = "load_backbone: the {weights} of <colours> cannot be reached, got no network."
                raise BackboneUnavailableError(msg)
        return cls(ref)

    def encode_image(self, images):
        rows, cols = self.feature_grid(images)
        patches = functional.adaptive_avg_pool2d(images, (rows, cols)).permute(0, 2, 3, 1)
        known = torch.tensor(list(COLOURS.values()))
        distances = torch.cdist(_tints(patches.flatten(0, 2)), _tints(known))  # (cells, colours)
        return (-_SHARPNESS * distances).softmax(-1).view(*patches.shape[:3], -1)

    def encode_text(self, texts):
        vectors = [[float(colour in text.split()) for colour in COLOURS] for text in texts]
        embedded = torch.tensor(vectors)
        embedded[embedded.sum(-1) == 0] = 1.0  # words that name no colour are like every colour
        return functional.normalize(embedded, dim=-1)

    def provenance(self):
        return {"library": "none", "version": "1", "torch": torch.__version__, "weights": "none"}

    @property
    def device(self):
        return torch.device("cpu")


class MuteBackbone(ColourBackbone):
    has_text = False
    encode_text = Backbone.encode_text
