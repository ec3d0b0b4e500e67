"""A dataset's images, those left out of a training run, and a dataparser's outputs without them.

They are left out of the datasets, not only of the feature loss: a batch is drawn from the pixels of
all images of a dataset, so that rays without features would need another loss; and an image that
cannot be extracted can usually not be decoded for its colours either.
"""

import logging
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from nerfstudio.data.dataparsers.base_dataparser import DataParserConfig, DataparserOutputs
from nerfstudio.data.dataparsers.nerfstudio_dataparser import NerfstudioDataParserConfig

from f3rm.errors import DatasetError, printable
from f3rm.store.items import ImageItem, dataset_root, items_from_paths, read_items
from f3rm.store.reader import FeatureStore
from f3rm.training.lookup import match_items

_SHOWN = 20
_SPLITS = ("train", "val", "test")

log = logging.getLogger(__name__)


def list_items(data: Path, dataparser: DataParserConfig) -> list[ImageItem]:
    """Lists every image of a dataset, whatever its split.

    Nerfstudio's own format is read from transforms.json; any other dataparser is asked.
    """
    if isinstance(dataparser, NerfstudioDataParserConfig):
        return read_items(data, present=False)
    parser = replace(dataparser, data=data).setup()
    paths = [
        path
        for split in _SPLITS
        for path in parser.get_dataparser_outputs(split=split).image_filenames
    ]
    return items_from_paths(paths, dataset_root(data))


def images_left_out(
    before: Sequence[str], stores: Iterable[FeatureStore], num_images: int
) -> tuple[str, ...]:
    """Returns the images to leave out: those of ``before``, and those without features.

    Logs how many images have no features, and which.

    Args:
        before: Names of images that are left out anyway.
        stores: One store per feature type.
        num_images: Number of images in the dataset.
    """
    failed = {image.name for store in stores for image in store.manifest.failed}
    names = sorted(failed)
    if names:
        more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
        log.warning(
            "%d of %d images have no features and are left out of training and evaluation: %s%s.",
            len(names),
            num_images,
            ", ".join(printable(name) for name in names[:_SHOWN]),
            more,
        )
    return (*before, *(name for name in names if name not in before))


def kept_items(items: Iterable[ImageItem], left_out: Sequence[str]) -> list[ImageItem]:
    """Returns the images that are not left out."""
    return [item for item in items if item.name not in left_out]


def kept_outputs(
    outputs: DataparserOutputs, items: Sequence[ImageItem], left_out: Sequence[str]
) -> DataparserOutputs:
    """Returns a split without the images that are left out.

    Args:
        outputs: The dataparser's outputs for the split.
        items: All images of the dataset.
        left_out: Names of the images to leave out.

    Raises:
        DatasetError: If a file of the split is not an image of the dataset.
    """
    if not left_out:
        return outputs
    names, missing = match_items(outputs.image_filenames, items), set(left_out)
    numbers = [number for number, name in enumerate(names) if name not in missing]
    return outputs if len(numbers) == len(names) else _subset(outputs, numbers)


def check_trainable(outputs: DataparserOutputs) -> DataparserOutputs:
    """Returns the training split.

    Raises:
        DatasetError: If all of its images are left out.
    """
    if not outputs.image_filenames:
        raise DatasetError(
            "There is no image to train on: all training images are left out or have no features. "
            "Run f3rm cache verify to see why, and repair the images."
        )
    return outputs


def _subset(outputs: DataparserOutputs, numbers: Sequence[int]) -> DataparserOutputs:
    """Returns the images of a split with these numbers, and their masks and metadata."""
    count = len(outputs.image_filenames)

    def chosen(values: Any) -> Any:
        # Dataparsers do not say which metadata is per image; a list with one entry each is.
        per_image = isinstance(values, list) and len(values) == count
        return [values[number] for number in numbers] if per_image else values

    return replace(
        outputs,
        image_filenames=chosen(outputs.image_filenames),
        cameras=outputs.cameras[torch.tensor(numbers, dtype=torch.long)],
        mask_filenames=chosen(outputs.mask_filenames),
        metadata={name: chosen(value) for name, value in outputs.metadata.items()},
    )
