"""Caches of the earlier extractor: used where they fit, else left alone with the reason."""

import os
import pickle

import numpy as np
import pytest
import torch

from f3rm.errors import CacheMismatchError
from f3rm.extract.cache import find_cache
from f3rm.extract.legacy import open_legacy
from tests.extract.toy import extract, files_of, folder_of, items_of, never, toy_spec

GRID = (8, 11)
"""Images of 24 x 33 pixels resized to a short side of 32: 32 x 44 pixels in patches of 4."""


@pytest.fixture
def rows() -> np.ndarray:
    return np.random.default_rng(0).normal(size=(5, *GRID, 3)).astype(np.float32)


@pytest.fixture
def legacy(dataset, rows):
    """A cache as the earlier extractor writes it: absolute paths, two images per chunk, float32."""
    folder = folder_of(dataset)
    folder.mkdir(parents=True)
    for number, start in enumerate(range(0, 5, 2)):
        np.save(folder / f"chunk_{number:04d}.npy", rows[start : start + 2])
    write_meta(folder, [str(dataset / f"images/{i}.png") for i in range(5)])
    return dataset


def write_meta(folder, names, args=None) -> None:
    settings = {"model_name": "mean", "load_size": 32} if args is None else args
    torch.save({"args": settings, "image_fnames": names}, folder / "meta.pt")


def test_it_is_used_as_it_is_and_nothing_is_written(legacy, rows):
    before = files_of(legacy)
    store = extract(legacy, load=never)
    assert store.names == tuple(f"images/{i}.png" for i in range(5))
    for index in range(5):
        assert np.array_equal(store.feature_map(index).numpy(), rows[index])
    pixel = torch.tensor([[32.0, 23.0]])
    assert np.array_equal(store.gather(torch.tensor([3]), pixel)[0].numpy(), rows[3, 7, 10])
    assert files_of(legacy) == before


def test_what_the_network_dropped_at_the_edges_is_in_the_affine(legacy):
    """33 pixels wide at a short side of 34: 46 pixels make 11 cells of 4, two pixels are lost."""
    spec = toy_spec(short_side=34)
    with pytest.raises(CacheMismatchError, match="do not fit images of"):
        open_legacy(folder_of(legacy), items_of(legacy), toy_spec(short_side=35))
    image = open_legacy(folder_of(legacy), items_of(legacy), spec).manifest.images[0]
    assert image.affine.scale_x == pytest.approx(46 / 33 / 4)
    assert image.affine.cells_from_pixels(-0.5, -0.5) == pytest.approx((-0.5, -0.5))


def test_a_moved_dataset_and_plain_names_are_recognised(legacy):
    folder = folder_of(legacy)
    write_meta(folder, [f"/elsewhere/scene/images/{i}.png" for i in range(5)])
    assert len(extract(legacy, load=never)) == 5
    write_meta(folder, [f"images/{i}.png" for i in range(5)])
    assert len(extract(legacy, load=never)) == 5


class Trap:
    def __reduce__(self):
        return os.abort, ()


def stale(folder) -> None:
    np.save(folder / "chunk_0099.npy", np.zeros((2, *GRID, 3), dtype=np.float32))


def objects(folder) -> None:
    with (folder / "chunk_0001.npy").open("wb") as stream:
        np.save(stream, np.array([Trap()], dtype=object), allow_pickle=True)


def cut(folder) -> None:
    path = folder / "chunk_0002.npy"
    path.write_bytes(path.read_bytes()[:-4])


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (lambda folder: (folder / "meta.pt").write_bytes(pickle.dumps(Trap())), "no plain record"),
        (lambda folder: (folder / "meta.pt").write_bytes(b""), r"meta\.pt is no plain record"),
        (lambda folder: torch.save([1], folder / "meta.pt"), "is no record"),
        (lambda folder: torch.save({"args": {}}, folder / "meta.pt"), "lacks args or image_fnames"),
        (lambda folder: write_meta(folder, [3]), "are no texts"),
        (lambda folder: write_meta(folder, ["a.png"]), r"has 0 images like 'a\.png'"),
        (lambda folder: write_meta(folder, ["images/0.png"]), "it has 1 images, the dataset 5"),
        (
            lambda folder: write_meta(folder, [f"images/{i}.png" for i in range(5)], {"m": "x"}),
            "it was not made with mean",
        ),
        (stale, r"chunk_0099\.npy holds 2 images, not 0"),
        (objects, r"chunk_0001\.npy holds \(1,\) object"),
        (cut, r"chunk_0002\.npy cannot be read"),
        (lambda folder: (folder / "chunk_0002.npy").unlink(), "chunks hold 4 images"),
    ],
)
def test_what_does_not_fit_is_refused_with_the_reason_and_kept(legacy, spoil, reason, caplog):
    folder = folder_of(legacy)
    spoil(folder)
    foreign = files_of(folder)
    with pytest.raises(CacheMismatchError, match=reason):
        open_legacy(folder, items_of(legacy), toy_spec())
    assert find_cache(items_of(legacy), toy_spec(), folder)[0] is None
    assert len(extract(legacy)) == 5
    assert files_of(folder.with_name("toy.kept-1")) == foreign
    assert "held features of another program" in caplog.text
