import logging
import shlex
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from f3rm.errors import ImageError
from f3rm.store.images import content_hash, inspect_images, prefetched, read_image
from f3rm.store.items import ImageItem
from tests.extract.toy import random_pixels

WHITE = (1.0, 1.0, 1.0)
PIXELS = random_pixels((6, 9), 0)


def save(path, image, **options):
    image.save(path, **options)
    return ImageItem(path.name, path)


def test_rgb_is_read_as_it_is(tmp_path):
    item = save(tmp_path / "a.png", Image.fromarray(PIXELS))
    assert np.array_equal(read_image(item.path, WHITE), PIXELS)
    (info,) = inspect_images([item])
    assert info.size == (6, 9)
    assert info.bytes == item.path.stat().st_size
    assert info.content == content_hash(item.path)


def test_greyscale_is_replicated(tmp_path):
    item = save(tmp_path / "a.png", Image.fromarray(PIXELS[:, :, 0]))
    inspect_images([item])
    assert np.array_equal(read_image(item.path, WHITE), np.stack([PIXELS[:, :, 0]] * 3, axis=-1))


@pytest.mark.parametrize("background", [WHITE, (0.0, 0.5, 1.0)])
def test_alpha_shows_the_background(tmp_path, background):
    alpha = random_pixels((6, 9), 1, high=256)[:, :, :1]
    alpha[0], alpha[1] = 0, 255
    item = save(tmp_path / "a.png", Image.fromarray(np.concatenate([PIXELS, alpha], axis=-1)))
    inspect_images([item])
    found = read_image(item.path, background)
    assert np.array_equal(found[0], np.tile(np.round(np.array(background) * 255 + 1e-6), (9, 1)))
    assert np.array_equal(found[1], PIXELS[1])
    blend = PIXELS * (alpha / 255) + np.array(background) * 255 * (1 - alpha / 255)
    assert np.abs(found - blend).max() <= 0.501


def test_exif_orientation_is_ignored_and_mentioned_once(tmp_path, caplog):
    exif = Image.Exif()
    exif[0x0112] = 6
    items = [save(tmp_path / f"{i}.png", Image.fromarray(PIXELS), exif=exif) for i in range(3)]
    with caplog.at_level(logging.WARNING):
        infos = inspect_images(items)
    assert [info.size for info in infos] == [(6, 9)] * 3
    assert np.array_equal(read_image(items[0].path, WHITE), PIXELS)
    assert [record.getMessage() for record in caplog.records] == [
        "3 image(s) have an EXIF orientation, e.g. 0.png; it is ignored, as in Nerfstudio."
    ]


def converted(image, mode):
    return image.convert("RGB").convert(mode)


UNSUITABLE = {
    "16bit.png": Image.fromarray((PIXELS[:, :, 0].astype(np.uint16) << 8) + 77),
    "la.png": converted(Image.fromarray(PIXELS), "LA"),
    "palette.png": converted(Image.fromarray(PIXELS), "P"),
    "bits.png": converted(Image.fromarray(PIXELS), "1"),
    "cmyk.jpg": converted(Image.fromarray(PIXELS), "CMYK"),
    "it's 32 bit.tiff": Image.fromarray(PIXELS[:, :, 0].astype(np.int32) << 8),
}


@pytest.mark.parametrize("name", UNSUITABLE)
def test_other_modes_are_refused_with_a_command_that_converts_them(tmp_path, name):
    image = UNSUITABLE[name]
    item = save(tmp_path / name, image)
    message = f"Images must be 8-bit RGB, RGBA or greyscale, got mode '{image.mode}' in "
    with pytest.raises(ImageError, match=message) as caught:
        inspect_images([item])
    with pytest.raises(ImageError, match=message):
        read_image(item.path, WHITE)
    command = shlex.split(str(caught.value).splitlines()[-1])
    assert command[0] == "python"
    subprocess.run([sys.executable, *command[1:]], check=True, timeout=60)
    (info,) = inspect_images([item])
    assert info.size == (6, 9)
    if name == "16bit.png":
        assert np.array_equal(read_image(item.path, WHITE)[:, :, 0], PIXELS[:, :, 0])


@pytest.mark.parametrize(
    "damage", ["cut.png", "cut.jpg", "empty.png", "text.png", "folder.png", "gone.png"]
)
def test_damaged_images_are_named(tmp_path, damage):
    path = tmp_path / damage
    if damage.startswith("cut"):
        Image.fromarray(random_pixels((60, 90), 0)).save(path)
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    elif damage == "text.png":
        path.write_text("hello")
    elif damage == "empty.png":
        path.touch()
    elif damage == "folder.png":
        path.mkdir()
    good = save(tmp_path / "good.png", Image.fromarray(PIXELS))
    with pytest.raises(ImageError, match=f"^'{damage}' must be a complete image, got"):
        inspect_images([good, ImageItem(damage, path)])
    with pytest.raises(ImageError, match=f"^'.*{damage}' must be a complete image, got"):
        read_image(path, WHITE)


JPEGS = {
    "photograph": {},
    "whole colours": {"subsampling": 0},
    "progressive": {"progressive": True},
    "restarts": {"restart_marker_rows": 1},
}


def spoiled(content: bytes, random: np.random.Generator) -> bytes:
    """Cuts a file off, or puts zeros or random bytes into it, or takes some out."""
    start, length = random.integers(2, len(content)), random.integers(1, 300)
    middle = [b"", bytes(length), random.bytes(length)][random.integers(3)]
    end = content[start + length :] if random.integers(3) else b""
    return content[:start] + middle + end


@pytest.mark.parametrize("kind", JPEGS)
def test_the_check_finds_every_fault_of_a_jpeg_that_decoding_finds(tmp_path, kind):
    """It decodes an eighth of the size, hence needs all of the file."""
    path = tmp_path / "a.jpg"
    Image.fromarray(random_pixels((45, 61), 0)).save(path, **JPEGS[kind])
    item = ImageItem(str(path), path)
    assert inspect_images([item])[0].size == (45, 61)
    content, random = path.read_bytes(), np.random.default_rng(0)
    faults = 0
    for _ in range(100):
        path.write_bytes(spoiled(content, random))
        found = failure_of(lambda: inspect_images([item]))
        assert found == failure_of(lambda: read_image(path, WHITE))
        faults += found is not None
    assert 20 < faults < 95


def failure_of(call):
    try:
        call()
    except ImageError as error:
        return str(error)
    return None


def test_prefetching_keeps_the_order_and_stops_early():
    started = []

    def double(number):
        started.append(number)
        return 2 * number

    assert list(prefetched(double, range(50), ahead=3)) == list(range(0, 100, 2))
    started.clear()
    results = prefetched(double, range(1000), ahead=3)
    assert next(results) == 0
    results.close()
    assert len(started) < 10
