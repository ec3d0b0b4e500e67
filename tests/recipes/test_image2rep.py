"""The calls of Image2Representation against diffusers' own encoder and PyAV's own frames."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers.models.autoencoders.autoencoder_kl_wan import AutoencoderKLWan
from PIL import Image

from f3rm.backbones.dino.backbone import DinoBackbone
from f3rm.errors import BackboneRef
from f3rm.extract.tables.live import FeatureExtractor
from f3rm.extract.tables.run import extract
from f3rm.recipes.image2rep import COSMOS_FRAMES, Image2Representation
from f3rm.store.geometry import Prep
from f3rm.store.images import ImageFailedError
from f3rm.store.spec import FeatureSpec
from f3rm.store.video import FramePolicy, FramesError, fit_length, read_frames
from tests.backbones import random_vae as video_vae

RESOLUTION = (32, 48)
FRAMES = FramePolicy(num=9, pick="last", pad="repeat")


@pytest.fixture(scope="module")
def vae_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return video_vae.write_random_autoencoder(tmp_path_factory.mktemp("vae"))


@pytest.fixture(scope="module")
def encoder(vae_folder: Path) -> Image2Representation:
    ref = BackboneRef("vae", "vae", str(vae_folder))
    return Image2Representation(ref, resolution=RESOLUTION, frames=FRAMES, device="cpu")


@pytest.fixture(scope="module")
def framewise(
    tmp_path_factory: pytest.TempPathFactory, dinov2_folder: Path
) -> Image2Representation:
    ref = BackboneRef("dinov2", "tiny", str(dinov2_folder))
    backbone = DinoBackbone.load(ref)
    return Image2Representation(ref, resolution=(28, 42), frames=FRAMES, loaded=backbone)


def reference_latents(folder: Path, frames: np.ndarray) -> torch.Tensor:
    """Posterior mean in diffusers' own words, normalised with the configuration's statistics."""
    network: Any = AutoencoderKLWan.from_pretrained(folder).eval()
    clip = torch.from_numpy(frames).permute(3, 0, 1, 2)[None].float() / 255 * 2 - 1
    with torch.no_grad():
        mode = network.encode(clip).latent_dist.mode()
    mean = torch.tensor(network.config.latents_mean)[None, :, None, None, None]
    std = torch.tensor(network.config.latents_std)[None, :, None, None, None]
    return (mode - mean) / std


def test_image2rep_image_is_one_frame_and_never_black(write_images, vae_folder, encoder):
    (path,) = write_images(["a.png"], RESOLUTION)
    found = encoder.extract_from_image(path)
    expected = reference_latents(vae_folder, np.array(Image.open(path))[None])
    assert found.shape == (1, 4, 1, 4, 6)
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize("available", [12, 9, 4])
def test_image2rep_video_is_the_last_frames_or_repeats_the_last(
    write_video, vae_folder, encoder, available
):
    path = write_video("clip.mkv", available)
    shades = [20 * number for number in range(available)][-9:]
    shades += [shades[-1]] * (9 - len(shades))
    frames = np.stack([np.full((*RESOLUTION, 3), shade, dtype=np.uint8) for shade in shades])
    found = encoder.extract_from_video(path)
    assert found.shape == (1, 4, 3, 4, 6)
    torch.testing.assert_close(found, reference_latents(vae_folder, frames), atol=1e-4, rtol=1e-3)


def test_image2rep_pooled_is_mean_max_and_flatten_of_the_latents(write_video, encoder):
    path = write_video("clip.mkv", 9)
    latents = encoder.extract_from_video(path)
    for method, expected in (
        ("mean", latents.mean((2, 3, 4))),
        ("max", latents.amax((2, 3, 4))),
        ("flatten", latents.flatten(1)),
    ):
        found = encoder.extract_pooled(path, pool_method=method)
        assert found.shape == expected.shape
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4)


def test_image2rep_pooled_transfers_only_pooled_bytes(write_video, encoder, monkeypatch):
    """What leaves the model's side is one vector per item: four numbers, not 288."""
    moved: list[int] = []
    real = FeatureExtractor._run

    def counting(self, batch):
        values = real(self, batch)
        moved.extend(value.untyped_storage().nbytes() for value in values.values())
        return values

    monkeypatch.setattr(FeatureExtractor, "_run", counting)
    path = write_video("clip.mkv", 9)
    encoder.extract_pooled(path)
    assert moved == [4 * 4]
    moved.clear()
    encoder.extract_from_video(path)
    assert moved == [4 * 3 * 4 * 6 * 4]


def test_image2rep_batch_equals_one_by_one(write_video, encoder):
    paths = [write_video(f"{number}.mkv", 6 + number) for number in range(3)]
    found = encoder.extract_batch(paths, batch_size=2)
    assert found.shape == (3, 4, 3, 4, 6)
    for row, path in zip(found, paths, strict=True):
        torch.testing.assert_close(row, encoder.extract_from_video(path)[0], atol=1e-5, rtol=1e-4)


def test_image2rep_images_and_videos_together(write_images, write_video, encoder):
    paths = [*write_images(["a.png"], RESOLUTION), write_video("b.mkv", 9)]
    both = encoder.extract_batch(paths)
    still = np.repeat(np.array(Image.open(paths[0]))[None], 9, axis=0)
    expected = reference_latents(Path(encoder.backbone.ref.weights), still)[0]
    torch.testing.assert_close(both[0], expected, atol=1e-4, rtol=1e-3)
    assert encoder.extract_pooled(paths).shape == (2, 4)
    clips = Image2Representation(
        encoder.backbone.ref,
        resolution=RESOLUTION,
        frames=replace(FRAMES, image="clip"),
        loaded=encoder.backbone,
    )
    torch.testing.assert_close(clips.extract_batch(paths), both)


