import gc
import json
import random
import re
import shutil

import pytest
import torch
from nerfstudio.data.datamanagers.base_datamanager import VanillaDataManagerConfig
from nerfstudio.data.dataparsers.colmap_dataparser import ColmapDataParserConfig
from nerfstudio.data.dataparsers.nerfstudio_dataparser import NerfstudioDataParserConfig

from f3rm import feature_datamanager
from f3rm.errors import DatasetError, DeviceError, FeatureTypeError
from f3rm.extract.standalone import extract_features_for_dataset
from f3rm.feature_datamanager import FeatureDataManagerConfig, match_items
from f3rm.store.items import ImageItem
from tests.backbones import random_dino as dino
from tests.scene_fixtures import write_colmap, write_dataset, write_image

UNIFORM = {f"{role}_{i}.png": (45, 60) for role, n in (("train", 4), ("eval", 2)) for i in range(n)}


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory):
    folder = tmp_path_factory.mktemp("weights") / "dino"
    return dino.write_random_checkpoint(folder, width=16, layers=2)


@pytest.fixture
def make(checkpoint):
    def build(data, *, test_mode="val", dataparser=None, device="cpu", local_rank=0, **settings):
        parser = dataparser or NerfstudioDataParserConfig(eval_mode="filename", downscale_factor=1)
        config = FeatureDataManagerConfig(
            data=data,
            dataparser=parser,
            train_num_rays_per_batch=64,
            eval_num_rays_per_batch=64,
            **{"feature_type": "DINO", "weights": (f"DINO={checkpoint}",), **settings},
        )
        return config.setup(device=device, test_mode=test_mode, local_rank=local_rank)

    return build


@pytest.mark.parametrize(
    ("trains_on", "wanted", "expected"),
    [
        ("cuda:0", "auto", "cuda:0"),
        ("cuda:3", "auto", "cuda:3"),
        ("cuda:3", "cuda:1", "cuda:1"),
        ("cuda:3", "cpu", "cpu"),
        ("cpu", "auto", "auto"),
    ],
)
def test_every_process_extracts_on_the_gpu_that_it_trains_on(
    tmp_path, make, monkeypatch, trains_on, wanted, expected
):
    """Nerfstudio gives rank N the device cuda:N and no environment variable."""

    class AskedError(Exception):
        pass

    def extract(items, spec, *, device, progress, **_):
        raise AskedError(device, progress)

    monkeypatch.setattr(feature_datamanager, "extract_features", extract)
    rank = torch.device(trains_on).index or 0
    with pytest.raises(AskedError) as asked:
        make(
            write_dataset(tmp_path, UNIFORM),
            device=trains_on,
            local_rank=rank,
            feature_device=wanted,
        )
    assert asked.value.args == (expected, rank == 0)


def _expected(manager, dataset, indices, name="dino"):
    """Features of rays, one by one, through fractions of the image."""
    store = manager.stores[name]
    features = []
    for image, y, x in indices.tolist():
        camera = dataset.cameras[image]
        height, width = int(camera.height), int(camera.width)
        item = match_items([dataset.image_filenames[image]], manager.items)[0]
        grid = store.feature_map(store.index(item))
        row = int((y + 0.5) / height * grid.shape[0])
        col = int((x + 0.5) / width * grid.shape[1])
        features.append(grid[row, col])
    return torch.stack(features)


def _check(manager, split):
    bundle, batch = manager.next_train(0) if split == "train" else manager.next_eval(0)
    dataset = manager.train_dataset if split == "train" else manager.eval_dataset
    torch.testing.assert_close(batch["feature"], _expected(manager, dataset, batch["indices"]))
    assert batch["feature"].dtype == torch.float32
    assert len(bundle) == len(batch["feature"])
    return batch


@pytest.mark.parametrize("split", ["train", "eval"])
def test_every_ray_has_the_feature_of_its_pixel(tmp_path, make, split):
    manager = make(write_dataset(tmp_path, UNIFORM))
    _check(manager, split)
    assert (tmp_path / "features" / "dino" / "manifest.json").is_file()


def test_rays_and_pixels_are_those_of_nerfstudio(tmp_path, make):
    data = write_dataset(tmp_path, UNIFORM)
    parser = NerfstudioDataParserConfig(eval_mode="filename", downscale_factor=1)
    ours = make(data)
    torch.manual_seed(0)
    random.seed(0)
    ours.setup_train()
    plain_config = VanillaDataManagerConfig(
        data=data, dataparser=parser, train_num_rays_per_batch=64, eval_num_rays_per_batch=64
    )
    plain = plain_config.setup(device="cpu", test_mode="val")
    random.seed(0)
    plain.setup_train()
    torch.manual_seed(7)
    _, expected = plain.next_train(0)
    torch.manual_seed(7)
    _, actual = ours.next_train(0)
    assert torch.equal(expected["indices"], actual["indices"])
    assert torch.equal(expected["image"], actual["image"])


