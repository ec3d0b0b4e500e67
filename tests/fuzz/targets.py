"""What is fuzzed: each builds valid documents once, then hands changed ones to their readers.

A reader may refuse with an F3rmError. What it accepts must give a right answer, which is checked by
a slower or a second way wherever there is one.
"""

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import msgspec
import numpy as np
import torch
from nerfstudio.cameras.cameras import Cameras
from nerfstudio.data.dataparsers.base_dataparser import DataparserOutputs

from f3rm.errors import CacheError, F3rmError
from f3rm.extract.cache import find_cache
from f3rm.extract.legacy import open_legacy
from f3rm.extract.locks.journal import Journal
from f3rm.extract.maintenance import unfinished, verify_cache
from f3rm.extract.tables.items import list_items
from f3rm.extract.tables.run import extract as extract_taps
from f3rm.extract.tables.tables import TapStore
from f3rm.recipes.vissl import load_features
from f3rm.scene.frames import scene_from_dataset
from f3rm.scene.metres import read_metres
from f3rm.store.chunks import map_chunk
from f3rm.store.codec_files import read_codec, write_codec
from f3rm.store.codecs import fit_codec, parse_codec
from f3rm.store.images import inspect_images
from f3rm.store.items import read_items
from f3rm.store.manifest import MANIFEST, ChunkRecord, CodecArray, CodecRecord
from f3rm.store.names import place_below, safe_paths
from f3rm.store.reader import FeatureStore, gather_reference
from f3rm.store.spec import FeatureSpec
from f3rm.synthetic.truth import SceneTruth
from tests.extract.tables.backbone import GridBackbone
from tests.extract.toy import extract, toy_spec, write_dataset
from tests.fuzz.mutations import TEXTS, changed_json, edited, mutated, spoiled, written
from tests.fuzz.typed import Queries, Specs

Case = Callable[[random.Random], object]
Record = TypeVar("Record")
UNFIT = (LookupError, TypeError, ValueError, AttributeError)


class Manifests:
    """Manifests of caches with every codec and of taps, lists of items, and journals."""

    def __init__(self, folder: Path) -> None:
        self._root = write_dataset(folder / "scene", [(8, 12), (8, 12), (12, 8)])
        self._items = read_items(self._root)
        self._caches: list[tuple[Path, Any]] = []
        for codec in ("fp16", "int8", "pca2"):
            spec = toy_spec(short_side=16, codec=codec)
            store = extract(self._root, spec, folder=folder / codec / "toy")
            self._caches.append((store.folder, json.loads((store.folder / MANIFEST).read_text())))
        taps = FeatureSpec.of("grid:grid@none", ["final", "final|mean"])
        out = folder / "taps"
        extract_taps(
            list_items(self._root), taps, out, load=GridBackbone.load, progress=False, device="cpu"
        )
        self._taps = (out, json.loads((out / "all" / MANIFEST).read_text()))
        self._list = json.loads((out / "all.items.json").read_text())
        self._journal = folder / "journal/toy.building"
        (self._journal / "progress").mkdir(parents=True)

    def __call__(self, rng: random.Random) -> None:
        kind = rng.randrange(10)
        if kind < 7:
            self._cache(rng)
        elif kind < 9:
            self._tap_store(rng)
        else:
            self._unfinished(rng)

    def _cache(self, rng: random.Random) -> None:
        folder, plain = rng.choice(self._caches)
        changed = mutated(plain, rng)
        if rng.random() < 0.7:
            _recompute_key(changed)
        content = written(changed) if rng.random() < 0.95 else spoiled(written(plain), rng)
        (folder / MANIFEST).write_bytes(content)
        found, reason = find_cache(self._items, toy_spec(short_side=16), folder, failed_too=True)
        assert found is not None or reason
        store = FeatureStore.open(folder)
        list(verify_cache(folder, self._items))
        images = torch.arange(len(store)).repeat_interleave(3)
        xy = torch.tensor([[0.0, 0.0], [3.5, 2.0], [1e6, -1e6]]).repeat(len(store), 1)
        features = store.gather(images, xy)
        assert features.shape == (3 * len(store), store.channels)
        assert torch.equal(features, gather_reference(store, images, xy))
        assert torch.isfinite(store.gather(images, xy, mode="bilinear")).all()
        assert len(store.sample(5, seed=0)) <= 5
        assert store.feature_map(0).shape == (*store.grid_size(0), store.channels)

    def _tap_store(self, rng: random.Random) -> None:
        out, plain = self._taps
        changed = mutated(plain, rng) if rng.random() < 0.5 else _with_shapes(plain, rng)
        if rng.random() < 0.7:
            _recompute_key(changed)
        (out / "all" / MANIFEST).write_bytes(written(changed))
        listed = changed_json(self._list, rng) if rng.random() < 0.3 else written(self._list)
        (out / "all.items.json").write_bytes(listed)
        store = TapStore.open(out)
        for tap in store.taps:
            for index in store.indices.tolist():
                table = store.take([index], tap)
                assert table.features.shape == (1, *store.shape(index, tap))

    def _unfinished(self, rng: random.Random) -> None:
        _, plain = rng.choice(self._caches)
        run = {
            "schema_version": 1,
            "key": plain["key"],
            "plan": "0",
            "fresh": False,
            "chunks": [chunk["images"] for chunk in plain["chunks"]],
        }
        note = {"inputs": "i", "chunk": plain["chunks"][0]}
        (self._journal / "progress/run.json").write_bytes(changed_json(run, rng))
        (self._journal / "progress/chunk_0000.json").write_bytes(changed_json(note, rng))
        (self._journal / "progress/codec.json").write_bytes(changed_json(plain["codec"], rng))
        journal = Journal(self._journal)
        making = unfinished(self._journal.with_suffix(""))
        assert making is not None
        assert making.done == len(list(journal.notes()))