def test_image2rep_covers_and_cuts_the_centre(write_images, encoder):
    """An image twice as high as wanted gives what its middle half gives."""
    (path,) = write_images(["tall.png"], (64, 48))
    middle = path.with_name("middle.png")
    Image.fromarray(np.asarray(Image.open(path))[16:48]).save(middle)
    torch.testing.assert_close(encoder.extract_from_image(path), encoder.extract_from_image(middle))


def test_image2rep_latent_shape_needs_no_data_and_no_computation(encoder, monkeypatch):
    monkeypatch.setattr(encoder.backbone, "encode_video", None)
    assert encoder.get_latent_shape() == (4, 3, 4, 6)
    assert encoder.get_latent_shape((360, 640), 93) == (4, 24, 45, 80)
    assert encoder.get_latent_shape((64, 64), 0) == (4, 1, 8, 8)
    assert COSMOS_FRAMES.length(200, stride=4) == 93


def test_image2rep_image_backbones_work_frame_by_frame(write_video, write_images, framewise):
    path = write_video("clip.mkv", 12, (28, 42))
    found = framewise.extract_from_video(path)
    assert found.shape == (1, 32, 9, 2, 3)
    assert framewise.get_latent_shape() == (32, 9, 2, 3)
    frames = read_frames(path, FRAMES).numpy()
    spec = FeatureSpec(framewise.backbone.ref, ("final",), Prep("cover", (28, 42)))
    alone = FeatureExtractor(spec, backbone=framewise.backbone)(list(frames))["final"]
    torch.testing.assert_close(found[0].permute(1, 2, 3, 0), alone, atol=1e-5, rtol=1e-4)

    pooled = framewise.extract_pooled(path, pool_method="max")
    torch.testing.assert_close(pooled, found.amax((2, 3, 4)), atol=1e-5, rtol=1e-4)
    (image,) = write_images(["a.png"], (28, 42))
    assert framewise.extract_from_image(image).shape == (1, 32, 1, 2, 3)


def test_image2rep_extraction_to_disk_mixes_images_and_videos(
    tmp_path, write_images, write_video, vae_folder, encoder
):
    write_images(["set/a.png"], RESOLUTION, tmp_path)
    write_video("set/b.mkv", 9)
    write_video("set/c.mkv", 5)
    spec = FeatureSpec.of(
        BackboneRef("vae", "vae", str(vae_folder)),
        ["latent", "latent|mean"],
        prep={"resize": "cover", "size": list(RESOLUTION)},
        frames={"num": 9, "pick": "last"},
    )
    store = extract(tmp_path / "set", spec, tmp_path / "out", progress=False, device="cpu")
    assert [store.shape(index, "latent") for index in range(3)] == [
        (1, 4, 6, 4),
        (3, 4, 6, 4),
        (3, 4, 6, 4),
    ]
    pooled = store.load("latent|mean")
    assert pooled.names == ("a.png", "b.mkv", "c.mkv")
    paths = [tmp_path / "set" / name for name in pooled.names]
    expected = encoder.extract_pooled(paths)
    np.testing.assert_allclose(pooled.features, expected.numpy(), atol=1e-4)


def test_image2rep_damaged_video_is_named(tmp_path, encoder):
    broken = tmp_path / "broken.mp4"
    broken.write_bytes(b"no video at all")
    with pytest.raises(ImageFailedError, match=r"broken\.mp4.*complete video"):
        encoder.extract_from_video(broken)


@pytest.mark.parametrize(
    ("policy", "available", "chosen", "length"),
    [
        (FramePolicy(), 5, [0, 1, 2, 3, 4], 5),
        (FramePolicy(3, "uniform"), 9, [1, 4, 7], 3),
        (FramePolicy(3, "first"), 9, [0, 1, 2], 3),
        (FramePolicy(3, "last"), 9, [6, 7, 8], 3),
        (FramePolicy(3, "all"), 4, [0, 1, 2, 3], 4),
        (FramePolicy(5, "last"), 3, [0, 1, 2], 5),
        (FramePolicy(5, "last", pad="none"), 3, [0, 1, 2], 3),
    ],
)
def test_image2rep_frame_policies(policy, available, chosen, length):
    assert policy.choose(available) == chosen
    assert policy.length(available) == length
    assert policy.length(1, is_image=True) == 1


@pytest.mark.parametrize(("pad", "length"), [("repeat", 9), ("none", 5)])
def test_image2rep_causal_strides_round_up_or_down(pad, length):
    assert FramePolicy(pad=pad).length(6, stride=4) == length


def test_image2rep_padding_is_explicit():
    frames = torch.full((2, 1, 1, 3), 7, dtype=torch.uint8)
    assert fit_length(frames, 4, "repeat")[:, 0, 0, 0].tolist() == [7, 7, 7, 7]
    assert fit_length(frames, 4, "zero")[:, 0, 0, 0].tolist() == [7, 7, 0, 0]
    with pytest.raises(FramesError, match="pad='none'"):
        fit_length(frames, 4, "none")
