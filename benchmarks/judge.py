"""Quick scores of a model under training, on its held-out views at a sixth of their size."""

from pathlib import Path

import numpy as np
import torch
from torch.nn import functional

from f3rm.evaluation.metrics import fixed_mask, iou
from f3rm.evaluation.predictions import psnr
from f3rm.evaluation.vocabulary import Speaker, open_language
from f3rm.feature_datamanager import FeatureDataManager, match_items
from f3rm.language.heads import choose_head
from f3rm.language.relevancy import similarity
from f3rm.model import FeatureFieldModel
from f3rm.scene.casting import HIDDEN_ONLY, hidden_of
from f3rm.synthetic.truth import SceneTruth

_SHRINK = 6
_LEAST_PIXELS = 8
"""A query is scored in a view only if so many of the small view's pixels show what it names."""


class Judge:
    """Scores a model under training on the held-out views."""

    def __init__(self, data: Path, manager: FeatureDataManager, model: FeatureFieldModel) -> None:
        spec = choose_head(model.heads, None)
        truth = SceneTruth.read(data)
        if spec is None:
            raise ValueError("Judge: the field must have language; choose such a feature type.")
        self.head = model.feature_field.head(spec.name)
        self.language = open_language(Speaker((self.head,)), truth)
        self.manager, self.model = manager, model
        self.store = manager.stores[spec.name]
        self.names = match_items(manager.eval_dataset.image_filenames, manager.items)

    @torch.no_grad()
    def measure(self) -> tuple[float, float, float]:
        """Returns mean cosine, mean IoU and mean PSNR."""
        self.model.eval()
        cosines: list[float] = []
        decibels: list[float] = []
        ious: dict[str, list[float]] = {}
        loader = self.manager.fixed_indices_eval_dataloader
        for index, name in enumerate(self.names):
            camera, batch = loader.get_camera(index)
            camera.rescale_output_resolution(1 / _SHRINK)
            camera = camera.to(self.model.device)
            outputs = self.model.get_outputs_for_camera(camera, request=HIDDEN_ONLY)
            hidden = hidden_of(outputs)
            features = self.head(hidden.to(self.head.weight))
            cosines.append(self._cosine(name, features))
            small = batch["image"].permute(2, 0, 1)[None]
            small = functional.interpolate(small, size=hidden.shape[:2], mode="area")[0]
            decibels.append(psnr(self.model, outputs, small.permute(1, 2, 0)))
            for text, value in self._ious(name, features).items():
                ious.setdefault(text, []).append(value)
        self.model.train()
        miou = float(np.mean([np.mean(values) for values in ious.values()]))
        return float(np.mean(cosines)), miou, float(np.mean(decibels))

    def _cosine(self, name: str, features: torch.Tensor) -> float:
        rows, cols, channels = features.shape
        y, x = torch.meshgrid(torch.arange(rows), torch.arange(cols), indexing="ij")
        xy = torch.stack((x, y), dim=-1).reshape(-1, 2).float() * _SHRINK + (_SHRINK - 1) / 2
        index = torch.full((len(xy),), self.store.index(name))
        target = self.store.gather(index, xy, mode="bilinear").to(features)
        return float(
            functional.cosine_similarity(features.view(-1, channels), target, dim=-1).mean()
        )

    def _ious(self, name: str, features: torch.Tensor) -> dict[str, float]:
        ids = self.language.truth.view(name).ids
        ids = ids[_SHRINK // 2 :: _SHRINK, _SHRINK // 2 :: _SHRINK]
        # From features: the hidden query was made with the weight of an earlier step.
        scores = similarity(features, self.language.query).permute(2, 0, 1).cpu().numpy()
        found: dict[str, float] = {}
        for number, query in enumerate(self.language.vocabulary.queries):
            mask = np.isin(ids, query.ids)
            if mask.sum() >= _LEAST_PIXELS:
                found[query.text] = iou(fixed_mask(scores[number]), mask)
        return found
