"""How well TINYCLIP knows held-out scenes: accuracy per patch, and pairs that it never saw."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F  # noqa: N812 (the customary name)

from f3rm.backbones.clip.resnet import RESNET_STRIDE
from f3rm.synthetic.objects import COLOURS, MATERIALS, SHAPES, TELLING_MATERIALS, Description
from tools.tinyclip.batches import patch_shares
from tools.tinyclip.pictures import ScenePictures
from tools.tinyclip.words import UNSEEN_PAIRS

Encode = Callable[[Float[Tensor, "batch 3 height width"]], Float[Tensor, "batch patches channels"]]
"""RGB in [0, 1] to features of the patches."""
EncodeTexts = Callable[[tuple[str, ...]], Float[Tensor, "texts channels"]]
"""Texts to unit embeddings."""


@dataclass(frozen=True)
class Whole:
    """An object in a picture.

    Attributes:
        feature: Mean of the patches that lie inside it.
        thing: What it is.
        picture: Number of the scene, and of the picture in it.
    """

    feature: Float[Tensor, " channels"]
    thing: Description
    picture: tuple[int, int]


SCALE = 1.0
"""Pixels of the network's input per pixel of a picture; a usual thing is 40 to 130 wide there."""
_WHOLE = 0.999
_PAIRS = [(colour, shape) for colour in COLOURS for shape in SHAPES]
_CANONICAL = ("object", "things", "stuff", "texture")


@torch.no_grad()
def measure(
    encode: Encode, encode_texts: EncodeTexts, scenes: Sequence[ScenePictures]
) -> dict[str, float]:
    """Measures a model on patches that lie inside one object.

    Args:
        encode: The image tower.
        encode_texts: The text tower.
        scenes: What it is measured on.

    Returns:
        Accuracies in [0, 1]: of colours among all colours, and likewise of shapes, materials, and
        pairs of colour and shape; of pairs for whole objects, and for the pairs that training left
        out; how often relevancy above one half is right for pairs; and what chance gives for pairs.
        Of whole objects and full names: how often the right material beats another one, and which
        of two objects in a picture that differ by material alone a name takes; how often relevancy
        accepts the right name, and refuses one with a wrong material.
    """
    patches, wholes = _gather(encode, scenes)
    features = F.normalize(torch.stack([feature for feature, _ in patches]), dim=-1)
    things = [thing for _, thing in patches]
    coloured = [index for index, thing in enumerate(things) if thing.colour is not None]
    made = [index for index, thing in enumerate(things) if thing.material != "plain"]
    scores = Scores(features, things, encode_texts)
    whole_features = F.normalize(torch.stack([one.feature for one in wholes]), dim=-1)
    whole = Scores(whole_features, [one.thing for one in wholes], encode_texts)
    whole_coloured = [i for i, one in enumerate(wholes) if one.thing.colour is not None]
    unseen = [i for i in whole_coloured if _pair(wholes[i].thing) in UNSEEN_PAIRS]
    unseen_patches = [i for i in coloured if _pair(things[i]) in UNSEEN_PAIRS]
    return {
        "patches": float(len(things)),
        "colour": scores.accuracy([*COLOURS], lambda thing: thing.colour, coloured),
        "shape": scores.accuracy([*SHAPES], lambda thing: thing.shape),
        "material": scores.accuracy([*MATERIALS[1:]], lambda thing: thing.material, made),
        "colour_and_shape": scores.pair_accuracy(coloured),
        "relevancy_rule": scores.relevancy_accuracy(coloured),
        "whole_objects": float(len(wholes)),
        "whole_shape": whole.accuracy([*SHAPES], lambda thing: thing.shape),
        "whole_colour_and_shape": whole.pair_accuracy(whole_coloured),
        "unseen_pairs_patches": scores.pair_accuracy(unseen_patches),
        "unseen_pairs_whole": whole.pair_accuracy(unseen),
        "unseen_pairs_whole_top5": whole.pair_accuracy(unseen, best=5),
        "unseen_pairs_count": float(len(unseen)),
        "chance_pairs": 1 / len(_PAIRS),
        **material_numbers(wholes, encode_texts),
    }


