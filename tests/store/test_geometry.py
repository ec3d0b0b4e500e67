import numpy as np
import pytest
import torch
from hypothesis import given, strategies as st
from PIL import Image

from f3rm.extract.extraction import extract_features
from f3rm.store.geometry import PixelAffine, Prep, ValidRect
from tests.extract.toy import PATCH, ToyBackbone, items_of, toy_spec, write_dataset

sides = st.integers(1, 3000)


def network_size(size: tuple[int, int], short_side: int, patch: int) -> tuple[int, int]:
    return Prep(size=short_side).place(size, patch).canvas


@given(st.tuples(sides, sides), st.integers(1, 1200), st.integers(1, 32))
def test_network_size_is_whole_patches_nearest_to_the_scaled_image(size, short_side, patch):
    scale = short_side / min(size)
    for side, chosen in zip(size, network_size(size, short_side, patch), strict=True):
        assert chosen % patch == 0
        assert chosen >= patch
        assert abs(chosen - side * scale) <= patch / 2 + 1e-6 or chosen == patch


def test_network_size_of_known_cases():
    assert network_size((1080, 1920), 1024, 14) == (1022, 1820)
    assert network_size((480, 640), 448, 8) == (448, 600)
    assert network_size((10, 10), 14, 14) == (14, 14)


@given(st.tuples(sides, sides), st.tuples(st.integers(1, 200), st.integers(1, 200)))
def test_affine_maps_the_edges_of_the_image_to_the_edges_of_the_map(size, grid):
    affine = PixelAffine.between(size, grid)
    rect = ValidRect.full(grid)
    assert affine.cells_from_pixels(-0.5, -0.5) == pytest.approx((rect.x_min, rect.y_min), abs=1e-9)
    far = affine.cells_from_pixels(size[1] - 0.5, size[0] - 0.5)
    assert far == pytest.approx((rect.x_max, rect.y_max), abs=1e-9)


def test_affine_is_the_identity_for_one_cell_per_pixel():
    assert PixelAffine.between((7, 5), (7, 5)) == PixelAffine(1.0, 0.0, 1.0, 0.0)


def test_valid_rect_lists_cells_whose_centres_are_inside():
    rows, cols = ValidRect.full((3, 5)).cells()
    assert (list(rows), list(cols)) == ([0, 1, 2], [0, 1, 2, 3, 4])
    rows, cols = ValidRect(-0.5, 1.2, 2.4, 3.5).cells()
    assert (list(rows), list(cols)) == ([2, 3], [0, 1, 2])


SIZES = [(32, 48), (31, 47), (45, 61), (97, 64), (64, 97), (23, 150), (33, 33)]


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("short_side", [32, 30, 21])
def test_pixels_look_up_where_they_are_in_the_image(tmp_path, size, short_side):
    """The backbone answers with each cell's relative position: the pixel's own must come back."""
    root = write_dataset(tmp_path / "scene", [size])
    spec = toy_spec("coords", short_side=short_side, codec="fp32")
    store = extract_features(
        items_of(root), spec, folder=tmp_path / "cache", load=ToyBackbone.load, progress=False
    )
    rows, cols = store.grid_size(0)
    y, x = torch.meshgrid(torch.arange(size[0]), torch.arange(size[1]), indexing="ij")
    xy = torch.stack([x, y], dim=-1).reshape(-1, 2).float()
    found = store.gather(torch.zeros(len(xy), dtype=torch.long), xy, mode="bilinear")
    expected = torch.stack([(xy[:, 1] + 0.5) / size[0], (xy[:, 0] + 0.5) / size[1]], dim=-1)
    expected[:, 0].clamp_(0.5 / rows, 1 - 0.5 / rows)
    expected[:, 1].clamp_(0.5 / cols, 1 - 0.5 / cols)
    errors = (found[:, :2] - expected).abs() * torch.tensor([rows, cols])
    assert errors.max() < 0.01


@pytest.mark.parametrize("size", [(48, 72), (50, 77), (59, 43)], ids=str)
@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
def test_resizing_keeps_ramps_in_register(tmp_path, size, interpolation):
    """Ramps of whole grey levels pass decoding, resizing and averaging unmoved."""
    root = write_dataset(tmp_path / "scene", [size])
    y, x = np.mgrid[: size[0], : size[1]]
    Image.fromarray(np.stack([3 * x, 3 * y, 0 * x], axis=-1).astype(np.uint8)).save(
        root / "images/0.png"
    )
    spec = toy_spec(interpolation=interpolation, codec="fp32", short_side=33)
    store = extract_features(
        items_of(root), spec, folder=tmp_path / "cache", load=ToyBackbone.load, progress=False
    )
    rows, cols = store.grid_size(0)
    inner = np.array([size[1], size[0]]) * np.random.default_rng(0).uniform(0.3, 0.7, (200, 2))
    xy = torch.from_numpy(inner).float()
    found = store.gather(torch.zeros(len(xy), dtype=torch.long), xy, mode="bilinear")[:, :2]
    errors = (found * 255 / 3 - xy).abs() * torch.tensor([cols / size[1], rows / size[0]])
    assert errors.max() < 0.02
    assert PATCH * rows != size[0]