def _draw_batches(manager, num, others):
    """Batches of a fresh random state; ``others`` also draws between them, as a model does."""
    random.seed(0)
    torch.manual_seed(7)
    found = []
    for step in range(num):
        bundle, batch = manager.next_train(step)
        found.append({"origins": bundle.origins, **batch})
        others()
    return found, torch.rand(1)


@pytest.mark.parametrize("masks", [False, True], ids=["plain", "masks"])
@pytest.mark.parametrize(
    "others", [lambda: None, lambda: torch.rand(3)], ids=["alone", "with-others"]
)
def test_batches_are_the_same_with_and_without_prefetch(tmp_path, make, others, masks):
    data = write_dataset(tmp_path, UNIFORM, masks=masks)
    managers = []
    for prefetch in (False, True):
        managers.append(make(data, feature_prefetch=prefetch))
        random.seed(1)  # Nerfstudio shuffles the images when it loads them
        managers[-1].setup_train()
    (expected, later), (actual, later_too) = (_draw_batches(m, 8, others) for m in managers)
    assert torch.equal(later, later_too)
    for first, second in zip(expected, actual, strict=True):
        assert first.keys() == second.keys()
        assert all(torch.equal(first[key], second[key]) for key in first)
    assert managers[0].train_count == managers[1].train_count == 8
    hits = managers[1]._prefetcher.hits
    assert hits == (7 if others() is None else 0)


def test_another_number_of_rays_is_drawn_anew(tmp_path, make):
    manager = make(write_dataset(tmp_path, UNIFORM))
    manager.next_train(0)
    manager.train_pixel_sampler.set_num_rays_per_batch(32)
    bundle, batch = manager.next_train(1)
    assert len(bundle) == len(batch["feature"]) == 32


@pytest.mark.parametrize("residence", ["auto", "mmap", "ram"])
def test_residence_changes_no_batch(tmp_path, make, residence, caplog):
    data = write_dataset(tmp_path, UNIFORM)
    caplog.set_level("INFO")
    manager = make(data, feature_residence=residence)
    said = [line for line in caplog.messages if line.startswith("Features (dino):")]
    assert len(said) == 1
    assert said[0].endswith("read from RAM." if residence == "ram" else "read from mapped files.")
    _check(manager, "train")
    _check(manager, "eval")
    assert (manager._prefetcher is None) == (residence == "ram")


@pytest.mark.parametrize("codec", ["int8", "pca4"])
def test_a_run_trains_on_what_a_codec_stores(tmp_path, make, codec, checkpoint):
    data = write_dataset(tmp_path, UNIFORM)
    extract_features_for_dataset(
        data, "DINO", weights=[f"DINO={checkpoint}"], codec=codec, device="cpu"
    )
    cache = data / "features/dino/manifest.json"
    written = cache.read_bytes()
    manager = make(data, feature_codec=codec)
    assert cache.read_bytes() == written  # found, not extracted anew
    assert json.loads(written)["codec"]["cosine_error"]["mean"] > 0
    _check(manager, "train")


def test_features_that_do_not_fit_are_told(tmp_path, make):
    data = write_dataset(tmp_path, UNIFORM)
    with pytest.raises(DeviceError, match=r"must fit the budget of 0\.00 GiB for 'ram'"):
        make(data, feature_residence="ram", feature_budget_gb=0.0)
    with pytest.raises(DeviceError, match=r"got 'gpu'\. Train on a GPU"):
        make(data, feature_residence="gpu")


def test_prefetch_ends_with_the_manager(tmp_path, make):
    manager = make(write_dataset(tmp_path, UNIFORM))
    manager.next_train(0)[1].complete()
    executor = manager._prefetcher._thread
    threads = list(executor._threads)
    assert all(thread.is_alive() for thread in threads)
    del manager
    gc.collect()
    for thread in threads:
        thread.join(10)
        assert not thread.is_alive()