def material_numbers(wholes: Sequence[Whole], encode_texts: EncodeTexts) -> dict[str, float]:
    """Measures full names such as "striped red mug" on whole objects that have a colour.

    Args:
        wholes: Objects in pictures.
        encode_texts: The text tower.
    """
    wholes = [whole for whole in wholes if whole.thing.colour is not None]
    names = [_names(whole.thing) for whole in wholes]
    texts = sorted({name for own in names for name in own.values()})
    features = F.normalize(torch.stack([whole.feature for whole in wholes]), dim=-1)
    scores = features @ encode_texts((*texts, *_CANONICAL)).T
    least = scores[:, len(texts) :].amax(dim=1)
    of = [
        {m: float(row[texts.index(name)]) for m, name in own.items()}
        for row, own in zip(scores, names, strict=True)
    ]
    told, taken, right, refused = [], [], [], []
    for index, whole in enumerate(wholes):
        own = whole.thing.material
        wrong = [score for material, score in of[index].items() if material != own]
        refused += [score < least[index] for score in wrong]
        if own == "plain":
            continue
        told += [of[index][own] > score for score in wrong]
        right.append(of[index][own] > least[index])
        twins = (
            other
            for other, candidate in enumerate(wholes)
            if candidate.picture == whole.picture
            and candidate.thing != whole.thing
            and _pair(candidate.thing) == _pair(whole.thing)
        )
        taken += [of[index][own] > of[twin][own] for twin in twins]
    return {
        "material_of_two_names": _share(told),
        "material_of_two_objects": _share(taken),
        "material_of_two_objects_count": float(len(taken)),
        "full_name_accepted": _share(right),
        "wrong_material_refused": _share(refused),
    }


def _names(thing: Description) -> dict[str, str]:
    return {material: replace(thing, material=material).name for material in TELLING_MATERIALS}


def _share(values: Sequence[bool | Tensor]) -> float:
    return float(np.mean([bool(value) for value in values])) if values else float("nan")


class Scores:
    """Compares features of things with texts."""

    def __init__(
        self,
        features: Float[Tensor, "things channels"],
        things: Sequence[Description],
        encode_texts: EncodeTexts,
    ) -> None:
        self._features = features
        self._things = things
        self._encode_texts = encode_texts

    def accuracy(
        self,
        words: Sequence[str],
        truth: Callable[[Description], str | None],
        chosen: Sequence[int] | None = None,
    ) -> float:
        """Returns how often the best of some words is the true one."""
        chosen = range(len(self._things)) if chosen is None else chosen
        return self._top(words, [truth(self._things[index]) for index in chosen], chosen, 1)

    def pair_accuracy(self, chosen: Sequence[int], *, best: int = 1) -> float:
        """Returns how often the true pair of colour and shape is among the best."""
        words = [" ".join(pair) for pair in _PAIRS]
        truths = [" ".join(_pair(self._things[index])) for index in chosen]
        return self._top(words, truths, chosen, best)

    def relevancy_accuracy(self, chosen: Sequence[int]) -> float:
        """Returns the balanced accuracy of "more relevant than all canonical phrases" for pairs."""
        pairs = self._encode_texts(tuple(" ".join(pair) for pair in _PAIRS))
        canonical = self._encode_texts(_CANONICAL)
        features = self._features[torch.tensor(chosen)]
        relevant = features @ pairs.T > (features @ canonical.T).amax(dim=1, keepdim=True)
        index = torch.tensor([_PAIRS.index(_pair(self._things[i])) for i in chosen])
        true = torch.zeros_like(relevant).scatter_(1, index[:, None], value=True)
        found, refused = relevant[true].float().mean(), (~relevant[~true]).float().mean()
        return float((found + refused) / 2)

    def _top(
        self, words: Sequence[str], truths: Sequence[str | None], chosen: Sequence[int], best: int
    ) -> float:
        if not truths:
            return float("nan")
        similarity = self._features[torch.tensor(chosen)] @ self._encode_texts(tuple(words)).T
        found = similarity.topk(best, dim=1).indices.tolist()
        hits = [
            any(words[index] == truth for index in row)
            for row, truth in zip(found, truths, strict=True)
        ]
        return float(np.mean(hits))


def _pair(thing: Description) -> tuple[str, str]:
    return (thing.colour or "", thing.shape)


def _gather(
    encode: Encode, scenes: Sequence[ScenePictures]
) -> tuple[list[tuple[Tensor, Description]], list[Whole]]:
    """Returns features of patches inside one thing, and their means, with the things."""
    patches: list[tuple[Tensor, Description]] = []
    wholes: list[Whole] = []
    for where, scene in enumerate(scenes):
        rows, cols = (round(SCALE * side / RESNET_STRIDE) for side in scene.ids.shape[1:])
        size = (rows * RESNET_STRIDE, cols * RESNET_STRIDE)
        ids = torch.from_numpy(scene.ids)[:, None].float()
        ids = F.interpolate(ids, size=size, mode="nearest-exact")[:, 0].int()
        shares = patch_shares(ids, (rows, cols))
        pixels = torch.from_numpy(scene.rgb).permute(0, 3, 1, 2).float() / 255
        pixels = F.interpolate(pixels, size=size, mode="bicubic", antialias=True).clamp(0, 1)
        features = encode(pixels)
        for picture in range(len(pixels)):
            for number, thing in enumerate(scene.things):
                inside = shares[picture, :, number] > _WHOLE
                if thing is None or not inside.any():
                    continue
                mine = features[picture, inside]
                patches += [(feature, thing) for feature in mine]
                wholes.append(Whole(mine.mean(dim=0), thing, (where, picture)))
    return patches, wholes
