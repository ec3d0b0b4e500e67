"""Targets averaged over segments: the mean of what is inside, and nothing of what is outside."""

import numpy as np
import pytest
import torch
from PIL import Image

from f3rm.errors import DatasetError
from f3rm.training.segments import Segments, read_labels

MAP = np.array([[0, 0, 7, 7], [3, 3, 7, 7], [3, 3, 0, 9]])
LABELS = [[0, 0, 2, 2], [1, 1, 2, 2], [1, 1, 0, 3]]


@pytest.mark.parametrize(
    ("suffix", "dtype"),
    [(".npz", np.uint8), (".npz", np.int32), (".png", np.uint8), (".png", np.uint16)],
)
def test_a_label_map_is_read_from_any_file(tmp_path, suffix, dtype):
    file = tmp_path / f"map{suffix}"
    if suffix == ".png":
        Image.fromarray(MAP.astype(dtype)).save(file)
    else:
        np.savez(file, segmentation=MAP.astype(dtype))
    assert read_labels(file).tolist() == LABELS


def test_colours_are_labels_and_black_is_none(tmp_path):
    colours = np.array([[0, 0, 0], [255, 0, 0], [0, 0, 5]], dtype=np.uint8)
    picture = colours[np.array([[0, 1], [2, 1]])]
    Image.fromarray(picture).save(tmp_path / "a.png")
    assert read_labels(tmp_path / "a.png").tolist() == [[0, 2], [1, 2]]
    palette = Image.fromarray(picture).convert("P", palette=Image.Palette.ADAPTIVE, colors=3)
    palette.save(tmp_path / "b.png")
    assert len(np.unique(read_labels(tmp_path / "b.png"))) == 3


def test_of_overlapping_masks_the_smallest_has_a_pixel(tmp_path):
    masks = np.zeros((3, 4, 4), dtype=bool)
    masks[0, 1, 1] = True  # a handle
    masks[1, :3, :3] = True  # of a mug
    masks[2, :, :2] = True
    np.savez_compressed(tmp_path / "a.npz", masks)
    labels = read_labels(tmp_path / "a.npz")
    assert labels.tolist() == [[3, 3, 2, 0], [3, 1, 2, 0], [3, 3, 2, 0], [3, 3, 0, 0]]


def test_a_map_without_zero_has_no_background(tmp_path):
    np.savez(tmp_path / "a.npz", np.array([[4, 4], [5, -1]]))
    assert read_labels(tmp_path / "a.npz").tolist() == [[1, 1], [2, 0]]
    np.savez(tmp_path / "b.npz", np.array([[4, 4], [5, 4]]))
    assert read_labels(tmp_path / "b.npz").tolist() == [[1, 1], [2, 1]]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (np.zeros((2, 2)), "must hold whole numbers"),
        (np.array([["a"]]), "must hold whole numbers"),
        (None, "is no readable file"),
    ],
)
def test_what_is_no_segmentation_is_refused(tmp_path, content, said):
    if content is None:
        (tmp_path / "a.npz").write_bytes(b"PK\x03\x04 torn")
    else:
        np.savez(tmp_path / "a.npz", content)
    with pytest.raises(DatasetError, match=said):
        read_labels(tmp_path / "a.npz")


def test_means_are_those_of_the_pixels_inside():
    maps = [np.array(LABELS, np.uint16), np.zeros((0, 0), np.uint16), np.ones((2, 3), np.uint16)]
    segments = Segments.of(maps)
    values = [torch.rand(3, 4, 5), torch.rand(1, 1, 5), torch.rand(2, 3, 5)]

    def features(image, places):
        pixels = (places * torch.tensor(values[image].shape[:2])).long()
        return values[image][pixels[:, 0], pixels[:, 1]]

    means = segments.means(features)
    assert means.shape == (4, 5)
    for label in (1, 2, 3):
        inside = values[0][torch.tensor(LABELS) == label]
        torch.testing.assert_close(means[label - 1], inside.mean(0))
    torch.testing.assert_close(means[3], values[2].flatten(0, 1).mean(0))
    places = torch.tensor([[0.9, 0.9], [0.1, 0.1], [0.5, 0.5], [1.0, 1.0]])
    ids = segments.at(torch.tensor([0, 0, 1, 2]), places)
    assert ids.tolist() == [2, -1, -1, 3]