@pytest.mark.parametrize("split", ["train", "eval"])
def test_downscaled_training_reads_features_of_the_full_files(tmp_path, make, split):
    sizes = dict.fromkeys(UNIFORM, (90, 120))
    data = write_dataset(tmp_path, sizes, downscaled=2)
    parser = NerfstudioDataParserConfig(eval_mode="filename", downscale_factor=2)
    manager = make(data, dataparser=parser)
    assert int(manager.train_dataset.cameras[0].height) == 45
    assert manager.stores["dino"].image_size(0) == (90, 120)
    assert manager.stores["dino"].names[0] == "images/train_0.png"
    _check(manager, split)


def test_camera_resolution_scale_is_mapped_too(tmp_path, make):
    manager = make(write_dataset(tmp_path, UNIFORM), camera_res_scale_factor=0.5)
    batch = _check(manager, "train")
    assert batch["indices"][:, 1].max() < 22 + 1


def test_uniform_training_with_one_portrait_evaluation_image(tmp_path, make):
    sizes = {**UNIFORM, "eval_portrait.png": (60, 45)}
    manager = make(write_dataset(tmp_path, sizes))
    _check(manager, "train")
    _check(manager, "eval")
    shapes = {tuple(batch["image"].shape[:2]) for _, batch in manager.fixed_indices_eval_dataloader}
    assert shapes == {(45, 60), (60, 45)}


def test_training_images_of_different_sizes(tmp_path, make):
    sizes = {**UNIFORM, "train_portrait.png": (60, 45), "train_tiny.png": (31, 37)}
    manager = make(write_dataset(tmp_path, sizes))
    _check(manager, "train")
    _check(manager, "eval")


def test_masked_pixels_are_never_sampled(tmp_path, make):
    manager = make(write_dataset(tmp_path, UNIFORM, masks=True))
    batch = _check(manager, "train")
    assert (batch["indices"][:, 2] < 30).all()


def test_colmap_datasets_are_keyed_by_their_files(tmp_path, make):
    data = write_colmap(tmp_path, 6, 45, 60)
    parser = ColmapDataParserConfig(eval_mode="interval", eval_interval=3, downscale_factor=1)
    manager = make(data, dataparser=parser)
    assert manager.stores["dino"].names[0].startswith("images/frame_")
    assert len(manager.stores["dino"]) == 6
    _check(manager, "train")
    _check(manager, "eval")


def test_bilinear_reading_blends_between_cells(tmp_path, make):
    data = write_dataset(tmp_path, UNIFORM)
    nearest, bilinear = make(data), make(data, feature_sampling="bilinear")
    indices = torch.tensor([[0, 20, 31]])
    store = nearest.stores["dino"]
    xy = torch.tensor([[31.0, 20.0]])
    row = torch.tensor([store.index("images/train_0.png")])
    blended = bilinear._lookups["train"].features("dino", indices)
    torch.testing.assert_close(blended, store.gather(row, xy, mode="bilinear"))
    assert not torch.allclose(blended, nearest._lookups["train"].features("dino", indices))


def test_evaluation_images_bring_their_targets_row_by_row(tmp_path, make):
    manager = make(write_dataset(tmp_path, UNIFORM))
    camera, batch = next(iter(manager.fixed_indices_eval_dataloader))
    height, width = int(camera.height), int(camera.width)
    rows = batch["feature_targets"].rows("dino", 10, 13)
    assert rows.shape == (3, width, 16)
    assert height == 45
    index = batch["image_idx"]
    indices = torch.tensor([[index, y, x] for y in range(10, 13) for x in range(width)])
    expected = _expected(manager, manager.eval_dataset, indices)
    torch.testing.assert_close(rows.reshape(-1, 16), expected)
    _, batch = manager.next_eval_image(0)
    assert "feature_targets" in batch


def test_several_types_have_a_key_each(tmp_path, make, checkpoint):
    weights = (f"DINO={checkpoint}", f"DINOV2={_dinov2(tmp_path)}")
    manager = make(
        write_dataset(tmp_path / "d", UNIFORM), feature_type="DINO+DINOV2", weights=weights
    )
    _, batch = manager.next_train(0)
    assert batch["feature_dino"].shape == (64, 16)
    assert batch["feature_dinov2"].shape == (64, 24)
    heads = manager.train_dataset.metadata["feature_heads"]
    assert [(head.name, head.channels, head.has_text) for head in heads] == [
        ("dino", 16, False),
        ("dinov2", 24, False),
    ]
    assert set(manager.train_dataset.metadata["feature_stats"]) == {"dino", "dinov2"}


