"""The calls of Image2Representation's README, in its order, against diffusers' own encoder."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.linear_model import LogisticRegression

from f3rm.recipes import Image2RepresentationExtractor
from f3rm.recipes.elsewhere import RemoteError
from f3rm.recipes.image2rep import Image2Representation
from f3rm.scripts.command import run_command
from f3rm.scripts.systems.image2rep import Image2Rep
from f3rm.store.video import FramePolicy
from tests.backbones import random_vae as video_vae
from tests.recipes.test_image2rep import reference_latents
from tests.systems.shell import run_script
from tests.systems.table import shows

RESOLUTION = (32, 48)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> Path:
    """A small random autoencoder where diffusers' pipelines have theirs."""
    return video_vae.write_random_autoencoder(tmp_path_factory.mktemp("ckpt") / "vae").parent


@pytest.fixture(scope="module")
def extractor(checkpoint) -> Image2RepresentationExtractor:
    return Image2RepresentationExtractor(
        experiment_name="your-experiment",
        ckpt_path=str(checkpoint),
        s3_credential_path="",
        config_file="...",
        device="cuda",
        experiment_opts=None,
        model_size="2B",
        resolution=RESOLUTION,
        frames=FramePolicy(9, "last"),
    )


@shows(
    "`Image2RepresentationExtractor(experiment_name=..., ckpt_path=..., "
    's3_credential_path="", config_file=..., device="cuda")`',
    "`ckpt_path` is an autoencoder in diffusers' layout; without one, Cosmos's own from the hub",
)
@shows(
    "the same, from Python",
    '`encoder = Image2Representation(vae, resolution=(32, 48), frames=FramePolicy(9, "last"))`',
)
@shows(
    "`extract_from_image(image_path)`: (1, C, T, H, W)",
    "T is 1: an image is not followed by 92 black ones",
)
@shows("the same, from Python", "`encoder.extract_from_image(image)`")
@shows('`extract_pooled(input_path, pool_method="mean")`: (1, C)')
@shows("the same, of several files", '`encoder.extract_pooled([image, video], pool_method="mean")`')
def test_quick_start_one_image(write_images, extractor, checkpoint):
    (path,) = write_images(["image.png"], RESOLUTION)
    latent = extractor.extract_from_image(str(path))
    pixels = torch.tensor(list(Image.open(path).tobytes()), dtype=torch.uint8)
    expected = reference_latents(checkpoint / "vae", pixels.reshape(1, *RESOLUTION, 3).numpy())
    assert latent.shape == (1, 4, 1, 4, 6)
    torch.testing.assert_close(latent, expected, atol=1e-4, rtol=1e-3)
    features = extractor.extract_pooled(str(path), pool_method="mean")
    torch.testing.assert_close(features, latent.mean((2, 3, 4)), atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(latent, extractor.extract_from_image(str(path)), atol=0, rtol=0)


@shows("`extract_from_video(video_path, num_frames=N)`: its last N frames")
@shows("the same, from Python", "`encoder.extract_from_video(video, num_frames=5)`")
@shows("`pool_method`: `mean`, `max`, `flatten`")
@shows("`extract_batch(input_paths, batch_size=4)`: images and videos in one batch")
@shows("the same, from Python", "`encoder.extract_batch([video, video], batch_size=2)`")
@shows("`get_latent_shape()`: (16, 24, 45, 80) at 360 x 640")
@shows("the same, of another size", "`encoder.get_latent_shape((360, 640), 93)`")
@shows("`return_cpu=False`: the result stays on the device")
def test_every_method_with_the_readmes_argument_names(write_images, write_video, extractor):
    (image,) = write_images(["image.png"], (64, 64))
    video = write_video("video.mkv", 12)
    kept = {"return_cpu": False}  # on the model's device, the CPU here
    assert extractor.extract_from_image(image_path=image, resolution=None, **kept).shape[2] == 1
    one = extractor.extract_from_video(video_path=video, resolution=None, num_frames=5, **kept)
    assert one.shape == (1, 4, 2, 4, 6)
    for method, width in (("mean", 4), ("max", 4), ("flatten", 4 * 3 * 4 * 6)):
        found = extractor.extract_pooled(
            input_path=video, resolution=None, pool_method=method, return_cpu=True
        )
        assert found.shape == (1, width)
    both = extractor.extract_batch(
        input_paths=[image, video], resolution=None, batch_size=4, return_cpu=True
    )
    assert both.shape == (2, *extractor.get_latent_shape()) == (2, 4, 3, 4, 6)
    torch.testing.assert_close(both[1:], extractor.extract_from_video(video), atol=1e-5, rtol=1e-4)


@shows(
    "`resolution=(180, 320)`",
    "22 rows of 40: of an incomplete last cell nothing is read, and a warning says so",
)
@pytest.mark.parametrize(("resolution", "grid"), [((36, 44), (4, 5)), ((40, 48), (5, 6))])
def test_a_resolution_gives_the_rows_that_the_autoencoder_gives(
    write_images, extractor, checkpoint, caplog, resolution, grid
):
    """An incomplete last cell is dropped, as 180 rows give 22; the message says what is unread."""
    (path,) = write_images(["image.png"], resolution)
    found = extractor.extract_from_image(path, resolution=resolution)
    pixels = torch.tensor(list(Image.open(path).tobytes()), dtype=torch.uint8)
    network = reference_latents(checkpoint / "vae", pixels.reshape(1, *resolution, 3).numpy())
    assert found.shape == network.shape == (1, 4, 1, *grid)
    encoder = Image2Representation(extractor.backbone.ref, loaded=extractor.backbone)
    for _ in range(2):
        assert encoder.get_latent_shape((180, 320), 93) == (4, 24, 22, 40)
    assert caplog.text.count("the last 4 rows and 0 columns are not read") == 1


@shows("a classifier, two or several classes, and a search by cosine similarity on pooled vectors")
def test_similarity_search_and_a_classifier(write_images, extractor):
    dark = write_images([f"dark/{number}.png" for number in range(4)], RESOLUTION)
    for path in dark:
        Image.fromarray(np.asarray(Image.open(path)) // 4).save(path)
    light = write_images([f"light/{number}.png" for number in range(4)], RESOLUTION)
    X = torch.cat([extractor.extract_pooled(path) for path in [*dark, *light]])  # noqa: N806
    y = [1] * len(dark) + [0] * len(light)
    classifier = LogisticRegression(C=1e3, max_iter=5000)
    classifier.fit(X.numpy(), y)
    assert list(classifier.predict(X.numpy())) == y
    similarities = torch.nn.functional.cosine_similarity(extractor.extract_pooled(dark[2]), X)
    assert int(similarities.argmax()) == 2


@shows(
    "`extract_features_for_classifier.py --experiment X --ckpt_path DIR --input_dir DIR "
    "--output_file features.pt --batch_size 4 --resolution 360,640`",
)
@shows("`torch.load('features.pt')`: `features`, `file_paths`", "read with `weights_only=True`")
def test_the_dataset_command_writes_what_torch_loads(
    tmp_path, write_images, write_video, checkpoint, extractor
):
    images = write_images(["set/a.png", "set/sub/b.png"], (64, 96), tmp_path)
    video = write_video("set/c.mkv", 9)
    printed = run_script(
        "examples/extract_features_for_classifier.py",
        *("--experiment", "your-experiment", "--ckpt_path", checkpoint),
        *("--input_dir", tmp_path / "set", "--output_file", "features.pt", "--batch_size", 4),
        *("--resolution", "32,48", "--num_frames", 9),
        cwd=tmp_path,
    )
    assert "Saved features to features.pt" in printed
    data = torch.load(tmp_path / "features.pt", weights_only=True)
    assert data["resolution"] == (32, 48)
    assert data["pool_method"] == "mean"
    assert data["features"].numpy().shape == (3, 4)
    assert sorted(data["file_paths"]) == sorted(map(str, [*images, video]))
    for row, path in zip(data["features"], data["file_paths"], strict=True):
        torch.testing.assert_close(row[None], extractor.extract_pooled(path), atol=1e-5, rtol=1e-4)


@shows("a file that cannot be read", "is left out alone, not with its batch")
def test_a_damaged_file_is_left_out_alone(tmp_path, write_images, checkpoint, capsys):
    write_images(["set/a.png", "set/b.png"], RESOLUTION, tmp_path)
    (tmp_path / "set/broken.png").write_bytes(b"no image")
    out = tmp_path / "features.pt"
    words = ["--ckpt_path", str(checkpoint), "--resolution", "32,48", "--output_file", str(out)]
    assert run_command(Image2Rep, [*words, "--input_dir", str(tmp_path / "set")]) == 0
    assert "broken.png is left out" in capsys.readouterr().out
    assert len(torch.load(out, weights_only=True)["file_paths"]) == 2


@shows("`test_embedding_generation.py --experiment X --ckpt_path DIR --image FILE`")
@pytest.mark.nightly
def test_the_test_suite_as_a_script(tmp_path, write_images, checkpoint):
    (path,) = write_images(["test_image.png"], RESOLUTION)
    words = ("--ckpt_path", checkpoint, "--image", path, "--resolution", "32,48")
    script = "examples/test_embedding_generation.py"
    assert "latents (1, 4, 1, 4, 6)" in run_script(script, *words, cwd=tmp_path)


@shows(
    "a classifier of any features",
    '`Probe("knn").fit(store.load("res5avg").features, store.load("res5avg").targets)`',
)
@shows("`--benchmark --num_iterations 20`: the mean time of an image, images per second, memory")
@shows(
    "the same, of any model",
    '`benchmark(FeatureExtractor(FeatureSpec(resnet, ("res5avg",))), [(64, 64)], '
    "batches=(1, 2), iterations=2)`",
)
@shows("`--batch_test`: batches of 1, 2, 4 and 8")
@shows("`--demo_classifier`")
def test_the_test_suites_options(write_images, checkpoint, capsys):
    (path,) = write_images(["test_image.png"], RESOLUTION)
    words = ["--experiment", "x", "--ckpt_path", str(checkpoint), "--image", str(path)]
    words += ["--resolution", "32,48", "--num_frames", "9", "--benchmark", "--num_iterations", "2"]
    assert run_command(Image2Rep, [*words, "--batch_test", "--demo_classifier"]) == 0
    printed = capsys.readouterr().out
    for line in ("latents (1, 4, 1, 4, 6)", "of a video (4, 3, 4, 6)", "flatten (1, 96)"):
        assert line in printed
    assert "images/s" in printed
    assert "\\n" not in printed  # a row of the table per line
    assert "batch of 8: (8, 4, 1, 4, 6)" in printed
    assert "100% of the held-out copies are right" in printed


@pytest.mark.parametrize(
    ("words", "message"),
    [([], "--input_dir and --output_file"), (["--image", "x", "--resolution", "9"], "360,640")],
)
def test_missing_and_malformed_options_are_named(capsys, words, message):
    assert run_command(Image2Rep, words) == 1
    assert message in capsys.readouterr().err


@shows(
    "`s3://` paths with `s3_credential_path`",
    "where fsspec's package for S3, s3fs, is installed",
)
def test_files_at_addresses_are_copied_with_the_credentials(write_images, checkpoint, tmp_path):
    """fsspec's memory stands for a bucket; its own package reads S3."""
    fsspec = pytest.importorskip("fsspec")
    (path,) = write_images(["image.png"], RESOLUTION)
    memory = fsspec.filesystem("memory")
    memory.put(str(path), "/bucket/image.png")
    memory.put(str(checkpoint), "/bucket/ckpt", recursive=True)
    remote = Image2RepresentationExtractor(
        ckpt_path="memory://bucket/ckpt", device="cpu", resolution=RESOLUTION
    )
    found = remote.extract_from_image("memory://bucket/image.png")
    torch.testing.assert_close(found, remote.extract_from_image(path))
    with pytest.raises(RemoteError, match="There is nothing at"):
        remote.extract_from_image("memory://bucket/other.png")
    keys = tmp_path / "keys.json"
    keys.write_text(json.dumps({"aws_access_key_id": "a", "endpoint_url": "http://localhost:1"}))
    with pytest.raises(RemoteError, match="s3fs"):
        Image2RepresentationExtractor(
            ckpt_path="s3://bucket/ckpt", s3_credential_path=keys, device="cpu"
        )
