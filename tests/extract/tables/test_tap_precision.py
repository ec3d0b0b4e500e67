"""What taps are computed in: chosen by the device, kept by a store, float32 for other systems."""

import pytest
import torch

from f3rm.errors import BackboneRef
from f3rm.extract import encoder, worker
from f3rm.extract.tables.live import FeatureExtractor
from f3rm.extract.tables.run import extract
from f3rm.recipes.image2rep import Image2Representation
from f3rm.recipes.nsd import nsd_spec
from f3rm.recipes.vissl_config import read_vissl_config
from f3rm.scripts.taps import choose_spec
from f3rm.store.geometry import Prep
from f3rm.store.spec import FeatureSpec
from tests.extract.tables.backbone import GridBackbone

REF = BackboneRef("grid", "grid", "none")
SPEC = FeatureSpec(REF, ("final", "final|mean"), Prep(resize="exact", size=32))
VISSL = {"config": {"MODEL": {"FEATURE_EVAL_SETTINGS": {}}}}


class Linear(GridBackbone):
    """Ends with a product of thirds, which autocast rounds."""

    def encode_image(self, images):
        return super().encode_image(images) @ (torch.eye(3) / 3)


@pytest.fixture
def on(monkeypatch):
    """Lets the device suit a precision."""

    def suit(precision: str) -> None:
        for module in (worker, encoder):
            monkeypatch.setattr(module, "best_precision", lambda _: precision)

    return suit


@pytest.fixture
def images(tmp_path, write_images):
    return write_images([f"{number}.png" for number in range(3)], (40, 56), tmp_path / "images")


def run(images, out, spec=SPEC, **options):
    return extract(images, spec, out, load=Linear.load, device="cpu", progress=False, **options)


def test_auto_is_the_default_and_what_is_extracted_satisfies_it(images, tmp_path, on):
    assert SPEC.precision == "auto"
    on("bfloat16")
    store = run(images, tmp_path / "out")
    assert store.spec.precision == "bfloat16"
    live = FeatureExtractor(SPEC, backbone=Linear())(images)
    for tap in SPEC.taps:
        assert live[tap].dtype == torch.float32
        assert torch.equal(live[tap], torch.from_numpy(store.load(tap).features)), tap
    on("float32")
    before = (store.folder / "manifest.json").stat().st_mtime_ns
    assert run(images, tmp_path / "out").spec.precision == "bfloat16"
    assert (store.folder / "manifest.json").stat().st_mtime_ns == before
    exact = FeatureExtractor(SPEC, backbone=Linear())(images)
    assert not torch.equal(exact["final"], live["final"])
    torch.testing.assert_close(exact["final"], live["final"], rtol=2**-7, atol=0)


def test_recipes_of_other_systems_are_in_float32_on_any_device(images, on):
    on("bfloat16")
    assert nsd_spec("dinov2_q").precision == nsd_spec("clip").precision == "float32"
    settings = read_vissl_config(VISSL)
    assert settings.spec(REF, Prep()).precision == "float32"
    assert settings.spec(REF, Prep(), precision="float16").precision == "float16"
    encoder = Image2Representation(REF, tap="final", resolution=(32, 48), loaded=Linear())
    found = encoder.extract_from_image(images[0])
    on("float32")
    assert torch.equal(found, encoder.extract_from_image(images[0]))


def test_the_command_line_chooses_and_a_file_keeps_what_it_says(tmp_path):
    file = tmp_path / "spec.yaml"
    FeatureSpec(REF, ("final",), precision="float16").save(file)
    assert choose_spec(None, "grid:grid", ["final"]).spec.precision == "auto"
    assert choose_spec(None, "grid:grid", ["final"], "bfloat16").spec.precision == "bfloat16"
    assert choose_spec(file, None, ()).spec.precision == "float16"
    assert choose_spec(file, None, (), "float32").spec.precision == "float32"
    file.write_text("backbone: grid:grid\ntaps: [final]\n")
    assert choose_spec(file, None, ()).spec.precision == "auto"
