"""RADIO against transformers' own forward, on a small random checkpoint."""

from pathlib import Path

import pytest
import torch
from transformers import RadioModel

from f3rm.backbones import load_backbone
from f3rm.backbones.base import Backbone
from f3rm.errors import BackboneRef, BackboneUnavailableError
from tests.backbones.encoders.random_towers import WIDTH, write_radio


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_radio(tmp_path_factory.mktemp("radio"))


@pytest.fixture(scope="module")
def backbone(folder: Path) -> Backbone:
    return load_backbone(BackboneRef("radio", "", str(folder)))


@pytest.mark.parametrize("size", [(64, 64), (32, 80), (96, 48)], ids=str)
def test_tokens_are_the_librarys(backbone, folder, make_images, size):
    images = make_images(*size)  # normalised, which the library does itself
    mean, std = (torch.tensor(each)[:, None, None] for each in (backbone.mean, backbone.std))
    library = RadioModel.from_pretrained(folder, attn_implementation="eager").eval()
    with torch.no_grad():
        expected = library(images * std + mean, output_attentions=True)
    taps = ["final@all", "final", "-1:attn@all", "head"]
    tokens, patches, attention, summary = backbone.run(images, taps).values()
    assert patches.shape == (2, size[0] // 16, size[1] // 16, WIDTH)
    torch.testing.assert_close(tokens, expected.last_hidden_state, rtol=0, atol=1e-5)
    torch.testing.assert_close(patches.flatten(1, 2), expected.features, rtol=0, atol=1e-5)
    torch.testing.assert_close(summary, expected.summary, rtol=0, atol=1e-5)
    torch.testing.assert_close(attention, expected.attentions[-1], rtol=0, atol=1e-5)
    assert torch.equal(backbone.encode_image(images), patches)


def test_the_contract(backbone, folder, make_images):
    assert (backbone.channels, backbone.patch_size, backbone.has_text) == (WIDTH, 16, False)
    assert backbone.mean == pytest.approx((0.4, 0.5, 0.6))
    assert backbone.std == pytest.approx((0.2, 0.2, 0.2))
    (registers,) = backbone.run(make_images(32, 48), ["final@reg"]).values()
    assert registers.shape == (2, 9, WIDTH) == (2, *backbone.shape("final@reg", 32, 48))
    assert backbone.shape("head", 32, 48) == (2 * WIDTH,)
    with pytest.raises(BackboneUnavailableError, match="RADIO has no text tower"):
        load_backbone(BackboneRef("radio", "", str(folder)), towers=("text",))


def test_its_authors_own_layout_is_refused_without_running_code(tmp_path):
    (tmp_path / "config.json").write_text('{"auto_map": {"AutoModel": "hf_model.RADIOModel"}}')
    (tmp_path / "hf_model.py").write_text("raise SystemExit('this must not run')")
    with pytest.raises(BackboneUnavailableError, match="own code, which f3rm does not run"):
        load_backbone(BackboneRef("radio", "", str(tmp_path)))
