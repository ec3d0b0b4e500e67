"""Laws of rasterising: both implementations, gsplat's own reference, and the adjoint."""

import dataclasses

import pytest
import torch

from f3rm.errors import ImplementationError
from f3rm.splats import rasterizer as rasterizers
from f3rm.splats.gaussians import Gaussians, harmonics, scaled_axes
from f3rm.splats.projection import MOST_ALPHA, PinholeCamera, project
from f3rm.splats.rasterizer import Rasterizer, choose_rasterizer
from tests.splats.scenes import camera, random_gaussians

gsplat = pytest.importorskip("gsplat.cuda._torch_impl")
HAS_NUMBA = rasterizers._is_installed("numba")
BOTH = ["torch", *(["numba"] if HAS_NUMBA else [])]


def gsplat_projection(gaussians, view):
    axes = scaled_axes(gaussians.quats, gaussians.scales)
    intrinsics = torch.eye(3, dtype=axes.dtype)[None]
    intrinsics[0, 0, 0], intrinsics[0, 1, 1] = view.focal
    intrinsics[0, 0, 2], intrinsics[0, 1, 2] = view.centre
    return gsplat._fully_fused_projection(
        gaussians.means,
        axes @ axes.mT,
        view.camera_from_source[None],
        intrinsics,
        view.size[1],
        view.size[0],
    )


@pytest.mark.parametrize("seed", range(5))
def test_gaussians_are_projected_as_gsplat_does(seed):
    gaussians, view = random_gaussians(300, seed=seed), camera()
    ours = project(gaussians, view)
    radii, means, depths, conics, _ = gsplat_projection(gaussians, view)
    shown = (radii[0] > 0).nonzero()[:, 0]
    assert set(shown.tolist()) == set(ours.ids.tolist())
    assert 0 < len(shown) < len(gaussians)
    torch.testing.assert_close(ours.radii, radii[0, ours.ids])
    for own, theirs in ((ours.means, means), (ours.depths, depths), (ours.conics, conics)):
        torch.testing.assert_close(own, theirs[0, ours.ids], rtol=1e-9, atol=1e-12)
    assert (ours.depths.diff() >= 0).all()


