"""Every line of the table in docs/toolkit.md runs, and gives something."""

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from f3rm.errors import BackboneRef
from f3rm.extract.tables.bench import benchmark
from f3rm.extract.tables.exports import export_per_item
from f3rm.extract.tables.items import list_items
from f3rm.extract.tables.live import FeatureExtractor, LiveSource
from f3rm.extract.tables.probe import Probe
from f3rm.extract.tables.run import extract
from f3rm.extract.tables.tables import TapStore
from f3rm.recipes.image2rep import Image2Representation
from f3rm.recipes.nsd import NsdDataset, extract_nsd, nsd_items, nsd_spec
from f3rm.recipes.vissl import export_vissl, load_features, sample_features
from f3rm.recipes.vissl_config import read_vissl_config
from f3rm.store.geometry import Prep
from f3rm.store.spec import FeatureSpec
from f3rm.store.video import FramePolicy
from tests.backbones import random_vae as video_vae

PAGE = Path(__file__).parents[2] / "docs" / "toolkit.md"
ROW = re.compile(r"^\| (?:NSD|VISSL|Image2Representation): .* \| `(.+)` \|$", re.MULTILINE)
NAMES = (
    benchmark, export_per_item, export_vissl, extract, extract_nsd, FeatureSpec,
    FeatureExtractor, FramePolicy, Image2Representation, list_items, LiveSource, load_features,
    nsd_items, nsd_spec, NsdDataset, Prep, Probe, read_vissl_config, sample_features, TapStore,
)  # fmt: skip


@pytest.fixture
def world(
    tmp_path: Path, write_images: Any, write_video: Any, dinov2_folder: Path, clip_folder: Path
) -> dict[str, Any]:
    subject = tmp_path / "subject"
    names = ["a.png", "b.png"]
    write_images(names, (56, 56), subject / "training_split" / "training_images")
    write_images(names, (56, 56), subject / "test_split" / "test_images")
    photos = [f"{name}/{number}.png" for name in ("x", "y") for number in range(2)]
    write_images(photos, (64, 64), tmp_path / "photos")
    pools = [["res4", ["AvgPool2d", [[2, 2], 2, 0]]], ["res5avg", ["Identity", []]]]
    settings = {"SHOULD_FLATTEN_FEATS": False, "LINEAR_EVAL_FEAT_POOL_OPS_MAP": pools}
    config = tmp_path / "config.yaml"
    config.write_text(yaml.safe_dump({"config": {"MODEL": {"FEATURE_EVAL_SETTINGS": settings}}}))
    vae = video_vae.write_random_autoencoder(tmp_path / "vae")
    return {
        **{thing.__name__: thing for thing in NAMES},
        "np": np,
        "subject": subject,
        "photos": tmp_path / "photos",
        "config": config,
        "out": tmp_path / "out",
        "vissl": tmp_path / "vissl",
        "dinov2": str(dinov2_folder),
        "clip": str(clip_folder),
        "resnet": BackboneRef("module", "torchvision:resnet18", "random"),
        "vae": BackboneRef("vae", "vae", str(vae)),
        "image": tmp_path / "photos" / "x" / "0.png",
        "video": write_video("clip.mkv", 9),
    }


def test_every_line_of_the_table_runs(world):
    lines = ROW.findall(PAGE.read_text())
    assert len(lines) >= 20
    for line in lines:
        world["result"] = None
        assigns = " = " in line.split("(")[0]
        exec(compile(line if assigns else f"result = {line}", line, "exec"), world)
        assert assigns or world["result"] is not None, line
    assert world["result"][0].images_per_second > 0
