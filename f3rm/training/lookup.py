"""Features at a dataset's pixels: the image in the store, and the pixel of its file.

Images are known here by name and size only; cameras and batches belong to the data manager.
"""

from collections.abc import Sequence
from pathlib import Path

import torch
from jaxtyping import Float, Int
from torch import Tensor

from f3rm.errors import DatasetError, printable
from f3rm.store.items import ImageItem
from f3rm.store.reader import FeatureStore, GatherMode
from f3rm.training.segments import Segments


class ImageTargets:
    """Target features of one image of a dataset, read a few pixel rows at a time.

    Args:
        lookup: The features of the dataset.
        index: The image's index in the dataset.
    """

    def __init__(self, lookup: "FeatureLookup", index: int) -> None:
        self._lookup = lookup
        self._index = index

    def rows(self, name: str, start: int, stop: int) -> Float[Tensor, "rows width channels"]:
        """Returns a head's features of the pixel rows from ``start`` to ``stop``, on the CPU."""
        width = int(self._lookup.sizes[self._index, 1])
        y, x = torch.meshgrid(torch.arange(start, stop), torch.arange(width), indexing="ij")
        image = torch.full_like(x, self._index)
        indices = torch.stack((image, y, x), dim=-1).reshape(-1, 3)
        return self._lookup.features(name, indices, "cpu").view(stop - start, width, -1)


class FeatureLookup:
    """Looks up features at a dataset's pixels.

    Args:
        stores: The feature stores by head name; each has its own order of images.
        names: Each dataset image's name in the stores.
        sizes: Each dataset image's (height, width) in training pixels.
        mode: Nearest cell or bilinear interpolation.
    """

    def __init__(
        self,
        stores: dict[str, FeatureStore],
        names: Sequence[str],
        sizes: Int[Tensor, "images 2"],
        mode: GatherMode,
    ) -> None:
        self.stores = stores
        self.sizes = sizes
        self._rows = {
            name: torch.tensor([store.index(image) for image in names], dtype=torch.int64)
            for name, store in stores.items()
        }
        self._mode: GatherMode = mode
        name, store = next(iter(stores.items()))
        found = [store.image_size(int(row)) for row in self._rows[name]]
        files = torch.tensor(found, dtype=torch.int64).reshape(-1, 2)  # a split may be empty
        self._files = files
        self._scale = files / sizes  # file pixels per trained pixel, (y, x)
        self._segments: dict[str, tuple[Segments, Tensor]] = {}

    def pool(self, name: str, segments: Segments) -> None:
        """Replaces a head's features by their means over the segments that pixels are in.

        Pixels in no segment keep their own.

        Args:
            name: The head.
            segments: Segments of the dataset's images, in their order.
        """

        def features(image: int, places: Tensor) -> Tensor:
            rows = self._rows[name][torch.full((len(places),), image)]
            file_yx = places * self._files[image] - 0.5
            return self.stores[name].gather(rows, file_yx.flip(-1), mode=self._mode, device="cpu")

        self._segments[name] = (segments, segments.means(features))

    def features(
        self, name: str, indices: Int[Tensor, "rays 3"], device: torch.device | str | None = None
    ) -> Float[Tensor, "rays channels"]:
        """Returns a head's features at pixels.

        Args:
            name: The head.
            indices: Nerfstudio's (image, y, x) of each ray, in training pixels.
            device: Device of the result; None for that of the store's rows.
        """
        indices = indices.cpu()
        image, yx = indices[:, 0], indices[:, 1:]
        # Training may use smaller images than the files that features were extracted from; pixel
        # centres, not corners, are whole numbers.
        file_yx = (yx + 0.5) * self._scale[image] - 0.5
        rows = self._rows[name][image]
        own = self.stores[name].gather(rows, file_yx.flip(-1), mode=self._mode, device=device)
        if name not in self._segments:
            return own
        segments, means = self._segments[name]
        ids = segments.at(image, (yx + 0.5) / self.sizes[image])
        pooled = means[ids.clamp_min(0)]
        known = (ids >= 0) & ~pooled[:, 0].isnan()
        return torch.where(known[:, None].to(own.device), pooled.to(own), own)


def match_items(paths: Sequence[Path], items: Sequence[ImageItem]) -> list[str]:
    """Matches each file that Nerfstudio trains on to an image of the dataset.

    Where transforms.json says ``images/x.jpg``, Nerfstudio may train on ``images_2/x.jpg``: it
    keeps the file's name only, so files that are not themselves in the list are matched by name.

    Args:
        paths: Files of a Nerfstudio dataset.
        items: The images that features were extracted from.

    Returns:
        The name of the item behind each path.

    Raises:
        DatasetError: If a file belongs to no image, or to several of the same name.
    """
    by_path = {item.path.resolve(): item.name for item in items}
    by_name: dict[str, list[str]] = {}
    for item in items:
        by_name.setdefault(item.path.name, []).append(item.name)
    matched: list[str] = []
    for path in paths:
        candidates = by_name.get(path.name, [])
        exact = by_path.get(path.resolve())
        if exact is None and len(candidates) != 1:
            found = f"{len(candidates)} images share its name" if candidates else "none matches"
            raise DatasetError(
                f"{printable(str(path))} must belong to one image of transforms.json, but {found}. "
                "Give images in different folders different names, or train at full size."
            )
        matched.append(exact if exact is not None else candidates[0])
    return matched
