"""The arrays of the NSD pre-extraction against their own libraries, hooks and layout."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from torch.utils.data import DataLoader
from transformers import Dinov2Model

from f3rm.errors import DatasetError
from f3rm.extract.tables.exports import export_array
from f3rm.extract.tables.items import list_items
from f3rm.extract.tables.live import FeatureExtractor, LiveSource
from f3rm.extract.tables.run import extract
from f3rm.recipes.nsd import NsdBackbone, NsdDataset, extract_nsd, nsd_spec, result_name
from tests.extract.tables.conftest import pixels_of

IMAGENET = (np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225]))
OPENAI = (
    np.array([0.48145466, 0.4578275, 0.40821073]),
    np.array([0.26862954, 0.26130258, 0.27577711]),
)


def reference_input(path: Path, statistics: tuple[np.ndarray, np.ndarray]) -> torch.Tensor:
    """Normalises, then pads with zeros at the right and the bottom to whole patches."""
    image = (np.asarray(Image.open(path).convert("RGB")) / 255 - statistics[0]) / statistics[1]
    height, width = (-(-side // 14) * 14 for side in image.shape[:2])
    padded = np.zeros((height, width, 3), dtype=np.float32)
    padded[: image.shape[0], : image.shape[1]] = image
    return torch.from_numpy(padded).permute(2, 0, 1)[None]


def reference_network(folder: Path) -> Dinov2Model:
    return Dinov2Model.from_pretrained(folder).eval()


@pytest.mark.parametrize("block", [-1, 0, 1])
def test_nsd_dinov2_q_equals_a_hook_on_the_query(write_images, dinov2_folder, block):
    (path,) = write_images(["a.png"], size=(30, 44))
    spec = nsd_spec("dinov2_q", enc_layer=block, weights=str(dinov2_folder))
    (found,) = FeatureExtractor(spec)(path).values()

    network = reference_network(dinov2_folder)
    seen = []
    query = dict(network.named_modules())
    layers = sorted(
        (name for name in query if name.endswith("attention.q_proj")),
        key=lambda name: int(name.split(".")[2]),
    )
    query[layers[block]].register_forward_hook(lambda _, __, output: seen.append(output))
    with torch.no_grad():
        network(reference_input(path, IMAGENET))

    assert found.shape == (1, 1 + 3 * 4, 32)
    torch.testing.assert_close(found, seen[0], atol=1e-5, rtol=1e-4)


def test_nsd_dinov2_equals_the_normed_tokens_with_the_class_token_first(
    write_images, dinov2_folder
):
    (path,) = write_images(["a.png"], size=(30, 44))
    (found,) = FeatureExtractor(nsd_spec("dinov2", weights=str(dinov2_folder)))(path).values()
    with torch.no_grad():
        expected = reference_network(dinov2_folder)(reference_input(path, IMAGENET))
    torch.testing.assert_close(found, expected.last_hidden_state, atol=1e-5, rtol=1e-4)


def test_nsd_clip_equals_open_clips_own_tokens(write_images, clip_folder):
    (path,) = write_images(["a.png"], size=(56, 56))
    (found,) = FeatureExtractor(nsd_spec("clip", geometry="pad", weights=str(clip_folder)))(
        path
    ).values()

    config = json.loads((clip_folder / "open_clip_config.json").read_text())["model_cfg"]
    model: Any = open_clip.CLIP(**config, output_dict=False).eval()
    model.load_state_dict(load_file(clip_folder / "open_clip_model.safetensors"))
    model.visual.output_tokens = True
    with torch.no_grad():
        pooled, patches = model.visual(reference_input(path, OPENAI))
        expected = torch.cat([pooled[:, None], patches @ model.visual.proj], dim=1)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(
    ("geometry", "size", "tokens"),
    [("pad", (425, 425), 962), ("stretch", (425, 425), 257), ("stretch", (300, 500), 257)],
)
def test_nsd_geometries_have_their_declared_tokens(dinov2_folder, geometry, size, tokens):
    spec = nsd_spec("dinov2_q", geometry=geometry, weights=str(dinov2_folder))
    extractor = FeatureExtractor(spec)
    (found,) = extractor(pixels_of(size, 0)).values()
    assert found.shape == (1, tokens, 32)
    assert extractor.shape(*size) == {"-1:query@all": (tokens, 32)}


@pytest.mark.parametrize(
    ("backbone", "tokens", "patches"),
    [("dinov2_q", 962, 961), ("dinov2", 962, 961), ("clip", 257, 256)],
)
def test_nsd_arrays_have_their_own_tokens_by_default(
    dinov2_folder, clip_folder, backbone, tokens, patches
):
    weights = str(clip_folder if backbone == "clip" else dinov2_folder)
    found = FeatureExtractor(nsd_spec(backbone, weights=weights)).shape(425, 425)
    assert [shape[:-1] for shape in found.values()] == [(tokens,)]
    bare = nsd_spec(backbone, weights=weights, class_token=False)
    (shape,) = FeatureExtractor(bare).shape(425, 425).values()
    assert np.prod(shape[:-1]) == patches


def test_nsd_array_without_the_class_token_is_the_rest_of_it(tmp_path, write_images, dinov2_folder):
    _dataset(write_images, tmp_path, "01", test=False)
    arrays, stores = [], []
    for kept in (True, False):
        spec = nsd_spec("dinov2", weights=str(dinov2_folder), class_token=kept)
        out = tmp_path / f"out{kept}"
        found = extract_nsd(tmp_path, out, spec, "dinov2_last", progress=False)
        arrays.append(np.load(out / "dinov2_last" / "01" / "train.npy"))
        stores.append(found["01"]["train"])
    assert arrays[1].shape == (2, 4, 32)
    np.testing.assert_allclose(arrays[0][:, 1:], arrays[1], atol=1e-6)
    maps = [NsdDataset(store)[0]["features"] for store in stores]
    torch.testing.assert_close(maps[0], maps[1])


def _dataset(write_images, root: Path, subject: str, *, test: bool = True) -> None:
    own = root / f"subj{subject}"
    write_images(["b.png", "a.png"], (28, 28), own / "training_split" / "training_images")
    if test:
        write_images(["z.png"], (28, 28), own / "test_split" / "test_images")


def test_nsd_layout_of_several_subjects(tmp_path, write_images, dinov2_folder):
    data = tmp_path / "data"
    _dataset(write_images, data, "01")
    _dataset(write_images, data, "02", test=False)
    spec = nsd_spec("dinov2_q", weights=str(dinov2_folder))
    name = result_name("dinov2_q")
    stores = extract_nsd(data, tmp_path / "out", spec, name, subjects=["01", "02"], progress=False)

    assert {s: list(splits) for s, splits in stores.items()} == {
        "01": ["train", "synt"],
        "02": ["train"],
    }
    train = np.load(tmp_path / "out" / "dinov2_q_last" / "01" / "train.npy")
    assert train.shape == (2, 5, 32)
    assert train.dtype == np.float32
    folder = data / "subj01" / "training_split" / "training_images"
    extractor = FeatureExtractor(spec)
    for row, file in zip(train, ["a.png", "b.png"], strict=True):  # sorted by name
        (alone,) = extractor(folder / file).values()
        np.testing.assert_allclose(row, alone[0].numpy(), atol=1e-5)
    assert (tmp_path / "out" / "dinov2_q_last" / "01" / "synt.npy").is_file()
    assert not (tmp_path / "out" / "dinov2_q_last" / "02" / "synt.npy").exists()


def test_nsd_missing_training_images_are_named(tmp_path, dinov2_folder):
    spec = nsd_spec("dinov2", weights=str(dinov2_folder))
    with pytest.raises(DatasetError, match=r"No \*\.png files in .*training_images"):
        extract_nsd(tmp_path, tmp_path / "out", spec, "dinov2_last", progress=False)


@pytest.fixture
def sources(tmp_path, write_images, dinov2_folder, clip_folder):
    """DINOv2's and CLIP's tokens of four images, cached and live."""
    paths = write_images([f"{number}.png" for number in range(4)], (42, 42))
    items = list_items(paths[0].parent)
    found = {}
    chosen: list[tuple[NsdBackbone, Path]] = [("dinov2_q", dinov2_folder), ("clip", clip_folder)]
    for name, folder in chosen:
        spec = nsd_spec(name, weights=str(folder))
        cached = extract(items, spec, tmp_path / name, progress=False)
        found[name] = {"cached": cached, "live": LiveSource(FeatureExtractor(spec), items)}
    return found


def test_nsd_dataset_is_the_same_cached_and_on_the_fly(sources):
    cached = NsdDataset(sources["dinov2_q"]["cached"], sources["clip"]["cached"])
    live = NsdDataset(sources["dinov2_q"]["live"], sources["clip"]["live"])
    batches = [
        torch.cat([batch["features"] for batch in DataLoader(part, batch_size=3)])
        for part in (cached, live)
    ]
    assert batches[0].shape == (4, 32 + 32, 3, 3)
    torch.testing.assert_close(batches[0], batches[1], atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(cached[2]["features"], batches[0][2])


def test_nsd_cat_clip_puts_the_global_vector_beside_every_cell(sources):
    dino = sources["dinov2_q"]["cached"].load().features
    clip = sources["clip"]["cached"].load().features
    both = NsdDataset(sources["dinov2_q"]["cached"], sources["clip"]["cached"])[1]["features"]
    alone = NsdDataset(vectors=sources["clip"]["cached"])[1]["features"]
    for row in range(3):
        for col in range(3):
            cell = both[:, row, col].numpy()
            np.testing.assert_array_equal(cell[:32], dino[1, 1 + 3 * row + col])
            np.testing.assert_array_equal(cell[32:], clip[1, 0])
            np.testing.assert_array_equal(alone[:, row, col].numpy(), clip[1, 0])


def test_nsd_dataset_refuses_sources_of_other_images(sources, tmp_path, write_images):
    (path,) = write_images(["other.png"], (42, 42), tmp_path / "elsewhere")
    other = LiveSource(sources["clip"]["live"].extractor, list_items(path.parent))
    with pytest.raises(DatasetError, match="sources of different images"):
        NsdDataset(sources["dinov2_q"]["cached"], other)


def test_nsd_export_is_one_array_however_it_was_cut(sources, tmp_path):
    shape = export_array(sources["dinov2_q"]["live"], tmp_path / "live.npy")
    assert shape == (4, 10, 32)
    live = np.load(tmp_path / "live.npy")
    export_array(sources["dinov2_q"]["cached"], tmp_path / "cached.npy")
    np.testing.assert_allclose(live, np.load(tmp_path / "cached.npy"), atol=1e-5)
