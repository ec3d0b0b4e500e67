"""Features lifted onto Gaussians, and the files that keep them."""

import dataclasses

import numpy as np
import pytest
import torch

from f3rm.colours.pca import fit_pca
from f3rm.errors import BackboneRef, HeadSpec
from f3rm.splats import lifting
from f3rm.splats.feature_file import HeadFeatures, feature_file, read_heads, write_head
from f3rm.splats.lifting import HIDDEN, FeatureBasis, Lifting, feature_picture, lift
from f3rm.splats.ply import SplatFileError, write_ply
from f3rm.splats.rasterizer import Rasterizer
from f3rm.splats.views import compare, sample_map
from f3rm.training.segments import Segments
from tests.splats.scenes import (
    ball,
    make_store,
    pixel_grid,
    random_gaussians,
    ring_of_cameras,
    take_photographs,
)

SIZE = (45, 61)
GRID = (9, 12)


@pytest.fixture
def views(tmp_path):
    return take_photographs(tmp_path, ball(), ring_of_cameras(6, SIZE))


def store_of(folder, views, maps, codec="fp32"):
    return make_store(folder / "features", [view.name for view in views], maps, SIZE, codec)


def coloured(views, channels=7):
    """Feature maps that follow the photographs' colours."""
    mixed = torch.randn(3, channels, generator=torch.Generator().manual_seed(1))
    images = torch.stack([view.photograph() for view in views]).permute(0, 3, 1, 2)
    small = torch.nn.functional.interpolate(images, GRID, mode="area").permute(0, 2, 3, 1)
    return small @ mixed + 0.3


def test_constant_features_survive(tmp_path, views):
    feature = torch.randn(7)
    maps = feature.expand(6, *GRID, 7).contiguous()
    maps = maps + torch.tensor(0.0)
    store = store_of(tmp_path, views, maps)
    basis = dataclasses.replace(FeatureBasis.of_store(store), basis=torch.eye(7))
    lifted = lift(ball(), views, store, basis)
    seen = lifted.weights > 1e-3
    assert seen.float().mean() > 0.5
    expected = (feature / feature.norm()).expand(int(seen.sum()), 7)
    torch.testing.assert_close(lifted.hidden[seen] @ basis.weight.T, expected, atol=1e-5, rtol=0)
    torch.testing.assert_close(
        lifted.reliability[seen], torch.ones(int(seen.sum())), atol=1e-5, rtol=0
    )


def test_what_no_photograph_shows_has_no_features(tmp_path, views):
    store = store_of(tmp_path, views, coloured(views))
    gaussians = ball(1500)
    means = gaussians.means.clone()
    means[:5] = torch.tensor([0, 0, 40.0])
    means[5:10] = 0.05 * torch.randn(5, 3)  # inside of the ball
    scales = gaussians.scales.clone()
    scales[5:10] = 0.005
    hidden = dataclasses.replace(gaussians, means=means, scales=scales)
    lifted = lift(hidden, views, store, FeatureBasis.of_store(store))
    assert not lifted.hidden[:5].any()
    assert not lifted.reliability[:5].any()
    assert lifted.weights[5:10].max() < 0.05 * lifted.weights[10:].median()


def test_gaussians_take_the_features_of_their_side(tmp_path, views):
    maps = coloured(views)
    store = store_of(tmp_path, views, maps)
    basis = FeatureBasis.of_store(store)
    gaussians = ball()
    lifted = lift(gaussians, views, store, basis)
    for view in views[:2]:
        drawing = Rasterizer(gaussians, view.camera)
        shown = drawing.composite(lifted.hidden) @ basis.weight.T
        teacher = feature_picture(store, basis, view) @ basis.weight.T
        inside = drawing.accumulation > 0.95
        cosine = torch.cosine_similarity(shown[inside], teacher[inside], dim=-1)
        assert cosine.mean() > 0.98
    assert lifted.reliability[lifted.weights > 1].mean() > 0.9


