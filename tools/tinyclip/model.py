"""TINYCLIP's architecture, its losses, and how it is written as open_clip publishes models."""

import json
from functools import lru_cache
from pathlib import Path
from typing import Any, cast

import open_clip
import torch
from jaxtyping import Bool, Float, Int
from open_clip.modified_resnet import ModifiedResNet
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 (the customary name)

from f3rm.backbones.clip.resnet import project_cells, resnet_features, resnet_maps
from f3rm.backbones.clip.source import CONFIG_NAME, WEIGHT_NAMES
from f3rm.synthetic.objects import MATERIALS, SHAPES
from tools.tinyclip.batches import CELL, NOTHING, Batch
from tools.tinyclip.words import vocabulary

VOCABULARY_NAME = "vocabulary.txt"
CONTEXT = 24
CONFIG: dict[str, Any] = {
    "embed_dim": 128,
    "vision_cfg": {"layers": [1, 1, 2, 3], "width": 16, "image_size": 3 * CELL},
    "text_cfg": {
        "context_length": CONTEXT,
        "vocab_size": 49408,
        "width": 48,
        "heads": 2,
        "layers": 2,
    },
}
PREPROCESSING = {
    "size": 3 * CELL,
    "mean": open_clip.OPENAI_DATASET_MEAN,
    "std": open_clip.OPENAI_DATASET_STD,
}
LOGIT_SCALE = 16.0
"""One over the temperature of training."""

_CAPTION_WEIGHT = 0.15
_MATERIAL_WEIGHT = 0.5


def build_model(seed: int) -> open_clip.CLIP:
    """Returns the untrained model.

    Its image tower is a small one of CLIP's ResNets: a cell of the last map sees about eight cells
    across, which is more than a thing. A vision transformer of the same cost learnt colours and no
    shapes from as many pictures.
    """
    torch.manual_seed(seed)
    model = open_clip.CLIP(**CONFIG)
    for parameter in model.visual.parameters():
        if parameter.ndim == 4:  # a convolution's
            parameter.data = parameter.data.contiguous(memory_format=torch.channels_last)
    return model


def embed_pictures(
    model: open_clip.CLIP, images: Float[Tensor, "batch 3 height width"]
) -> Float[Tensor, "batch patches channels"]:
    """Returns the embeddings of all patches of pictures with RGB in [0, 1], not normalised."""
    pixels = normalised(images).contiguous(memory_format=torch.channels_last)
    return resnet_features(cast("ModifiedResNet", model.visual), pixels)


@lru_cache(maxsize=1)
def tokenizer() -> open_clip.SimpleTokenizer:
    """Returns what turns texts into tokens; reading its vocabulary takes half a second."""
    return open_clip.SimpleTokenizer(context_length=CONTEXT)


@lru_cache(maxsize=65536)
def _tokens(text: str) -> Int[Tensor, " context"]:
    return tokenizer()([text])[0]


def embed_texts(model: open_clip.CLIP, texts: tuple[str, ...]) -> Float[Tensor, "texts channels"]:
    """Returns unit embeddings of texts.

    The same as the model's own ``encode_text``, which also computes the empty places after the last
    word: attention is causal, so that they change nothing.
    """
    tokens = torch.stack([_tokens(text) for text in texts])
    length = int((tokens != 0).sum(dim=1).max())
    tokens = tokens[:, :length]
    hidden = (
        cast("nn.Module", model.token_embedding)(tokens)
        + cast("Tensor", model.positional_embedding)[:length]
    )
    causal = cast("Tensor", model.attn_mask)[:length, :length]
    hidden = cast("nn.Module", model.transformer)(hidden, attn_mask=causal)
    last = cast("nn.Module", model.ln_final)(hidden)
    last = last[torch.arange(len(tokens)), tokens.argmax(dim=-1)]
    return F.normalize(last @ model.text_projection, dim=-1)


def normalised(images: Float[Tensor, "batch 3 height width"]) -> Tensor:
    """Returns pictures as the network takes them."""
    mean = torch.tensor(PREPROCESSING["mean"])[:, None, None]
    std = torch.tensor(PREPROCESSING["std"])[:, None, None]
    return (images - mean) / std


