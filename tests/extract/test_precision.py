"""The precision of networks: chosen by the device, kept by the cache, the same for all workers."""

from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from typing import ClassVar

import pytest
import torch

from f3rm.errors import FeatureTypeError
from f3rm.extract import worker
from f3rm.extract.cache import find_cache
from f3rm.extract.extraction import preview_job
from f3rm.extract.job import Job
from f3rm.store.device import best_precision
from f3rm.store.manifest import read_manifest
from f3rm.store.spec import FeatureSpec, resolve_feature_type
from tests.extract.interrupted import StopError
from tests.extract.toy import (
    ToyBackbone,
    building_of,
    extract,
    files_of,
    folder_of,
    items_of,
    never,
    notes_of,
    toy_spec,
    write_dataset,
    write_frames,
)

AUTO = toy_spec(precision="auto")


class Linear(ToyBackbone):
    """Ends with a product, which autocast computes in half precision; notes the type."""

    types: ClassVar[Counter[torch.dtype]] = Counter()

    def encode_image(self, images):
        features = super().encode_image(images) @ torch.eye(3)
        self.types[features.dtype] += len(images)
        return features


@pytest.fixture
def dataset(tmp_path):
    Linear.types.clear()
    return write_dataset(tmp_path / "scene", [(24, 33)] * 5)


@pytest.fixture
def on(monkeypatch):
    """Lets the device suit a precision."""
    return lambda precision: monkeypatch.setattr(worker, "best_precision", lambda _: precision)


def precision_of(root) -> str:
    return read_manifest(folder_of(root)).spec.precision


@pytest.mark.parametrize(
    ("device", "capability", "expected"),
    [
        ("cpu", None, "float32"),
        ("cuda:0", (7, 0), "float16"),
        ("cuda:1", (7, 5), "float16"),
        ("cuda:1", (8, 0), "bfloat16"),
        ("cuda:1", (8, 9), "bfloat16"),
        ("cuda:0", (9, 0), "bfloat16"),
        ("cuda:0", (12, 0), "bfloat16"),
    ],
)
def test_half_precision_is_that_of_the_gpu_itself(monkeypatch, device, capability, expected):
    asked = []
    monkeypatch.setattr(
        torch.cuda, "get_device_capability", lambda device: (asked.append(device), capability)[1]
    )
    assert best_precision(torch.device(device)) == expected
    assert asked == ([] if capability is None else [torch.device(device)])


def test_auto_is_the_default_and_never_recorded():
    assert {spec.precision for spec in resolve_feature_type("DINO+CLIP")} == {"auto"}
    with pytest.raises(FeatureTypeError, match=r"precision must be one of float32, .* got 'auto'"):
        AUTO.key("")
    assert [spec.precision for spec in AUTO.settled("bfloat16")] == [
        "bfloat16",
        "float32",
        "float16",
    ]
    assert toy_spec(precision="float16").settled("bfloat16") == (toy_spec(precision="float16"),)
    assert len({spec.key("") for spec in AUTO.settled("float32")}) == 3


@pytest.mark.parametrize("precision", ["float32", "bfloat16", "float16"])
def test_a_cache_of_any_precision_satisfies_auto_and_else_only_its_own(dataset, on, precision):
    on(precision)
    store = extract(dataset, AUTO, load=Linear.load)
    assert store.manifest.spec == toy_spec(precision=precision)
    assert set(Linear.types) == {getattr(torch, precision)}
    on("float32" if precision == "bfloat16" else "bfloat16")
    extract(dataset, AUTO, load=never)
    extract(dataset, toy_spec(precision=precision), load=never)
    for other in {"float32", "bfloat16", "float16"} - {precision}:
        spec = toy_spec(precision=other)
        found, reason = find_cache(items_of(dataset), spec, folder_of(dataset))
        assert found is None
        assert "made with other settings: precision" in reason


