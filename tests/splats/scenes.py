"""Random Gaussians and cameras for the tests of this room."""

from functools import partial

import torch
from PIL import Image

from f3rm.errors import BackboneRef
from f3rm.splats.gaussians import Gaussians, flat_colours
from f3rm.splats.projection import PinholeCamera
from f3rm.splats.rasterizer import Rasterizer
from f3rm.splats.views import View
from f3rm.store.chunks import write_chunk
from f3rm.store.codec_files import write_codec
from f3rm.store.codecs import fit_codec, parse_codec
from f3rm.store.geometry import PixelAffine, ValidRect
from f3rm.store.manifest import ChunkRecord, CodecRecord, ImageRecord, Manifest
from f3rm.store.reader import FeatureStore
from f3rm.store.spec import ALGORITHM_VERSION, FeatureSpec


def random_gaussians(count, *, seed=0, dtype=torch.float64, harmonics=1, scale=0.1):
    """Gaussians in front of :func:`camera`, some of them behind it, of many shapes."""
    random = torch.Generator().manual_seed(seed)

    def uniform(*shape):
        return torch.rand(*shape, generator=random, dtype=torch.float64)

    def normal(*shape):
        return torch.randn(*shape, generator=random, dtype=torch.float64)

    means = torch.stack((uniform(count) - 0.5, uniform(count) - 0.5, uniform(count)), dim=1)
    return Gaussians(
        means=means * torch.tensor([4.0, 3.0, 6.0], dtype=torch.float64) - torch.tensor([0, 0, 1]),
        quats=normal(count, 4),
        scales=scale * torch.exp(normal(count, 3)),
        opacities=uniform(count),
        sh=0.3 * normal(count, harmonics, 3),
    ).to(dtype)


def camera(height=45, width=61, *, turn=0.2, dtype=torch.float64):
    """A camera near the origin that looks along z, not at a whole number of tiles."""
    pose = torch.eye(4, dtype=dtype)
    turn = torch.tensor(turn, dtype=dtype)
    pose[0, 0], pose[0, 2] = turn.cos(), turn.sin()
    pose[2, 0], pose[2, 2] = -turn.sin(), turn.cos()
    pose[:3, 3] = torch.tensor([0.1, -0.05, 0.3])
    return PinholeCamera(pose, (50.0, 55.0), (width / 2 + 1.3, height / 2 - 0.7), (height, width))


def ring_of_cameras(count=6, size=(45, 61)):
    """Cameras on a circle of radius 3 that look at the origin, in float32."""
    views = []
    for number in range(count):
        angle = torch.tensor(2 * torch.pi * number / count)
        eye = 3 * torch.stack((angle.cos(), angle.sin(), torch.tensor(0.2)))
        forward = torch.nn.functional.normalize(-eye, dim=0)
        right = torch.nn.functional.normalize(
            torch.linalg.cross(forward, torch.tensor([0.0, 0, 1])), dim=0
        )
        rotation = torch.stack((right, torch.linalg.cross(forward, right), forward))
        pose = torch.eye(4)
        pose[:3, :3], pose[:3, 3] = rotation, -rotation @ eye
        views.append(PinholeCamera(pose, (60.0, 60.0), (size[1] / 2, size[0] / 2), size))
    return views


def ball(count=400, seed=0):
    """Nearly opaque Gaussians on a sphere of radius 0.6, of colours that follow their place."""
    random = torch.Generator().manual_seed(seed)
    means = torch.nn.functional.normalize(torch.randn(count, 3, generator=random), dim=1)
    return Gaussians(
        means=0.6 * means,
        quats=torch.randn(count, 4, generator=random),
        scales=torch.full((count, 3), 0.05),
        opacities=torch.full((count,), 0.95),
        sh=flat_colours(0.5 + 0.45 * means),
    )


def take_photographs(folder, gaussians, cameras):
    """Draws the Gaussians into PNG files; returns their views."""
    views = []
    for number, each in enumerate(cameras):
        drawing = Rasterizer(gaussians, each, implementation="torch")
        rgb = drawing.composite(gaussians.colours(each.eye)).clamp(0, 1)
        path = folder / f"{number}.png"
        Image.fromarray((rgb * 255).round().byte().numpy()).save(path)
        views.append(View(path.name, path, each, partial(pixel_grid, each.size)))
    return views


def pixel_grid(size):
    y, x = torch.meshgrid(torch.arange(size[0]), torch.arange(size[1]), indexing="ij")
    return torch.stack((x, y), dim=-1).float()


def make_store(folder, names, maps, image_size, codec="fp32"):
    """Writes maps (images, rows, cols, channels) as a feature cache and opens it."""
    folder.mkdir(parents=True, exist_ok=True)
    _, rows, cols, channels = maps.shape
    fitted = fit_codec(parse_codec(codec), maps.reshape(-1, channels))
    records = write_codec(folder, fitted)
    stored = fitted.encode(maps).numpy()
    shape = (len(maps), rows, cols, stored.shape[-1])
    dtype = fitted.spec.dtype
    chunk = write_chunk(folder / "chunk_0000.npy", shape, dtype, [stored])
    spec = FeatureSpec(
        BackboneRef("none", "none", "none"), ("final",), precision="float32", codec=codec
    )
    affine, valid = PixelAffine.between(image_size, (rows, cols)), ValidRect.full((rows, cols))
    images = [
        ImageRecord(name, 1, 0, "", image_size, 0, row, affine, valid)
        for row, name in enumerate(names)
    ]
    record = ChunkRecord(
        "chunk_0000.npy", chunk.bytes, shape, dtype, chunk.checksum,
        codec_error=0.0, images=tuple(names), taps={"final": shape[1:]},
    )  # fmt: skip
    manifest = Manifest(
        spec=spec,
        weights_identity="none",
        algorithm=ALGORITHM_VERSION,
        key=spec.key("none"),
        channels=channels,
        has_text=False,
        provenance={},
        versions={},
        chunks=(record,),
        images=tuple(images),
        codec=CodecRecord(fitted.spec.name, records),
    )
    return FeatureStore(folder, manifest)