def test_features_are_averaged_over_segments_before_they_are_lifted(tmp_path, views):
    store = store_of(tmp_path, views, coloured(views))
    basis = FeatureBasis.of_store(store)
    labels = np.zeros(SIZE, np.uint16)
    labels[:, 20:40], labels[:, 40:] = 1, 2
    none = np.zeros((0, 0), np.uint16)
    segments = Segments.of([labels, *[none] * 4, labels])
    at = torch.from_numpy(labels.astype(np.int64))
    for number, view in enumerate(views):
        own = feature_picture(store, basis, view)
        averaged = feature_picture(store, basis, view, segments)
        if number in (0, 5):
            for label in (1, 2):
                mean = own[at == label].mean(0)
                torch.testing.assert_close(
                    averaged[at == label], mean.expand_as(own[at == label]), rtol=1e-4, atol=1e-5
                )
            own[at > 0] = averaged[at > 0]
        assert torch.equal(averaged, own)
    whole = Segments.of([np.ones(SIZE, np.uint16)] * 6)
    lifted = lift(ball(), views, store, basis, Lifting(segments=whole))
    plain = lift(ball(), views, store, basis)
    seen = lifted.weights > 1
    assert lifted.hidden[seen].var(0).sum() < 0.3 * plain.hidden[seen].var(0).sum()


def test_reliability_falls_where_photographs_disagree(tmp_path, views):
    random = torch.randn(6, 1, 1, 7, generator=torch.Generator().manual_seed(0))
    store = store_of(tmp_path, views, random.expand(6, *GRID, 7).contiguous())
    lifted = lift(ball(), views, store, FeatureBasis.of_store(store))
    assert lifted.reliability[lifted.weights > 1].mean() < 0.9


def test_refining_brings_pictures_nearer_to_the_features(tmp_path, views):
    store = store_of(tmp_path, views, coloured(views))
    basis = FeatureBasis.of_store(store)
    gaussians = ball()

    def error(refine):
        hidden = lift(gaussians, views, store, basis, Lifting(refine=refine)).hidden
        total = 0.0
        for view in views:
            drawing = Rasterizer(gaussians, view.camera)
            teacher = drawing.accumulation[..., None] * feature_picture(store, basis, view)
            total += float((drawing.composite(hidden) - teacher).square().mean())
        return total

    assert error(24) < 0.93 * error(0)


def test_refining_leaves_constant_features_as_they_are(tmp_path, views):
    maps = torch.randn(7).expand(6, *GRID, 7).contiguous()
    store = store_of(tmp_path, views, maps)
    basis = dataclasses.replace(FeatureBasis.of_store(store), basis=torch.eye(7))
    before = lift(ball(), views, store, basis)
    after = lift(ball(), views, store, basis, Lifting(refine=7))
    seen = before.weights > 1e-3
    torch.testing.assert_close(after.hidden[seen], before.hidden[seen], atol=1e-4, rtol=0)


class Interrupted(Exception):  # noqa: N818
    pass


def test_an_interrupted_lifting_goes_on(tmp_path, views, monkeypatch):
    store = store_of(tmp_path, views, coloured(views))
    basis = FeatureBasis.of_store(store)
    whole = lift(ball(), views, store, basis)
    settings = Lifting(partial=tmp_path / "sums.partial", key="a")
    done = []

    def failing(gaussians, camera, **options):
        if len(done) == 4:
            raise Interrupted
        done.append(camera)
        return Rasterizer(gaussians, camera, **options)

    monkeypatch.setattr(lifting, "Rasterizer", failing)
    with pytest.raises(Interrupted):
        lift(ball(), views, store, basis, settings)
    assert settings.partial is not None
    assert settings.partial.is_file()
    done.clear()
    again = lift(ball(), views, store, basis, settings)
    assert len(done) == 2
    assert torch.equal(again.hidden, whole.hidden)
    assert not settings.partial.exists()


def test_sums_of_something_else_are_not_used(tmp_path, views, monkeypatch):
    store = store_of(tmp_path, views, coloured(views))
    basis = FeatureBasis.of_store(store)
    whole = lift(ball(), views, store, basis)
    settings = Lifting(partial=tmp_path / "sums.partial", key="a")
    assert settings.partial is not None
    lifting._save(torch.ones(400, HIDDEN + 1), 3, settings)
    other = dataclasses.replace(settings, key="b")
    assert torch.equal(lift(ball(), views, store, basis, other).hidden, whole.hidden)
    settings.partial.write_bytes(b"damaged")
    assert torch.equal(lift(ball(), views, store, basis, settings).hidden, whole.hidden)


@pytest.mark.parametrize(("channels", "codec"), [(7, "fp32"), (80, "fp16"), (80, "pca70")])
def test_a_basis_keeps_directions(tmp_path, views, channels, codec):
    maps = coloured(views, channels)  # of rank 4
    store = store_of(tmp_path, views, maps, codec)
    basis = FeatureBasis.of_store(store)
    features = store.sample(50, seed=3)
    hidden = basis.encode(features)
    assert hidden.shape == (50, HIDDEN)
    expected = torch.nn.functional.normalize(features, dim=1)
    torch.testing.assert_close(hidden @ basis.weight.T, expected, atol=2e-3, rtol=0)
    assert not basis.encode(torch.zeros(2, channels)).any()
    if codec == "pca70":
        own = store._codec.arrays["basis"]
        assert torch.equal(basis.basis, own[:64])


