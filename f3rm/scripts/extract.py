"""``f3rm extract``: features of a dataset's images, computed once and kept on disk."""

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from f3rm.features.spec import Background
from f3rm.features.standalone import extract_features_for_dataset
from f3rm.features.store import FeatureStore
from f3rm.scripts.command import Command


@dataclass
class Extract(Command):
    """Compute dense features of a dataset's images and keep them on disk, ready for ns-train f3rm.

    What is there already and still fits is used as it is; an interrupted run goes on where it
    stopped.
    """

    when_interrupted: ClassVar[str] = (
        "Stopped. The finished chunks are kept: run the same command again to go on from there."
    )

    data: Path
    """Dataset folder with transforms.json in it (made by ns-process-data, for example)."""
    feature_type: str = "CLIP"
    """CLIP (for text queries), DINO, DINOV2, DINOCLIP, or several joined by +: DINO+CLIP."""
    shard_size: int = 64
    """Images per chunk file."""
    device: str = "auto"
    """auto takes the GPU if there is one; else cpu, cuda, cuda:0, ..."""
    force: bool = False
    """Compute everything anew; valid old features stay until the new ones are complete."""
    cache_dir: Path | None = None
    """Folder for the features, instead of DATA/features."""
    weights: tuple[str, ...] = ()
    """Weights other than the default, by type: CLIP=PATH DINO=PATH."""
    background: Background = "black"
    """Behind images with alpha; match --pipeline.model.background-color (its default is black)."""
    batch_size: int | None = None
    """Images per network call; chosen by image size if not given. Smaller needs less memory."""

    def run(self) -> None:
        """Extracts, then prints where the features are.

        Raises:
            F3rmError: If it cannot be done; the message says what to do.
        """
        stores = extract_features_for_dataset(
            self.data,
            self.feature_type,
            shard_size=self.shard_size,
            device=self.device,
            force=self.force,
            cache_dir=self.cache_dir,
            weights=self.weights,
            background=self.background,
            batch_size=self.batch_size,
        )
        for name, store in stores.items():
            print(_summary(name, store))


def _summary(name: str, store: FeatureStore) -> str:
    maps = sorted({store.grid_size(index) for index in range(len(store))})
    shapes = ", ".join(f"{rows} x {cols}" for rows, cols in maps)
    return (
        f"{name}: {len(store)} images, maps of {shapes} cells with {store.channels} channels, "
        f"{store.num_bytes} bytes ({store.num_bytes / 1e6:.1f} MB) in {store.folder}"
    )
