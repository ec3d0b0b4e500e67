"""The rules that ``presence.py`` compares, and what a scene shows them."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from f3rm.language.relevancy import TEMPERATURE, make_query, similarity

CLUSTERS = 32


@dataclass(frozen=True)
class Evidence:
    """What a scene shows a rule; saved as a dict of its fields."""

    name: str
    texts: list[str]
    kinds: list[str]
    masks: Tensor  # (present texts, views, height, width)
    is_boxed: bool
    found: dict[str, dict[str, Any]]  # by rule of find: ious, instances, and of absent texts
    cells: Tensor  # (cells, hidden)
    near: Tensor  # (cells, neighbours): indices
    views: Tensor  # (views, height, width, hidden)
    weight: Tensor  # (channels, hidden)
    prompts: Tensor  # (texts, channels)
    negatives: Tensor  # (negatives, channels)
    rivals: list[Tensor]  # of each text, (rivals, channels)
    names: Tensor  # (names, channels): what calibrates the backbone, where it is not other runs

    @cached_property
    def units(self) -> Tensor:
        """Unit features of the cells, (cells, channels)."""
        return self.features(self.cells)

    def features(self, hidden: Tensor) -> Tensor:
        """Unit features of hidden vectors, (vectors, channels)."""
        return functional.normalize(hidden.flatten(0, -2).float() @ self.weight.T, dim=-1)

    @cached_property
    def centres(self) -> Tensor:
        """Clusters of the unit features by spherical k-means, (clusters, channels)."""
        generator = torch.Generator().manual_seed(0)
        centres = self.units[torch.randperm(len(self.units), generator=generator)[:CLUSTERS]]
        for _ in range(15):
            nearest = (self.units @ centres.T).argmax(1)
            sums = torch.zeros_like(centres).index_add_(0, nearest, self.units)
            centres = functional.normalize(sums, dim=-1)
        return centres

    @cached_property
    def moments(self) -> "Moments":
        """Those of the names, else of the cells."""
        units = self.names if len(self.names) else self.units
        return Moments(units.mean(0), units.T @ units / len(units))


@dataclass(frozen=True)
class Moments:
    """Mean and second moments of unit features: a backbone's calibration."""

    mean: Tensor  # (channels)
    second: Tensor  # (channels, channels)


Scoring = Callable[[Evidence, Tensor, Moments], Tensor]
"""From evidence, unit features and the backbone's calibration to the scores of all texts."""


def lerf(scene: Evidence, units: Tensor, _others: Moments) -> Tensor:
    return similarity(units, make_query(scene.prompts, scene.negatives))


def cosine(scene: Evidence, units: Tensor, _others: Moments) -> Tensor:
    return similarity(units, make_query(scene.prompts))


def deviations(scene: Evidence, units: Tensor, others: Moments) -> Tensor:
    everywhere = cosine(scene, scene.units, others)
    return (cosine(scene, units, others) - everywhere.mean(0)) / everywhere.std(0)


def clusters(scene: Evidence, units: Tensor, others: Moments) -> Tensor:
    """Relevancy to the best-fitting cluster that is not like the prompt's own."""
    fits = cosine(scene, scene.centres, others)
    unlike = scene.centres @ scene.centres[fits.argmax(0)].T < 0.8  # (clusters, texts)
    level = torch.where(unlike, fits, -torch.inf).amax(0)
    level = torch.where(unlike.any(0), level, fits.median(0).values)
    return torch.sigmoid((cosine(scene, units, others) - level) / TEMPERATURE)


def rivals(scene: Evidence, units: Tensor, others: Moments) -> Tensor:
    """LERF's, and relevancy to phrases that contradict the prompt in one word."""
    scores = lerf(scene, units, others)
    for text, phrases in enumerate(scene.rivals):
        if len(phrases):
            query = make_query(scene.prompts[text : text + 1], phrases)
            scores[:, text] = torch.minimum(scores[:, text], similarity(units, query)[:, 0])
    return scores


def all_asked(scene: Evidence, units: Tensor, others: Moments) -> Tensor:
    """LERF's, and relevancy to all other phrases that the scene is asked for."""
    cosines = cosine(scene, units, others)
    best, second = cosines.topk(2, dim=1).values[..., None].unbind(1)
    rest = torch.where(cosines == best, second, best)
    return torch.minimum(lerf(scene, units, others), torch.sigmoid((cosines - rest) / TEMPERATURE))


def standardised(scene: Evidence, units: Tensor, others: Moments) -> Tensor:
    """How many of the backbone's standard deviations the prompt's cosine is above 3."""
    texts = functional.normalize(scene.prompts, dim=-1)
    level = texts @ others.mean
    spread = ((texts @ others.second * texts).sum(1) - level**2).clamp_min(1e-12).sqrt()
    return torch.sigmoid((units @ texts.T - level) / spread - 3)


def centred(scene: Evidence, units: Tensor, _others: Moments) -> Tensor:
    return similarity(units, make_query(scene.prompts, mean=scene.units.mean(0)))


def centred_elsewhere(scene: Evidence, units: Tensor, others: Moments) -> Tensor:
    return similarity(units, make_query(scene.prompts, mean=others.mean))


def calibrated(scene: Evidence, units: Tensor, others: Moments) -> Tensor:
    return similarity(units, make_query(scene.prompts, scene.negatives, mean=others.mean))


def scene_rule(scene: Evidence, units: Tensor, _others: Moments) -> Tensor:
    mean = scene.units.mean(0)
    return similarity(units, make_query(scene.prompts, scene.negatives, mean=mean))


RULES: dict[str, Scoring] = {
    "`lerf`: relevancy to four canonical phrases": lerf,
    "`scene`: geometric mean of `lerf` and the cosine from the scene's mean": scene_rule,
    "plain cosine": cosine,
    "cosine from the scene's mean": centred,
    "cosine from the backbone's mean": centred_elsewhere,
    "geometric mean of `lerf` and the cosine from the backbone's mean": calibrated,
    "cosine in the backbone's standard deviations": standardised,
    "cosine in the scene's standard deviations": deviations,
    "relevancy to clusters of the scene": clusters,
    "`lerf`, and to phrases that contradict": rivals,
    "`lerf`, and to all other phrases asked": all_asked,
}