def test_stores_that_were_made_in_different_orders_are_each_read_in_their_own(
    tmp_path, make, checkpoint
):
    data = write_dataset(tmp_path / "d", UNIFORM)
    make(data)  # DINO in the order of the file
    transforms = data / "transforms.json"
    content = json.loads(transforms.read_text())
    content["frames"].reverse()
    transforms.write_text(json.dumps(content))
    weights = (f"DINO={checkpoint}", f"DINOV2={_dinov2(tmp_path)}")
    manager = make(data, feature_type="DINO+DINOV2", weights=weights)
    assert manager.stores["dino"].names == manager.stores["dinov2"].names[::-1]
    _, batch = manager.next_train(0)
    for name in ("dino", "dinov2"):
        expected = _expected(manager, manager.train_dataset, batch["indices"], name)
        torch.testing.assert_close(batch[f"feature_{name}"], expected)


def test_a_run_opens_after_its_weights_are_gone(tmp_path, make, checkpoint, caplog):
    data = write_dataset(tmp_path / "d", UNIFORM)
    moved = shutil.copytree(checkpoint, tmp_path / "weights")
    make(data, weights=(f"DINO={moved}",))
    shutil.rmtree(moved)
    manager = make(data, weights=(f"DINO={moved}",), test_mode="test")
    assert not manager.stores
    assert "No feature metrics" in caplog.text
    assert str(moved) in caplog.text


def _dinov2(tmp_path):
    folder = tmp_path / "weights2"
    return dino.write_random_checkpoint(folder, family="dinov2", width=24, layers=2, patch_size=14)


def test_a_valid_cache_is_used_without_loading_the_model(tmp_path, make, monkeypatch):
    data = write_dataset(tmp_path, UNIFORM)
    make(data)
    monkeypatch.setattr(
        "f3rm.backbones.dino.backbone.DinoBackbone.load",
        lambda *_, **__: pytest.fail("model was loaded"),
    )
    _check(make(data), "train")


def test_a_run_that_is_only_looked_at_never_extracts(tmp_path, make, caplog):
    data = write_dataset(tmp_path, UNIFORM)
    manager = make(data, test_mode="test")
    assert "No feature metrics" in caplog.text
    assert not (data / "features").exists()
    _, batch = next(iter(manager.fixed_indices_eval_dataloader))
    assert "feature_targets" not in batch
    assert "feature_heads" not in manager.train_dataset.metadata


def test_inference_opens_no_image_and_no_cache(tmp_path, make):
    data = write_dataset(tmp_path, UNIFORM)
    for path in (data / "images").iterdir():
        path.unlink()
    manager = make(data, test_mode="inference")
    assert not manager.stores


def test_without_cache_nothing_is_written_to_the_dataset(tmp_path, make):
    data = write_dataset(tmp_path, UNIFORM)
    _check(make(data, enable_cache=False), "train")
    assert not (data / "features").exists()


def test_bad_input_is_named_before_anything_is_written(tmp_path, make):
    data = write_dataset(tmp_path, UNIFORM)
    (data / "images" / "train_1.png").write_bytes(b"no image")
    with pytest.raises(DatasetError, match=r"train_1\.png"):
        make(data)
    with pytest.raises(FeatureTypeError, match="DINO"):
        make(data, feature_type="DINOO", weights=())
    with pytest.raises(DatasetError, match=r"^No such folder: .*nowhere'"):
        make(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DatasetError, match=r"transforms\.json"):
        make(tmp_path / "empty")
    assert not (data / "features").exists()


def test_files_of_one_name_in_two_folders_are_told_apart_or_refused(tmp_path):
    items = [ImageItem(f"{side}/x.png", tmp_path / side / "x.png") for side in ("left", "right")]
    assert match_items([items[1].path], items) == ["right/x.png"]
    with pytest.raises(DatasetError, match="2 images share its name"):
        match_items([tmp_path / "images_2" / "x.png"], items)
    write_image(tmp_path / "left" / "x.png", 4, 4)
    with pytest.raises(DatasetError, match="none matches"):
        match_items([tmp_path / "left" / "y.png"], items)


def test_heads_know_which_weights_they_distil_wherever_these_lie(tmp_path, make, checkpoint):
    data = write_dataset(tmp_path / "scene", UNIFORM)
    shutil.copytree(checkpoint, tmp_path / "moved")
    first = make(data).train_dataset.metadata["feature_heads"][0]
    moved = make(data, weights=(f"DINO={tmp_path / 'moved'}",))
    again = moved.train_dataset.metadata["feature_heads"][0]
    assert re.fullmatch(r"xxh3:\w+ final", first.identity)  # weights and tap
    assert first.backbone.weights != again.backbone.weights
    assert first.is_same_model(again)
