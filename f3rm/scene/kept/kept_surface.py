"""Keeps the surface that was sampled of a run in a file beside its ``config.yml``.

Searches, point clouds and boxes start from the same points, whichever process asks. The file is
another run's, or an older checkpoint's, where its key differs; it is then sampled and written anew.
"""

import contextlib
import os
from collections.abc import Callable
from pathlib import Path

import xxhash
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from f3rm.camera_render import camera_key
from f3rm.scene.run_loading import LoadedRun
from f3rm.scene.surface import Sightings, SurfacePoints

FILE_NAME = "f3rm_surface.safetensors"
_FORMAT = 1
"""Increased when the same rays give other points."""
_DAMAGED = (OSError, SafetensorError, KeyError, TypeError)


class KeptSurface:
    """Samples the surface of a run, or reads what was sampled before.

    Args:
        run: The run.
        sample: Samples a number of rays with a seed.
    """

    def __init__(self, run: LoadedRun, sample: Callable[..., Sightings]) -> None:
        self._run, self._sample = run, sample
        self.path = run.config_path.parent / FILE_NAME

    def __call__(self, num_rays: int, *, seed: int) -> Sightings:
        """Returns the sightings of a number of rays; where they cannot be kept, they are not."""
        key = self._key(num_rays, seed)
        kept = None if key is None else _read(self.path, key)
        if kept is None:
            kept = self._sample(num_rays, seed=seed)
            if key is not None:
                _write(self.path, key, kept)
        return kept

    def _key(self, num_rays: int, seed: int) -> str | None:
        """Returns a digest of all that decides the points; None where the checkpoint is gone."""
        run = self._run
        checkpoint = Path(str(run.config.load_dir)) / f"step-{run.step:09d}.ckpt"
        try:
            status, config = checkpoint.stat(), run.config_path.read_bytes()
        except OSError:
            return None
        written = (checkpoint.name, status.st_size, status.st_mtime_ns)
        digest = xxhash.xxh3_128(config)
        for part in camera_key(run.train.cameras):
            digest.update(part or b"none")
        digest.update(repr((_FORMAT, written, num_rays, seed)).encode())
        return digest.hexdigest()


def _read(path: Path, key: str) -> Sightings | None:
    try:
        with safe_open(path, "pt") as file:
            if (file.metadata() or {}).get("key") != key:
                return None
            tensors: dict[str, Tensor] = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        views, eyes = tensors.pop("views"), tensors.pop("eyes")
        return Sightings(SurfacePoints(**tensors), views, eyes)
    except _DAMAGED:
        return None


def _write(path: Path, key: str, sightings: Sightings) -> None:
    tensors = {**vars(sightings.points), "views": sightings.views, "eyes": sightings.eyes}
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    with contextlib.suppress(OSError, SafetensorError):  # of a folder that may only be read
        try:
            contiguous = {name: tensor.contiguous() for name, tensor in tensors.items()}
            save_file(contiguous, beside, metadata={"key": key})
            beside.replace(path)
        finally:
            beside.unlink(missing_ok=True)