def test_gaussians_are_in_the_tiles_of_gsplat():
    gaussians, view = random_gaussians(100), camera()
    ours = project(gaussians, view)
    rows, columns = view.tiles
    count, ids, flat = gsplat._isect_tiles(
        ours.means[None], ours.radii[None], ours.depths[None], 16, columns, rows
    )
    starts = gsplat._isect_offset_encode(ids, 1, columns, rows).flatten().tolist()
    first, last = ours.tile_bounds(view)
    assert torch.equal((last - first).prod(dim=1).int(), count[0])
    for tile, (start, stop) in enumerate(zip(starts, [*starts[1:], len(flat)], strict=True)):
        place = torch.tensor([tile % columns, tile // columns])
        here = ((first <= place) & (place < last)).all(dim=1)
        assert torch.equal(here.nonzero()[:, 0].int(), flat[start:stop])


@pytest.mark.skipif(not HAS_NUMBA, reason="numba is not installed")
@pytest.mark.parametrize("seed", range(4))
def test_machine_code_equals_its_twin(seed):
    gaussians, view = random_gaussians(50, seed=seed, scale=0.3), camera()
    fast, twin = (Rasterizer(gaussians, view, implementation=name) for name in ("numba", "torch"))
    values, picture = torch.randn(50, 7).double(), torch.randn(*view.size, 7).double()
    for made in (lambda each: each.composite(values), lambda each: each.adjoint(picture)):
        torch.testing.assert_close(made(fast), made(twin), rtol=0, atol=1e-10)
    assert twin.accumulation.max() > 0.5


@pytest.mark.skipif(not HAS_NUMBA, reason="numba is not installed")
def test_machine_code_in_single_precision_is_near_its_twin():
    gaussians, view = random_gaussians(2000, dtype=torch.float32, scale=0.02), camera()
    fast, twin = (Rasterizer(gaussians, view, implementation=name) for name in ("numba", "torch"))
    values = torch.rand(2000, 3)
    # A weight of 1/255 may be counted by one and not by the other.
    error = (fast.composite(values) - twin.composite(values)).abs()
    assert error.max() < 5e-3
    assert error.mean() < 1e-5


@pytest.mark.parametrize("name", BOTH)
def test_adjoint_is_the_transpose(name):
    gaussians, view = random_gaussians(200, scale=0.05), camera()
    drawing = Rasterizer(gaussians, view, implementation=name)
    values, picture = torch.randn(200, 3).double(), torch.randn(*view.size, 3).double()
    left = (drawing.composite(values) * picture).sum()
    right = (values * drawing.adjoint(picture)).sum()
    torch.testing.assert_close(left, right, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("name", BOTH)
def test_the_order_of_gaussians_does_not_matter(name):
    gaussians, view = random_gaussians(150), camera()
    order = torch.randperm(150, generator=torch.Generator().manual_seed(3))
    values, picture = torch.randn(150, 2).double(), torch.randn(*view.size, 2).double()
    drawing = Rasterizer(gaussians, view, implementation=name)
    shuffled = Rasterizer(gaussians.subset(order), view, implementation=name)
    torch.testing.assert_close(shuffled.composite(values[order]), drawing.composite(values))
    torch.testing.assert_close(shuffled.adjoint(picture), drawing.adjoint(picture)[order])


@pytest.mark.parametrize("name", BOTH)
def test_gaussians_without_opacity_vanish(name):
    gaussians, view = random_gaussians(60), camera()
    opacities = gaussians.opacities.clone()
    opacities[::2] = 0
    hidden = dataclasses.replace(gaussians, opacities=opacities)
    values = torch.randn(60, 2).double()
    drawing = Rasterizer(hidden, view, implementation=name)
    rest = Rasterizer(gaussians.subset(torch.arange(1, 60, 2)), view, implementation=name)
    torch.testing.assert_close(drawing.composite(values), rest.composite(values[1::2]))
    assert not drawing.adjoint(torch.ones(*view.size, 1).double())[::2].any()


@pytest.mark.parametrize("name", BOTH)
def test_a_wall_hides_what_is_behind_it(name):
    view = camera(turn=0.0)
    depths = torch.tensor([2.0, 2.1, 2.2, 3.0])  # two walls leave 1e-6, so that the second ends it
    gaussians = Gaussians(
        means=torch.stack((torch.zeros(4), torch.zeros(4), depths), dim=1).double(),
        quats=torch.eye(4)[:1].repeat(4, 1).double(),
        scales=torch.full((4, 3), 50.0).double(),
        opacities=torch.ones(4).double(),
        sh=torch.zeros(4, 1, 3).double(),
    )
    shown = Rasterizer(gaussians, view, implementation=name).composite(torch.eye(4).double())
    expected = torch.tensor([MOST_ALPHA, 0, 0, 0]).double().expand_as(shown)
    torch.testing.assert_close(shown, expected, atol=1e-3, rtol=0)
    assert not shown[..., 1:].any()


@pytest.mark.parametrize("name", BOTH)
def test_a_view_of_nothing_is_empty(name):
    gaussians, view = random_gaussians(20), camera()
    behind = dataclasses.replace(gaussians, means=gaussians.means - torch.tensor([0, 0, 50.0]))
    drawing = Rasterizer(behind, view, implementation=name)
    assert not drawing.accumulation.any()
    assert not drawing.adjoint(torch.ones(*view.size, 2).double()).any()


@pytest.mark.parametrize(("degree", "count"), [(0, 1), (1, 4), (2, 9), (3, 16)])
def test_harmonics_are_those_of_gsplat(degree, count):
    gaussians = random_gaussians(30, harmonics=count)
    eye = torch.tensor([0.3, -0.2, 0.9]).double()
    theirs = gsplat._spherical_harmonics(degree, gaussians.means - eye, gaussians.sh)
    torch.testing.assert_close(gaussians.colours(eye), (theirs + 0.5).clamp_min(0))
    assert harmonics(torch.eye(3).double(), count).shape == (3, count)


def test_auto_takes_what_is_there(monkeypatch):
    assert choose_rasterizer("auto", "cpu") == ("numba" if HAS_NUMBA else "torch")
    monkeypatch.setattr(rasterizers, "_is_installed", lambda package: package == "gsplat")
    assert choose_rasterizer("auto", "cuda") == "gsplat"
    assert choose_rasterizer("auto", "cuda", torch.float64) == "torch"
    assert choose_rasterizer("auto", "cpu") == "torch"
    with pytest.raises(ImplementationError, match="'gsplat' needs a CUDA device"):
        choose_rasterizer("gsplat", "cpu")
    with pytest.raises(ImplementationError, match="pip install"):
        choose_rasterizer("numba", "cpu")


def stand_in(monkeypatch, *, is_old):
    """Puts a recorder in gsplat's place that draws with our twin; returns its calls."""
    library = pytest.importorskip("f3rm.splats.gsplat_library")
    calls = []

    def draw(*, means, quats, scales, opacities, colors, **settings):
        calls.append((colors.shape[1], settings))
        intrinsics = settings["Ks"][0]
        view = PinholeCamera(
            settings["viewmats"][0],
            (float(intrinsics[0, 0]), float(intrinsics[1, 1])),
            (float(intrinsics[0, 2]), float(intrinsics[1, 2])),
            (settings["height"], settings["width"]),
        )
        these = Gaussians(means, quats, scales, opacities, means.new_zeros(len(means), 1, 3))
        identity = torch.eye(len(means), dtype=means.dtype)
        matrix = Rasterizer(these, view, implementation="torch").composite(identity)
        return (matrix @ colors)[None], None, {}

    def old(*, means, quats, scales, opacities, colors, viewmats, width, height, **more):
        these = {"means": means, "quats": quats, "scales": scales, "opacities": opacities}
        sizes = {"viewmats": viewmats, "width": width, "height": height}
        return draw(**these, colors=colors, **sizes, **more)

    def new(*, packed=False, sh_degree=0, render_mode="D", **more):
        return draw(packed=packed, sh_degree=sh_degree, render_mode=render_mode, **more)

    monkeypatch.setattr(library, "rasterization", old if is_old else new)
    return library, calls


@pytest.mark.parametrize("is_old", [True, False])
def test_gsplat_gets_what_its_version_knows(monkeypatch, is_old):
    library, calls = stand_in(monkeypatch, is_old=is_old)
    gaussians = random_gaussians(25, dtype=torch.float32)
    view = camera(dtype=torch.float32)
    twin = Rasterizer(gaussians, view, implementation="torch")
    drawing = library.GsplatRasterizer(gaussians, view)
    values, picture = torch.randn(25, 65), torch.randn(*view.size, 65)
    torch.testing.assert_close(drawing.composite(values), twin.composite(values))
    torch.testing.assert_close(
        drawing.adjoint(picture), twin.adjoint(picture), atol=1e-4, rtol=1e-4
    )
    assert [width for width, _ in calls] == [32, 32, 1] * 2  # released builds have no wider kernels
    own = {"viewmats", "Ks", "width", "height"}
    known = set() if is_old else {"packed", "sh_degree", "render_mode"}
    assert set(calls[0][1]) == own | known
    if not is_old:
        settings = calls[0][1]
        assert (settings["packed"], settings["sh_degree"], settings["render_mode"]) == (
            True,
            None,
            "RGB",
        )


@pytest.mark.gpu
def test_gsplat_on_a_gpu_equals_the_twin():
    gaussians = random_gaussians(500, dtype=torch.float32, scale=0.05).to(torch.device("cuda"))
    view = camera(dtype=torch.float32)
    ours, theirs = (Rasterizer(gaussians, view, implementation=n) for n in ("torch", "gsplat"))
    values = torch.rand(500, 65, device="cuda")
    picture = torch.rand(*view.size, 65, device="cuda")
    for error in (
        ours.composite(values) - theirs.composite(values),
        (ours.adjoint(picture) - theirs.adjoint(picture)) / ours.adjoint(picture).max(),
    ):
        assert error.abs().max() < 5e-3
        assert error.abs().mean() < 1e-5
