"""Dense features of a specification: other taps, windows, scales and squares."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st
from PIL import Image
from torch import Tensor
from torch.nn.functional import interpolate

from f3rm.backbones import load_backbone
from f3rm.backbones.base import Backbone
from f3rm.errors import BackboneRef, FeatureTypeError, TapError
from f3rm.extract.plan import InputKind
from f3rm.extract.runner import TapRunner
from f3rm.store.geometry import Prep, PrepError
from f3rm.store.spec import PRESETS, FeatureSpec, resolve_feature_type
from tests.backbones.random_clip import write_random_checkpoint
from tests.extract.toy import PATCH, ToyBackbone, extract, toy_spec, write_frames


class NeighbourBackbone(ToyBackbone):
    """Features that depend on all of the input, so that a window shows."""

    def encode_image(self, images: Tensor) -> Tensor:
        local = super().encode_image(images)
        return local + local.mean(dim=(1, 2), keepdim=True) ** 2


def make(kind: type[ToyBackbone] = ToyBackbone, model: str = "mean") -> ToyBackbone:
    return kind(BackboneRef("toy", model, "toy"), torch.device("cpu"))


def maps(backbone: Backbone, spec: FeatureSpec, images: Tensor) -> Tensor:
    """The maps of one tap, from images that are network inputs already."""
    runner = TapRunner(backbone, spec)
    kind = InputKind((images.shape[2], images.shape[3]), (images.shape[2], images.shape[3]))
    (values,) = runner.run(images[:, None], kind).values()
    return values


def noise(rows: int, cols: int, batch: int = 2) -> Tensor:
    generator = torch.Generator().manual_seed(rows * 100 + cols)
    return torch.randn(batch, 3, rows * PATCH, cols * PATCH, generator=generator)


def test_settings_in_brackets():
    dino, clip = resolve_feature_type(
        "dino + clip[tap=-1|dense( nacclip ); window=336,224;scales=0.75,1;side=448]"
    )
    assert dino == replace(PRESETS["DINO"], precision="auto")
    assert clip == replace(
        PRESETS["CLIP"],
        precision="auto",
        taps=("-1|dense(nacclip)",),
        prep=Prep(size=448, window=(336, 224), scales=(0.75, 1.0)),
    )


@pytest.mark.parametrize(
    ("text", "error", "message"),
    [
        ("CLIP[window=3]", FeatureTypeError, "window must be a side and a step in pixels, got '3'"),
        ("CLIP[windows=3,2]", FeatureTypeError, "no setting 'windows'; did you mean window"),
        ("CLIP[window=2,3]", PrepError, "from 1 to the side, got \\(2, 3\\)"),
        ("CLIP[scales=0]", PrepError, "positive factors, got \\(0.0,\\)"),
        ("CLIP[tap=-1|dens(x)]", TapError, "did you mean dense"),
        ("CLIP[tap=", FeatureTypeError, "a type must look like CLIP"),
    ],
)
def test_malformed_settings(text, error, message):
    with pytest.raises(error, match=message):
        resolve_feature_type(text)


@given(
    rows=st.integers(1, 9), cols=st.integers(1, 9), side=st.integers(1, 6), step=st.integers(1, 6)
)
@settings(max_examples=25, deadline=None)
def test_windows_of_a_local_model_change_nothing(rows, cols, side, step):
    spec = toy_spec(window=(PATCH * side, PATCH * min(step, side)))
    images = noise(rows, cols)
    found = maps(make(), spec, images)
    torch.testing.assert_close(found, make().encode_image(images), rtol=1e-5, atol=1e-6)


def test_overlapping_windows_are_blended_linearly():
    images = noise(5, 7)
    backbone = make(NeighbourBackbone)
    found = maps(backbone, toy_spec(window=(16, 8)), images)
    total, weight = torch.zeros(2, 5, 7, 3), torch.zeros(5, 7)
    for top in (0, 1):
        for left in (0, 2, 3):
            part = images[..., 4 * top : 4 * top + 16, 4 * left : 4 * left + 16]
            features = backbone.encode_image(part)
            for row in range(4):
                for col in range(4):
                    share = [1, 2, 2, 1][row] * [1, 2, 2, 1][col]
                    total[:, top + row, left + col] += share * features[:, row, col]
                    weight[top + row, left + col] += share
    torch.testing.assert_close(found, total / weight[..., None], rtol=1e-5, atol=1e-6)
    assert (found - backbone.encode_image(images)).abs().max() > 1e-3


def test_scales_are_averaged_on_the_grid_of_the_first():
    images = noise(4, 6)
    backbone = make(NeighbourBackbone)
    found = maps(backbone, toy_spec(scales=(1.0, 1.5)), images)
    larger = backbone.encode_image(interpolate(images, (24, 36), mode="bicubic", antialias=True))
    smaller = interpolate(larger.permute(0, 3, 1, 2), (4, 6), mode="bilinear", antialias=True)
    expected = (backbone.encode_image(images) + smaller.permute(0, 2, 3, 1)) / 2
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def test_other_taps_of_a_clip_have_their_own_channels_and_texts_only_by_rules(tmp_path):
    folder = write_random_checkpoint(tmp_path / "clip")
    backbone = load_backbone(BackboneRef("clip", "", str(folder)))
    images = torch.randn(1, 3, 28, 42, generator=torch.Generator().manual_seed(0))
    spec = replace(PRESETS["CLIP"], taps=("-2:key",))
    runner = TapRunner(backbone, spec)
    assert (runner.cell, runner.has_text, runner.gives_maps) == (14, False, True)
    keys = maps(backbone, spec, images)
    assert keys.shape[-1] == 64
    assert torch.equal(keys, backbone.run(images, ["-2:key"]).popitem()[1])
    ruled = replace(spec, taps=("-1|dense(sclip)",))
    assert maps(backbone, ruled, images).shape[-1] == 32
    assert TapRunner(backbone, ruled).has_text
    for tap, message in [
        ("-1@cls", "one feature per cell of the image"),
        ("-1|avg(2)", r"'-1\|avg\(2\)' gives \(2, 2, 64\) for 4 x 4 cells"),
        ("head", "one feature per cell"),
        ("ember", "did you mean embed"),
    ]:
        with pytest.raises(TapError, match=message):
            TapRunner(backbone, replace(spec, taps=(tap,))).check_maps()
    with pytest.raises(PrepError, match=r"whole cells of 14 pixels.*Take e\.g\. \(336, 224\)"):
        TapRunner(backbone, replace(spec, prep=replace(spec.prep, window=(340, 224))))
    with pytest.raises(TapError, match="one feature per cell of the image"):
        TapRunner(backbone, replace(spec, taps=("-1@cls",), prep=Prep(scales=(1.0, 2.0))))


def test_windows_read_several_maps_at_once(tmp_path):
    folder = write_random_checkpoint(tmp_path / "clip")
    backbone = load_backbone(BackboneRef("clip", "", str(folder)))
    images = torch.randn(2, 3, 56, 42, generator=torch.Generator().manual_seed(1))
    prep = Prep(window=(28, 14), scales=(1.0, 0.5))
    spec = FeatureSpec(backbone.ref, ("-2:key", "-1|dense(maskclip)"), prep)
    kind = InputKind((56, 42), (56, 42))
    both = TapRunner(backbone, spec).run(images[:, None], kind)
    for tap, values in both.items():
        assert torch.equal(values, maps(backbone, replace(spec, taps=(tap,)), images))


@given(height=st.integers(1, 300), width=st.integers(1, 300), data=st.data())
@settings(max_examples=60, deadline=None)
def test_pixels_find_their_place_in_a_square(height, width, data):
    place = Prep(size=336, fit="square").place((height, width), 14)
    affine, valid = place.affine(14), place.valid((height, width), 14)
    x, y = data.draw(st.integers(0, width - 1)), data.draw(st.integers(0, height - 1))
    side = max(height, width)
    u, v = affine.cells_from_pixels(float(x), float(y))
    # The square's pixel (x + left) covers [x + left, x + left + 1), of `side` pixels over 24 cells.
    assert u == pytest.approx((x + (side - width) // 2 + 0.5) * 24 / side - 0.5, abs=1e-9)
    assert v == pytest.approx((y + (side - height) // 2 + 0.5) * 24 / side - 0.5, abs=1e-9)
    rows, cols = valid.cells()
    assert rows
    assert cols
    assert 0 <= rows.start < rows.stop <= 24
    assert 0 <= cols.start < cols.stop <= 24
    assert place.canvas == (336, 336)


def test_the_border_of_a_square_never_reaches_a_look_up(tmp_path):
    root = tmp_path / "data"
    (root / "images").mkdir(parents=True)
    pixels = np.zeros((16, 32, 3), np.uint8)
    pixels[:, :16] = (200, 0, 0)
    pixels[:, 16:] = (0, 200, 0)
    for name, picture in (("wide", pixels), ("tall", pixels.transpose(1, 0, 2))):
        Image.fromarray(np.ascontiguousarray(picture)).save(root / "images" / f"{name}.png")
    write_frames(root, ["images/wide.png", "images/tall.png"])
    store = extract(root, toy_spec(fit="square"))
    assert [store.grid_size(index) for index in (0, 1)] == [(8, 8), (8, 8)]
    y, x = torch.meshgrid(torch.arange(16), torch.arange(32), indexing="ij")
    wide = torch.stack([x.flatten(), y.flatten()], dim=-1).float()
    for index, xy in ((0, wide), (1, wide.flip(1))):
        found = store.gather(torch.full((len(xy),), index), xy).reshape(16, 32, 3)
        expected = torch.tensor(pixels / 255, dtype=torch.float32)
        inner = [*range(2, 14), *range(18, 30)]  # bicubic resampling rings at the colours' edge
        assert (found - expected)[:, inner].abs().max() < 0.02
    centre = store.feature_map(0)[0, 0]  # the border: the mean colour in 8 bits
    torch.testing.assert_close(centre, torch.tensor([127, 102, 76]) / 255, rtol=0, atol=1e-3)
