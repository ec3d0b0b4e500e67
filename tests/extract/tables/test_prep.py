"""Preparation: sizes, geometry and padding, for every combination."""

import itertools
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings, strategies as st
from PIL import Image
from torchvision.transforms import CenterCrop, Compose, Resize
from torchvision.transforms.functional import pil_to_tensor

from f3rm.errors import BackboneRef, F3rmError
from f3rm.extract.prepare import network_input
from f3rm.extract.tables.live import FeatureExtractor
from f3rm.store.geometry import Placement, Prep, PrepError
from f3rm.store.settings import settings_of
from f3rm.store.spec import FeatureSpec, SpecError
from tests.extract.tables.backbone import GridBackbone
from tests.extract.tables.conftest import pixels_of

PATCH = 8
RESIZES = [("none", None), ("short", 40), ("long", 72), ("exact", (40, 64)), ("cover", (40, 56))]
FITS = ["round", "floor", "crop", "pad"]


def mask_of(place: Placement, size: tuple[int, int], patch: int) -> torch.Tensor:
    """Which cells have their centre in the image."""
    rows, cols = place.valid(size, patch).cells()
    mask = torch.zeros(place.canvas[0] // patch, place.canvas[1] // patch, dtype=torch.bool)
    mask[rows.start : rows.stop, cols.start : cols.stop] = True
    return mask


@pytest.mark.parametrize(("resize", "fit"), list(itertools.product(RESIZES, FITS)))
@pytest.mark.parametrize("size", [(61, 83), (90, 50)])
def test_affine_finds_the_pixel_again(resize, fit, size):
    """Images hold their own coordinates; a cell's value is the pixel that the affine names."""
    prep = Prep(resize=resize[0], size=resize[1], fit=fit)
    ys, xs = np.mgrid[: size[0], : size[1]]
    pixels = torch.from_numpy(np.stack([ys, xs, 0 * xs], axis=-1).astype(np.uint8))
    place = prep.place(size, PATCH)
    image = network_input(
        pixels, place, prep, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0), device=torch.device("cpu")
    )
    assert image.shape[1] % PATCH == image.shape[2] % PATCH == 0
    assert tuple(image.shape[1:]) == place.canvas
    cells = torch.nn.functional.avg_pool2d(image * 255, PATCH)
    affine = place.affine(PATCH)
    inside = mask_of(place, size, PATCH)
    inside[-1], inside[:, -1] = False, False  # at the border, antialiasing sees less
    inside[0], inside[:, 0] = False, False
    assert inside.any()
    for row, col in inside.nonzero().tolist():
        u, v = affine.cells_from_pixels(float(cells[1, row, col]), float(cells[0, row, col]))
        scale = max(affine.scale_x, affine.scale_y)
        assert abs(u - col) < 0.01 + 0.6 * scale  # 8-bit coordinates are whole pixels
        assert abs(v - row) < 0.01 + 0.6 * scale


@given(
    height=st.integers(8, 200),
    width=st.integers(8, 200),
    resize=st.sampled_from(RESIZES),
    fit=st.sampled_from([*FITS, "square"]),
)
@example(height=8, width=77, resize=("long", 72), fit="crop")
@settings(max_examples=60, deadline=None)
def test_placements_are_whole_patches_that_show_the_image(height, width, resize, fit):
    prep = Prep(resize=resize[0], size=resize[1], fit=fit)
    padded = replace(prep, fit="pad").place((height, width), PATCH)
    if fit == "crop" and min(padded.resized) < PATCH:
        with pytest.raises(PrepError, match="at least one patch"):
            prep.place((height, width), PATCH)
        return
    place = prep.place((height, width), PATCH)
    assert all(side > 0 and side % PATCH == 0 for side in place.canvas)
    for axis in range(2):
        assert place.cut[axis] + place.kept[axis] <= place.resized[axis]
        assert place.kept[axis] <= place.canvas[axis]
        assert place.canvas[axis] - place.kept[axis] < PATCH


def test_nsd_padding_gives_31_by_31():
    place = Prep(resize="none", size=None, fit="pad").place((425, 425), 14)
    assert place.canvas == (434, 434)
    assert mask_of(place, (425, 425), 14).sum() == 30 * 30


@pytest.mark.parametrize("fit", ["round", "square"])
def test_colours_go_to_the_device_once(monkeypatch, fit):
    """A GPU takes a list of numbers after all that it has been given before; the caller waits."""
    prep = Prep(size=16, fit=fit)
    made, plain = [], torch.tensor

    def tensor(*arguments, **options):
        made.append(arguments)
        return plain(*arguments, **options)

    monkeypatch.setattr(torch, "tensor", tensor)
    monkeypatch.setattr(torch.Tensor, "new_tensor", tensor)
    for seed in range(2):
        made.clear()
        pixels = torch.full((24, 32, 3), seed, dtype=torch.uint8)
        network_input(
            pixels, prep.place((24, 32), 8), prep, mean=(0.1, 0.2, 0.3), std=(0.4, 0.5, 0.6),
            device=torch.device("cpu"),
        )  # fmt: skip
    assert not made


