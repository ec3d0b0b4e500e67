"""Small random checkpoints that the tests of this room share."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from f3rm.errors import BackboneRef
from tests.backbones.random_clip import write_random_checkpoint


def _write_lively_clip(folder: Path, *, quick_gelu: bool) -> Path:
    """Adds noise to norms and biases, so that a forgotten one shows."""
    write_random_checkpoint(folder, seed=3, quick_gelu=quick_gelu)
    file = folder / "open_clip_model.safetensors"
    state = load_file(file)
    generator = torch.Generator().manual_seed(11)
    for name, tensor in sorted(state.items()):
        if tensor.ndim == 1:
            state[name] = tensor + 0.3 * torch.randn(tensor.shape, generator=generator)
    save_file(state, file)
    return folder


@pytest.fixture(scope="session")
def clip_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A QuickGELU CLIP: width 64, 3 blocks, 2 heads, patch 14, trained at 56 x 56, 32 channels."""
    return _write_lively_clip(tmp_path_factory.mktemp("clip"), quick_gelu=True)


@pytest.fixture(scope="session")
def gelu_clip_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same with GELU."""
    return _write_lively_clip(tmp_path_factory.mktemp("clip_gelu"), quick_gelu=False)


@pytest.fixture
def clip_ref(clip_folder: Path) -> BackboneRef:
    return BackboneRef("clip", "a folder needs no model name", str(clip_folder))


@pytest.fixture
def make_images() -> Callable[..., Tensor]:
    """Makes normalised noise images, (batch, 3, height, width)."""

    def make(height: int, width: int, *, batch: int = 2, seed: int = 0) -> Tensor:
        generator = torch.Generator().manual_seed(seed)
        return torch.randn(batch, 3, height, width, generator=generator)

    return make


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Makes the hub unreachable, with an empty cache, as HF_HUB_OFFLINE=1 on a new machine does."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "empty_hub_cache"))