def stopped_in_bfloat16(dataset, monkeypatch, on) -> int:
    """Leaves a run of another machine, with a GPU, unfinished; returns how many chunks are done."""
    on("bfloat16")
    with monkeypatch.context() as patches:
        patches.setattr(ToyBackbone, "encode_image", _once(ToyBackbone.encode_image))
        with pytest.raises(StopError):
            extract(dataset, AUTO, load=Linear.load)
    done = len(notes_of(dataset))
    assert 0 < done < 3
    Linear.types.clear()
    on("float32")
    return done


def _once(plain):
    calls = []

    def encode_image(self, images):
        calls.append(len(images))
        if sum(calls) > 3:
            raise StopError
        return plain(self, images)

    return encode_image


def test_an_unfinished_cache_goes_on_in_its_precision_on_another_machine(
    dataset, monkeypatch, on, caplog
):
    done = stopped_in_bfloat16(dataset, monkeypatch, on)
    plan = preview_job(job(dataset), Linear.load)
    assert plan.new_chunks == 3 - done, "what is done counts"
    Linear.types.clear()
    with caplog.at_level("INFO", "f3rm"):
        extract(dataset, AUTO, load=Linear.load)
    assert precision_of(dataset) == "bfloat16"
    assert Linear.types == {torch.bfloat16: 5 - 2 * done}
    assert "toy features are computed in bfloat16." in caplog.text
    assert not list(building_of(dataset).parent.glob("toy.*"))


def test_an_explicit_precision_leaves_what_is_unfinished_in_another(dataset, monkeypatch, on):
    stopped_in_bfloat16(dataset, monkeypatch, on)
    extract(dataset, toy_spec(), load=Linear.load)
    assert precision_of(dataset) == "float32"
    assert Linear.types == {torch.float32: 5}


def test_a_cache_that_gets_an_image_keeps_its_precision_and_force_does_not(dataset, on):
    names = [f"images/{number}.png" for number in range(5)]
    write_frames(dataset, names[:4])
    on("float16")
    extract(dataset, AUTO, load=Linear.load)
    on("float32")
    write_frames(dataset, names)
    Linear.types.clear()
    extract(dataset, AUTO, load=Linear.load)
    assert (precision_of(dataset), Linear.types) == ("float16", {torch.float16: 1})
    extract(dataset, AUTO, load=Linear.load, force=True)
    assert precision_of(dataset) == "float32"


def job(root) -> Job:
    options = {"shard_size": 2, "batch_size": 1, "device": "cpu", "progress": False}
    return Job(items_of(root), AUTO, folder_of(root), **options)


def test_workers_on_different_machines_make_one_cache_of_one_precision(dataset, monkeypatch):
    """Each would choose another; whoever begins the run decides."""
    wishes = iter(["float32", "bfloat16", "float16"])
    monkeypatch.setattr(worker, "best_precision", lambda _: next(wishes, "float32"))
    slow = toy_spec("slow", precision="auto")
    with ThreadPoolExecutor(3) as pool:
        runs = [
            pool.submit(extract, dataset, slow, load=Linear.load, batch_size=1) for _ in range(3)
        ]
        stores = [run.result() for run in runs]
    (precision,) = {store.manifest.spec.precision for store in stores}
    assert Linear.types == {getattr(torch, precision): 5}, "every image once"
    expected = toy_spec("slow", precision=precision)
    alone = extract(dataset, expected, folder=dataset / "alone" / "toy", load=Linear.load)
    assert files_of(folder_of(dataset)) == files_of(alone.folder)


def test_a_specification_in_a_manifest_is_never_auto(dataset):
    extract(dataset, AUTO, load=Linear.load)
    path = folder_of(dataset) / "manifest.json"
    text = path.read_text()
    assert '"precision": "float32"' in text
    path.write_text(text.replace('"precision": "float32"', '"precision": "auto"'))
    assert find_cache(items_of(dataset), AUTO, folder_of(dataset))[0] is None


def test_a_plain_specification_takes_any_precision():
    assert FeatureSpec(AUTO.backbone, ("final",)).precision == "auto"