def _recompute_key(plain: Any) -> None:
    """Makes a changed specification fit its key, so that what comes after it is read too."""
    try:
        spec = msgspec.convert(plain["spec"], FeatureSpec)
        plain["key"] = spec.key(plain["weights_identity"], plain["algorithm"])
    except (msgspec.MsgspecError, F3rmError, *UNFIT):
        pass


def _with_shapes(plain: Any, rng: random.Random) -> Any:
    """Changes the shapes of the taps' values in a chunk."""
    chunks = [dict(chunk) for chunk in plain["chunks"]]
    chunk = rng.choice(chunks)
    chunk["taps"] = mutated(chunk["taps"], rng)
    return {**plain, "chunks": chunks}


class Datasets:
    """transforms.json and what f3rm make-scene writes beside it."""

    def __init__(self, folder: Path) -> None:
        self._root = write_dataset(folder / "scene", [(8, 12)] * 3)
        self._out = folder / "out"
        cameras = Cameras(torch.eye(4)[None, :3], fx=1.0, fy=1.0, cx=1.0, cy=1.0)
        self._outputs = DataparserOutputs([self._root / "images/0.png"], cameras)
        self._transforms = {
            "camera_model": "OPENCV",
            "applied_transform": [[1, 0, 0, 0], [0, 0, 1, 0], [0, -1, 0, 0]],
            "applied_scale": 1.0,
            "frames": [
                {"file_path": f"images/{i}.png", "transform_matrix": np.eye(4).tolist()}
                for i in range(3)
            ],
        }
        self._scene = {
            "scene": "tabletop",
            "seed": 0,
            "objects": [
                {
                    "id": 0,
                    "name": "red mug",
                    "instance": 0,
                    "kind": "object",
                    "centre": [0, 0, 0.1],
                    "half_size": [0.1, 0.1, 0.1],
                    "yaw": 0.5,
                }
            ],
            "queries": [{"text": "red mug", "ids": [0]}],
            "absent": ["piano"],
            "metres_from_dataset": np.eye(4).tolist(),
        }

    def __call__(self, rng: random.Random) -> None:
        if rng.random() < 0.25:
            (self._root / "scene.json").write_bytes(changed_json(self._scene, rng))
            read_metres(self._root)
            truth = SceneTruth.read(self._root)
            assert all(max(query.ids) < len(truth.objects) for query in truth.queries)
            return
        plain = self._transforms
        if rng.random() < 0.5:  # names are what matters most
            plain = mutated({}, rng) if rng.random() < 0.02 else _with_names(plain, rng)
            content = written(plain)
        else:
            content = changed_json(plain, rng)
        (self._root / "transforms.json").write_bytes(content)
        items = read_items(self._root, present=False)
        failed: dict[str, str] = {}
        infos = inspect_images(items, failed=failed)
        assert len(infos) + len(failed) == len(items)
        for relative in safe_paths(item.name for item in items).values():
            path = place_below(self._out, relative)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.with_name(f"{path.name}.npy").write_bytes(b"")
        matrix = scene_from_dataset(self._outputs, self._root)
        assert matrix.shape == (4, 4)
        read_items(self._root)


def _with_names(plain: Any, rng: random.Random) -> Any:
    names = [frame["file_path"] for frame in plain["frames"]]
    names += [edited(rng.choice(names), rng) for _ in range(2)]
    names[rng.randrange(len(names))] = rng.choice(TEXTS)
    return {**plain, "frames": [{"file_path": name} for name in names]}