@pytest.mark.parametrize("size", [(61, 83), (90, 50), (47, 66), (40, 43)])
def test_resize_and_centre_crop_are_torchvisions(size):
    """Bit by bit on tensors; PIL, which VISSL used, rounds to grey levels once more."""
    pixels = torch.from_numpy(pixels_of(size, 0))
    prep = Prep("short", 40, fit="crop", interpolation="bilinear", crop=32)
    ours = network_input(
        pixels, prep.place(size, PATCH), prep, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0),
        device=torch.device("cpu"),
    )  # fmt: skip
    steps = Compose([Resize(40), CenterCrop(32)])
    assert torch.equal(ours, steps(pixels.permute(2, 0, 1).float() / 255))
    theirs = pil_to_tensor(steps(Image.fromarray(pixels.numpy())))
    assert (ours * 255 - theirs).abs().max() < 1.01


def test_caches_from_before_there_was_a_crop_stay_valid():
    spec = FeatureSpec(BackboneRef("vae", "vae", ""), ("latent",), Prep(), precision="float32")
    assert "crop" not in spec.settings("weights")
    cropped = replace(spec, prep=Prep("short", 256, crop=224))
    assert cropped.settings("weights")["crop"] == 224


@pytest.mark.parametrize("value", ["zero", "black", "edge"])
def test_padding_is_what_it_says(value):
    prep = Prep(resize="none", size=None, fit="pad", pad_value=value)
    pixels = torch.full((6, 6, 3), 255, dtype=torch.uint8)
    image = network_input(
        pixels, prep.place((6, 6), 8), prep, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5),
        device=torch.device("cpu"),
    )  # fmt: skip
    expected = {"zero": 0.0, "black": -1.0, "edge": 1.0}[value]
    assert image.shape == (3, 8, 8)
    assert (image[:, :6, :6] == 1.0).all()
    assert (image[:, 6:] == expected).all()


@pytest.mark.parametrize(
    "settings_", [{"size": None}, {"resize": "short", "size": [3, 4]},
                  {"fit": "tight"}, {"size": 0}, {"size": 200, "crop": 224}, {"crop": 0},
                  {"resize": "long", "crop": 8}]
)  # fmt: skip
def test_impossible_preparations_are_refused(settings_):
    with pytest.raises(PrepError, match="Prep: "):
        settings_of(Prep, settings_, PrepError)


def test_padding_never_leaks_into_pooled_values():
    """The backbone gives coordinates of cells, so a wrong mean would show."""
    backbone = GridBackbone()
    prep = Prep(resize="none", size=None, fit="pad")
    spec = FeatureSpec(backbone.ref, ("final|mean", "final|amax", "final"), prep)
    found = FeatureExtractor(spec, backbone=backbone)(np.zeros((20, 36, 3), dtype=np.uint8))
    shown = found["final"][0, :2, :4].reshape(-1, 3)  # cells whose centres are in the image
    torch.testing.assert_close(found["final|mean"][0], shown.mean(0))
    torch.testing.assert_close(found["final|amax"][0], shown.amax(0))


def test_pooling_windows_over_padding_is_refused():
    backbone = GridBackbone()
    prep = Prep(resize="none", size=None, fit="pad")
    spec = FeatureSpec(backbone.ref, ("final|avg(2,1)|mean",), prep)
    with pytest.raises(SpecError, match="would mix padding with the image"):
        FeatureExtractor(spec, backbone=backbone)(np.zeros((20, 36, 3), dtype=np.uint8))


def test_specifications_survive_yaml(tmp_path):
    spec = FeatureSpec.of(
        "dinov2:facebook/dinov2-base",
        ["-1:query@all", "final |mean"],
        prep={"resize": "cover", "size": [360, 640]},
        frames={"num": 9, "pick": "last", "pool": "mean"},
        codec="fp16",
    )
    spec.save(tmp_path / "spec.yaml")
    assert FeatureSpec.load(tmp_path / "spec.yaml") == spec
    assert FeatureSpec.from_dict(spec.to_dict()) == spec
    assert spec.backbone == BackboneRef("dinov2", "facebook/dinov2-base", "")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("taps: [final]", "no 'backbone'"),
        ("backbone: resnet\ntaps: [final]", "adapter:model"),
        ("backbone: clip:x\ntaps: []", "taps must be one or more"),
        ("backbone: clip:x\ntaps: [final]\nprepp: {}", "did you mean prep"),
        ("backbone: clip:x\ntaps: [final]\nprep: {sise: 3}", "sise"),
        ("backbone: clip:x\ntaps: [final]\nframes: {pick: best}", "pick must be"),
        ("- 1", "must hold settings by name"),
        ("{", "is not readable YAML"),
    ],
)
def test_wrong_specifications_say_what_is_wrong(tmp_path, text, message):
    (tmp_path / "spec.yaml").write_text(text)
    with pytest.raises(F3rmError, match=message):
        FeatureSpec.load(tmp_path / "spec.yaml")