def loss_of(
    model: open_clip.CLIP, tutor: nn.Linear, batch: Batch
) -> tuple[Tensor, dict[str, float]]:
    """Returns the loss of a batch and its terms.

    Regions and texts are compared in both directions, and whole pictures with their captions as in
    CLIP (Radford et al., 2021, figure 3). A region's embedding is the mean of some of its cells'
    (as in RegionCLIP, Zhong et al., CVPR 2022), a picture's is what CLIP's attention pooling gives.
    """
    visual = cast("ModifiedResNet", model.visual)
    pixels = normalised(batch.images).contiguous(memory_format=torch.channels_last)
    maps = resnet_maps(visual, pixels)
    cells = project_cells(visual, maps)
    phrases = embed_texts(model, batch.texts)
    scores = LOGIT_SCALE * F.normalize(_pool(batch, cells), dim=-1) @ phrases.T
    to_text = _region_to_text(scores, batch.true, batch.levels)
    to_region = _text_to_region(scores, batch.true, batch.levels)
    named = tutor(maps.flatten(2).transpose(1, 2)).flatten(0, 1)
    shapes, materials = named.split([len(SHAPES), len(MATERIALS)], dim=1)
    tutored = F.cross_entropy(shapes, batch.regions.shapes.flatten(), ignore_index=NOTHING)
    tutored = tutored + _MATERIAL_WEIGHT * F.cross_entropy(
        materials, batch.regions.materials.flatten(), ignore_index=NOTHING
    )
    loss = to_text + 0.5 * to_region + tutored
    terms = {"to_text": to_text.item(), "to_region": to_region.item(), "tutor": tutored.item()}
    if batch.images.shape[-1] == CONFIG["vision_cfg"]["image_size"]:  # what is pooled has one size
        pictures = visual.attnpool(maps)
        captions = embed_texts(model, batch.captions)
        contrast = _picture_to_caption(F.normalize(pictures, dim=-1), captions)
        loss = loss + _CAPTION_WEIGHT * contrast
        terms["caption"] = contrast.item()
    return loss, terms


def build_tutor() -> nn.Linear:
    """Returns what names shapes and materials from the last feature map, in training only.

    Without it the first thousand steps learn colours alone: texts tell shapes apart late.
    """
    return nn.Linear(CONFIG["vision_cfg"]["width"] * 32, len(SHAPES) + len(MATERIALS))


def _pool(batch: Batch, cells: Float[Tensor, "batch cells dims"]) -> Float[Tensor, "regions dims"]:
    """Averages the cells of each region."""
    pictures, size, dims = cells.shape
    weights = batch.regions.weights.new_zeros(len(batch.regions.weights), pictures, size)
    weights[torch.arange(len(weights)), batch.regions.picture] = batch.regions.weights
    return weights.flatten(1) @ cells.reshape(pictures * size, dims)


def _picture_to_caption(
    pictures: Float[Tensor, "batch channels"], captions: Float[Tensor, "batch channels"]
) -> Tensor:
    logits = LOGIT_SCALE * pictures @ captions.T
    own = torch.arange(len(logits))
    return (F.cross_entropy(logits, own) + F.cross_entropy(logits.T, own)) / 2


def _region_to_text(
    scores: Float[Tensor, "regions texts"],
    true: Bool[Tensor, "regions texts"],
    levels: Int[Tensor, " texts"],
) -> Tensor:
    """Each true text must win against all false ones and all true ones that say less."""
    total, count = scores.new_zeros(()), 0
    for level in levels.unique().tolist():
        wanted = true & (levels == level)
        rivals = ~true | (levels < level)
        others = scores.masked_fill(~rivals, -torch.inf).logsumexp(dim=1, keepdim=True)
        regions, texts = wanted.nonzero(as_tuple=True)
        if len(regions):
            chosen = scores[regions, texts]
            losses = torch.logaddexp(chosen, others[regions, 0]) - chosen
            # A region of several true texts of one level counts once.
            total = total + (losses / wanted.sum(dim=1)[regions]).sum() / wanted.any(dim=1).sum()
            count += 1
    return total / count


def _text_to_region(
    scores: Float[Tensor, "regions texts"],
    true: Bool[Tensor, "regions texts"],
    levels: Int[Tensor, " texts"],
) -> Tensor:
    """Each region that a text is true of must win against all regions that it is false of."""
    others = scores.masked_fill(true, -torch.inf).logsumexp(dim=0)
    regions, texts = (true & (levels > 0)).nonzero(as_tuple=True)
    chosen = scores[regions, texts]
    losses = torch.logaddexp(chosen, others[texts]) - chosen
    weights = 1 / true.sum(dim=0)[texts]
    return (losses * weights).sum() / weights.sum()


@torch.no_grad()
def publish(model: open_clip.CLIP, folder: Path, used_tokens: Bool[Tensor, " vocabulary"]) -> Path:
    """Writes the model in fp16 in the layout of open_clip's hub repositories, and its vocabulary.

    Embeddings of words that training never used are set to zero: they would be random directions,
    and a phrase should mean what its known words mean.

    Args:
        model: What was trained.
        folder: Where to; made if need be.
        used_tokens: Which tokens training used.

    Returns:
        The folder.
    """
    state = {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}
    state["token_embedding.weight"][~used_tokens] = 0
    folder.mkdir(parents=True, exist_ok=True)
    published = {"model_cfg": CONFIG, "preprocess_cfg": PREPROCESSING}
    (folder / CONFIG_NAME).write_text(json.dumps(published, indent=2) + "\n", encoding="utf-8")
    (folder / VOCABULARY_NAME).write_text(vocabulary(), encoding="utf-8")
    halves = {
        name: (tensor.half() if tensor.is_floating_point() else tensor).contiguous()
        for name, tensor in state.items()
    }
    save_file(halves, folder / WEIGHT_NAMES[0])
    return folder
