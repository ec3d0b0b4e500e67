"""A package of somebody else's brings a backbone with layers of its own."""

import sys
from pathlib import Path

import pytest
import torch
from PIL import Image

from f3rm.backbones import adapter_names, load_backbone
from f3rm.errors import TapError
from f3rm.extract.standalone import extract_features_for_dataset
from f3rm.scripts.cli import main
from f3rm.store.spec import resolve_feature_type
from tests.extract.toy import write_frames

SOURCE = '''
"""Mean and spread of the colours of every 8 x 8 pixels."""

import torch

from f3rm.backbones import Backbone, LayerInfo
from f3rm.backbones.tap_values import apply_ops


class Statistics(Backbone):
    default_model, default_weights = "statistics", "none"
    default_tap, default_short_side = "spread", 32
    channels, patch_size, has_text = 3, 8, False
    mean, std = (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)
    device = torch.device("cpu")

    def __init__(self, ref):
        self.ref = ref

    @classmethod
    def load(cls, ref, *, device, towers):
        return cls(ref)

    def encode_image(self, images):
        return self.run(images, ["spread"]).popitem()[1]

    def layers(self):
        return [LayerInfo("mean", "map", 3, 8), LayerInfo("spread", "map", 3, 8)]

    def read_taps(self, images, taps):
        cells = images.unfold(2, 8, 8).unfold(3, 8, 8).permute(0, 2, 3, 1, 4, 5).flatten(4)
        layers = {"mean": cells.mean(-1), "spread": cells.std(-1)}
        return {tap: apply_ops(layers[tap.layer], tap.ops, "map") for tap in taps}

    def provenance(self):
        return {"library": "statistics", "weights": "none"}
'''


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """The package as pip leaves it: a module, and metadata beside it."""
    folder = tmp_path / "site-packages"
    info = folder / "colour_statistics-1.0.dist-info"
    info.mkdir(parents=True)
    (folder / "colour_statistics.py").write_text(SOURCE)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: colour-statistics\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(
        "[f3rm.backbones]\nstatistics = colour_statistics:Statistics\n"
    )
    monkeypatch.syspath_prepend(str(folder))
    yield folder
    sys.modules.pop("colour_statistics", None)


@pytest.mark.usefixtures("package")
def test_an_installed_backbone_is_a_feature_type_with_taps(tmp_path, capsys):
    assert "statistics" in adapter_names()
    root = tmp_path / "data"
    (root / "images").mkdir(parents=True)
    Image.linear_gradient("L").resize((32, 48)).convert("RGB").save(root / "images" / "0.png")
    write_frames(root, ["images/0.png"])
    stores = extract_features_for_dataset(root, "statistics", device="cpu", progress=False)
    assert stores["statistics"].feature_map(0).shape == (6, 4, 3)
    means = extract_features_for_dataset(
        root, "STATISTICS[tap=mean]", device="cpu", progress=False
    )["statistics"].feature_map(0)
    assert (means.diff(dim=0) > 0).all()  # the gradient of the picture, not its spread
    (spec,) = resolve_feature_type("statistics")
    backbone = load_backbone(spec.backbone)
    (found,) = backbone.run(torch.rand(1, 3, 16, 24), ["mean|adaptive_avg(1,1)|flatten"]).values()
    assert found.shape == (1, 3)
    with pytest.raises(TapError, match=r"no layer 'men'.*did you mean mean"):
        extract_features_for_dataset(root, "STATISTICS[tap=men]", device="cpu", progress=False)
    assert main(["layers", "--feature-type", "statistics"]) == 0
    assert "spread  map   3" in capsys.readouterr().out