class Arrays:
    """Codec files, chunks, chunks of the earlier extractor, and lists as .npy."""

    def __init__(self, folder: Path) -> None:
        generator = torch.Generator().manual_seed(0)
        rows = torch.randn(20, 6, generator=generator)
        self._folder = folder / "codecs"
        self._folder.mkdir(parents=True)
        self._codecs: list[tuple[CodecRecord, dict[str, bytes]]] = []
        for text in ("int8", "pca3"):
            codec = fit_codec(parse_codec(text), rows)
            arrays = write_codec(self._folder, codec)
            contents = {one.file: (self._folder / one.file).read_bytes() for one in arrays}
            self._codecs.append((CodecRecord(codec.spec.name, arrays), contents))
        self._root = write_dataset(folder / "scene", [(8, 8)] * 2)
        self._legacy = folder / "legacy"
        self._legacy.mkdir()
        names = [f"images/{i}.png" for i in range(2)]
        torch.save({"args": {"model": "mean"}, "image_fnames": names}, self._legacy / "meta.pt")
        chunk = np.arange(2 * 4 * 4 * 3, dtype=np.float16).reshape(2, 4, 4, 3)
        np.save(self._legacy / "chunk_0000.npy", chunk)
        self._chunk = (self._legacy / "chunk_0000.npy").read_bytes()
        self._meta = (self._legacy / "meta.pt").read_bytes()
        np.save(folder / "list.npy", np.array(names))
        self._list = folder / "list.npy"
        self._names = self._list.read_bytes()
        self._vissl = folder / "vissl"
        self._vissl.mkdir()
        for what, array in (("features", np.ones((3, 2), np.float32)), ("inds", np.arange(3))):
            np.save(self._vissl / f"rank0_chunk0_train_res5_{what}.npy", array)
        self._files = {path: path.read_bytes() for path in sorted(self._vissl.iterdir())}

    def __call__(self, rng: random.Random) -> None:
        cases = (self._codec, self._codec, self._legacy_cache, self._listed, self._loaded)
        rng.choice(cases)(rng)

    def _codec(self, rng: random.Random) -> None:
        record, contents = rng.choice(self._codecs)
        arrays: list[CodecArray] = []
        for array in record.arrays:
            content = contents[array.file]
            if rng.random() < 0.7:
                content = spoiled(content, rng)
            (self._folder / array.file).write_bytes(content)
            arrays.append(_recorded(array, content, rng))
        codec = read_codec(self._folder, CodecRecord(record.name, tuple(arrays)), 6)
        decoded = codec.decode(torch.ones(2, codec.stored_channels))
        assert decoded.shape == (2, 6)

    def _legacy_cache(self, rng: random.Random) -> None:
        content = spoiled(self._chunk, rng)
        (self._legacy / "chunk_0000.npy").write_bytes(content)
        meta = spoiled(self._meta, rng) if rng.random() < 0.3 else self._meta
        (self._legacy / "meta.pt").write_bytes(meta)
        refused = None
        try:
            record = _read(
                ChunkRecord, file="chunk_0000.npy", bytes=len(content), shape=(2, 4, 4, 3),
                dtype="float16", checksum="", codec_error=0.0, images=("a", "b"),
                taps={"final": (4, 4, 3)},
            )  # fmt: skip
            rows = map_chunk(self._legacy, record)
        except CacheError as error:
            refused = error
        else:
            assert rows.tobytes() == content[-rows.nbytes :]
        store = open_legacy(self._legacy, read_items(self._root), toy_spec(short_side=16))
        assert store.feature_map(0).shape == (4, 4, 3)
        if refused is not None and store.manifest.chunks[0].dtype == "float16":
            assert store.manifest.chunks[0].shape != (2, 4, 4, 3)

    def _listed(self, rng: random.Random) -> None:
        self._list.write_bytes(spoiled(self._names, rng))
        assert 1 <= len(list_items(self._list)) <= 2

    def _loaded(self, rng: random.Random) -> None:
        for path, content in self._files.items():
            path.write_bytes(spoiled(content, rng) if rng.random() < 0.6 else content)
        found = load_features(self._vissl, "train", "res5")
        assert len(found["features"]) == len(found["inds"]) <= 24


def _recorded(array: CodecArray, content: bytes, rng: random.Random) -> CodecArray:
    """Returns a record that goes with the content, or one that does not."""
    from f3rm.store.codec_files import _checksum  # noqa: PLC0415

    fields = {**vars(array), "bytes": len(content), "checksum": _checksum(content)}
    if rng.random() < 0.2:
        fields["shape"] = rng.choice(((3,), (1, 6), (6, 1), (2**40,), ()))
    if rng.random() < 0.1:
        fields["file"] = rng.choice(("codec_mean.npy", "../codec_mean.npy", "codec_x.npy"))
    return _read(CodecArray, **fields)


def _read(kind: type[Record], **fields: Any) -> Record:
    """Makes a record as reading a manifest does."""
    try:
        return msgspec.convert(fields, kind)
    except msgspec.ValidationError as error:
        raise CacheError(str(error)) from error


TARGETS: dict[str, Callable[[Path], Case]] = {
    "manifests": Manifests,
    "datasets": Datasets,
    "arrays": Arrays,
    "specs": Specs,
    "queries": Queries,
}
