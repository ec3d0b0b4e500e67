"""What a fixed model renders, and the tensors that a checkpoint of it holds."""

from typing import Any

import pytest
import torch

from f3rm.camera_render import RenderRequest
from tests.baseline.extraction import a_few
from tests.nerf_fixtures import camera, feature_model, head
from tests.viewer.viewer_fixtures import install_towers


def _model() -> Any:
    heads = (head("clip"), head("dino", 6, has_text=False))
    model = feature_model(*heads, positives="red mug", negatives="object, stuff").eval()
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():  # fresh ones are so small that all pixels look alike
        for name, parameter in model.named_parameters():
            if any(part in name for part in ("table", ".heads.", "mlp_head")):
                spread = 0.3 if "mlp_head" in name else 1.0
                parameter.normal_(std=spread, generator=generator)
    return model


def rendered_values() -> dict[str, Any]:
    """Renders a few pixels with a model that was not trained; a few numbers of each output."""
    with pytest.MonkeyPatch.context() as patch:
        install_towers(patch, channels=12)
        request = RenderRequest(features=True, hidden=True)
        outputs = _model().get_outputs_for_camera(camera(5, 7), request=request)
    found: dict[str, Any] = {
        name: {"shape": list(value.shape), "values": a_few(value)}
        for name, value in outputs.items()
    }
    del found["similarity_composite"]["values"]  # they jump where a score is near its threshold
    return {**found, "hidden": {"values": a_few(outputs.hidden)}}


def checkpoint_tensors() -> dict[str, str]:
    """Lists what is saved of the feature field, by name: other names would not load."""
    state = _model().state_dict()
    return {
        name: str(list(value.shape)) if isinstance(value, torch.Tensor) else type(value).__name__
        for name, value in sorted(state.items())
        if "feature" in name
    }