def test_a_feature_picture_is_what_the_store_gathers(tmp_path, views):
    maps = torch.nn.functional.normalize(coloured(views), dim=-1)
    store = store_of(tmp_path, views, maps)
    basis = dataclasses.replace(FeatureBasis.of_store(store), basis=torch.eye(7))
    at = pixel_grid(SIZE) + torch.tensor([0.3, -0.4])
    view = dataclasses.replace(views[2], pixels=lambda: at)
    images = torch.full((SIZE[0] * SIZE[1],), 2)
    gathered = store.gather(images, at.reshape(-1, 2), mode="bilinear").view(*SIZE, 7)
    picture = feature_picture(store, basis, view) @ basis.weight.T
    torch.testing.assert_close(picture, gathered, atol=1e-5, rtol=0)


def test_a_map_is_sampled_between_its_cells():
    ramp = torch.arange(4.0).expand(3, 4)[..., None].contiguous()
    at = torch.tensor([[[0.0, 1.0], [1.25, 0.5], [9.0, -3.0]]])
    assert sample_map(ramp, at)[0, :, 0].tolist() == pytest.approx([0, 1.25, 3])
    single = torch.full((1, 1, 2), 5.0)
    assert sample_map(single, at).eq(5).all()


def test_a_splat_agrees_with_its_photographs_and_another_does_not(views):
    right = compare(ball(), views[:3])
    assert right.is_good
    assert right.psnr > 20  # the photographs are black behind its rim
    shifted = dataclasses.replace(ball(), means=ball().means + torch.tensor([0.9, 0.4, 0.3]))
    assert not compare(shifted, views[:3]).is_good
    away = dataclasses.replace(ball(), means=ball().means + 100)
    assert compare(away, views[:3]).cover == 0
    assert not compare(random_gaussians(300, dtype=torch.float32), views[:3]).is_good


def head_features(count=9, channels=5, name="clip"):
    random = torch.Generator().manual_seed(2)
    return HeadFeatures(
        HeadSpec(name, channels, True, BackboneRef("clip", "ViT", "openai"), "hub:x"),
        torch.randn(count, HIDDEN, generator=random),
        torch.randn(channels, HIDDEN, generator=random),
        torch.rand(count, generator=random),
        9 * torch.rand(count, generator=random),
        fit_pca(torch.randn(20, channels, generator=random)),
        {"dataset_from_source": torch.eye(4).tolist(), "psnr": 31.5},
    )


@pytest.fixture
def ply(tmp_path):
    path = tmp_path / "my [scene].ply"
    write_ply(path, random_gaussians(9, dtype=torch.float32))
    return path


def test_heads_are_kept_beside_the_splat(ply):
    assert read_heads(ply, 9) == {}
    clip, dino = head_features(), head_features(name="dino", channels=4)
    path = write_head(ply, clip)
    write_head(ply, dino)
    assert path.name == "my [scene].clip.safetensors"
    found = read_heads(ply, 9)
    assert list(found) == ["clip", "dino"]
    torch.testing.assert_close(
        found["clip"].coefficients.float(), clip.coefficients, atol=2e-3, rtol=1e-3
    )
    assert torch.equal(found["clip"].weight, clip.weight)
    assert torch.equal(found["dino"].pca.components, dino.pca.components)
    assert (found["clip"].spec, found["clip"].provenance) == (clip.spec, clip.provenance)
    assert len(list(ply.parent.iterdir())) == 3


def test_features_of_another_splat_are_refused(ply):
    write_head(ply, head_features())
    write_ply(ply, random_gaussians(9, seed=1, dtype=torch.float32))
    with pytest.raises(SplatFileError, match=r"features of another 'my .scene.\.ply'"):
        read_heads(ply, 9)


@pytest.mark.parametrize("damage", ["cut", "shape", "nan", "text"])
def test_damaged_features_are_refused(ply, damage):
    head = head_features()
    if damage == "nan":
        head.coefficients[0, 0] = float("nan")
    path = write_head(ply, head)
    if damage == "cut":
        path.write_bytes(path.read_bytes()[:-10])
    if damage == "text":
        path.write_bytes(b"{}")
    with pytest.raises(SplatFileError, match="holds no features of a splat"):
        read_heads(ply, 10 if damage == "shape" else 9)
    assert feature_file(ply, "clip") == path
