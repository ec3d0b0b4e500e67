"""The keys of everything in JSON that commands print or write for other programs."""

import contextlib
import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch
from safetensors import safe_open

import f3rm
from f3rm.backbones import registry
from f3rm.extract.tables.probe import Probe
from f3rm.feature_datamanager import FeatureDataManagerConfig
from f3rm.language.active_query import DisplaySettings, Example
from f3rm.language.text_encoder import QueryText
from f3rm.scene.export.features import export_features
from f3rm.scene.export.objects import export_boxes
from f3rm.scene.export.points import Sampling
from f3rm.scripts import doctor as doctor_module
from f3rm.scripts.cli import main
from f3rm.store import spec
from f3rm.synthetic.truth import SceneTruth
from f3rm.viewer.saved_queries import FILE_NAME, NamedQuery, QueryFile
from tests.baseline.extraction import shipped
from tests.nerf_fixtures import FEATURE_SIZES, NERFACTO_SIZES
from tests.run_fixtures import small_config, train
from tests.scene.known_surface import show_known_surface
from tests.viewer.colour_backbone import ADAPTERS, SPECS

Keys = dict[str, str]
RESNET = ("--backbone", "module:torchvision:resnet18@random", "--tap", "res2|mean")


def keys_of(value: Any, *, null: str = "null") -> Keys:
    """Returns the types at all paths into a value; a list's entries share the path ``[]``."""
    found: dict[str, set[str]] = {}
    for path, kind in _kinds(value, "", null):
        found.setdefault(path, set()).add(kind)
    return {path: "|".join(sorted(kinds)) for path, kinds in sorted(found.items())}


def _kinds(value: Any, path: str, null: str) -> Iterator[tuple[str, str]]:
    if isinstance(value, dict) and value:
        for name, inner in value.items():
            yield from _kinds(inner, f"{path}.{name}".removeprefix("."), null)
    elif isinstance(value, list) and value:
        for inner in value:
            yield from _kinds(inner, f"{path}[]", null)
    else:
        names = {bool: "boolean", int: "number", float: "number", str: "string", type(None): null}
        yield path, names.get(type(value), f"empty {type(value).__name__}")


def _file(path: Path, **options: str) -> Keys:
    return keys_of(json.loads(path.read_text(encoding="utf-8")), **options)


def _printed(*arguments: object, code: int = 0) -> str:
    with contextlib.redirect_stdout(io.StringIO()) as stream:
        assert main([str(word) for word in arguments]) == code
    return stream.getvalue()


def json_keys(root: Path) -> dict[str, Keys]:
    """Runs what prints or writes JSON, on the smallest of data in a folder."""
    data = root / "scene"
    _printed("make-scene", "tabletop", "--out", data, "--views", 10, "--height", 36, "--width", 48)
    found = {f"make-scene {name}": _file(data / name) for name in ("transforms.json", "scene.json")}
    with pytest.MonkeyPatch.context() as patch:  # of a backbone without weights
        for name, each in SPECS.items():
            patch.setitem(spec.PRESETS, name, each)
        for name, each in ADAPTERS.items():
            patch.setitem(registry._SHIPPED, name, each)
        found |= _of_a_cache(data) | _of_a_run(root, data)
    return found | _of_taps(root, data) | _of_no_data(root)


def _of_a_cache(data: Path) -> dict[str, Keys]:
    (data / "broken.png").write_bytes(b"not a picture")
    content = json.loads((data / "transforms.json").read_text())
    broken = {**content["frames"][0], "file_path": "broken.png"}
    content["frames"].append(broken)
    (data / "damaged.json").write_text(json.dumps(content))
    options = ("--feature-type", "COLOURS", "--device", "cpu", "--cache-dir", data / "caches")
    damaged = ("--data", data / "damaged.json", "--on-error", "record", "--codec", "int8")
    _printed("extract", *damaged, *options)
    (manifest,) = (data / "caches").rglob("manifest.json")
    meta = torch.load(manifest.with_name("meta.pt"), weights_only=True)
    return {"extract manifest.json": _file(manifest), "extract meta.pt": keys_of(meta)}


def _of_a_run(root: Path, data: Path) -> dict[str, Keys]:
    config = small_config(data, root / "runs", "COLOURS+MUTE")
    for name, value in {**NERFACTO_SIZES, **FEATURE_SIZES}.items():
        setattr(config.pipeline.model, name, value)
    assert isinstance(config.pipeline.datamanager, FeatureDataManagerConfig)
    config.pipeline.datamanager.train_num_rays_per_batch = 64
    config.pipeline.model.eval_num_rays_per_chunk = 4096
    config.max_num_iterations = 1
    train(config)
    run = config.get_base_dir() / "config.yml"
    scene = show_known_surface(f3rm.load(run, device="cpu"), SceneTruth.read(data))
    export_boxes(scene, root / "boxes.json", query="orange; yellow")
    export_features(scene, root / "cloud.safetensors", Sampling(rays=200))
    with safe_open(root / "cloud.safetensors", framework="np") as content:
        facts = content.metadata()
        cloud = {"tensors": list(content.keys()), **facts, "head": json.loads(facts["head"])}
    _printed("eval", run, "--json", root / "eval.json", "--device", "cpu")
    return {
        "export boxes": _file(root / "boxes.json"),
        "export features": keys_of(cloud),
        # There is no mean over nothing, which so small a run may well find.
        "eval --json": _file(root / "eval.json", null="number"),
    }


def _of_taps(root: Path, data: Path) -> dict[str, Keys]:
    _printed("extract", "--data", data / "images", *RESNET, "--out", root / "taps")
    files = (root / "taps").rglob("*.json")
    return {f"extract --tap {file.relative_to(root / 'taps')}": _file(file) for file in files}


def _of_no_data(root: Path) -> dict[str, Keys]:
    sizes = ("--sizes", "32x48", "--batches", 1, "--iterations", 1, "--warmup", 1)
    bench = json.loads(_printed("bench", *RESNET, *sizes, "--device", "cpu", "--as-json"))
    everywhere = {
        "PRESETS": shipped(),
        "_version": lambda _: "1",
        "_weights": lambda _: "folder",
        "_gpus": lambda: [doctor_module.Gpu("GPU", 24.0, "9.0")],
        "_problems": lambda *_: [("a problem", "what to do")],
        "available_ram": lambda: 1 << 30,
        "shutil": mock.Mock(which=lambda name: name),
    }
    with mock.patch.multiple(doctor_module, **everywhere):
        doctor = json.loads(_printed("doctor", "--json", code=1))
    Probe("knn", neighbours=1).fit(np.eye(2), np.arange(2)).save(root / "probe")
    example = Example("a point", is_positive=True, features={"clip": torch.ones(2)})
    query = NamedQuery(QueryText("mug", "table", 0.1), False, "clip", DisplaySettings(), (example,))
    QueryFile(root).save("mug", query)
    return {
        "bench --as-json": keys_of(bench),
        "doctor --json": keys_of(doctor),
        "probe probe.json": _file(root / "probe" / "probe.json"),
        f"viewer {FILE_NAME}": _file(root / FILE_NAME),
    }
