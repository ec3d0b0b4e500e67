"""Files that are named after items lie inside the output folder, whatever the items are called."""

import json
from pathlib import Path

import numpy as np
import pytest

from f3rm.errors import BackboneRef
from f3rm.evaluation.pictures import panel_name
from f3rm.extract.tables.exports import export_per_item
from f3rm.extract.tables.items import ItemList, list_items
from f3rm.extract.tables.run import extract
from f3rm.extract.tables.tables import Table
from f3rm.recipes.vissl import export_vissl
from f3rm.scene.paths import file_names
from f3rm.store.geometry import Prep
from f3rm.store.items import ImageItem
from f3rm.store.names import UnsafeNameError
from f3rm.store.spec import FeatureSpec
from tests.extract.tables.backbone import GridBackbone


class NamedSource:
    """Features of items with any names, without files."""

    taps = ("final",)

    def __init__(self, *names):
        self.items = ItemList(tuple(ImageItem(name, Path("none")) for name in names))
        self.indices = np.arange(len(names))

    def take(self, indices, tap=None):
        chosen = np.asarray(indices)
        names = tuple(self.items.names[index] for index in chosen.tolist())
        return Table(np.zeros((len(chosen), 2), np.float32), None, chosen, names)


def files_below(folder):
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*.npy"))


def test_a_dataset_with_photographs_elsewhere_is_exported_inside_the_folder(tmp_path, write_images):
    """transforms.json may name ../images/x.png, which is read; its file stays below --out."""
    write_images(["images/0.png", "scene/images/1.png"], (28, 28), tmp_path)
    frames = [{"file_path": name} for name in ("../images/0.png", "images/1.png")]
    (tmp_path / "scene/transforms.json").write_text(json.dumps({"frames": frames}))
    spec = FeatureSpec(BackboneRef("grid", "grid", "none"), ("final",), Prep("exact", 32))
    store = extract(
        list_items(tmp_path / "scene"),
        spec,
        tmp_path / "results/out",
        load=GridBackbone.load,
        progress=False,
        device="cpu",
    )
    assert export_per_item(store, tmp_path / "results/files") == 2
    assert files_below(tmp_path / "results/files") == ["images/0.png.npy", "images/1.png.npy"]
    assert not (tmp_path / "results/images").exists()


@pytest.mark.parametrize("name", ["../../evil.png", "/tmp/../evil.png", "a/../../../evil.png"])
def test_no_item_is_written_elsewhere(tmp_path, name):
    out = tmp_path / "deep/down/out"
    export_per_item(NamedSource(name, "b.png"), out)
    assert len(files_below(out)) == len(files_below(tmp_path)) == 2


def test_links_and_collisions_are_refused_before_they_do_harm(tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    with pytest.raises(UnsafeNameError, match="both give"):
        export_per_item(NamedSource("a.png", "../a.png"), out)
    assert not files_below(out)
    (tmp_path / "elsewhere").mkdir()
    (out / "images").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(UnsafeNameError, match="a link on the way"):
        export_per_item(NamedSource("images/a.png"), out)
    assert not files_below(tmp_path / "elsewhere")
    target = tmp_path / "mine.npy"
    target.write_bytes(b"mine")
    (out / "b.png.npy").symlink_to(target)
    export_per_item(NamedSource("b.png"), out)
    assert target.read_bytes() == b"mine"


def test_layers_of_vissl_stay_in_the_folder(tmp_path, write_images):
    write_images(["0.png"], (28, 28), tmp_path / "images")
    spec = FeatureSpec(BackboneRef("grid", "grid", "none"), ("final", "final|mean"))
    options = {"load": GridBackbone.load, "progress": False, "device": "cpu"}
    store = extract(list_items(tmp_path / "images"), spec, tmp_path / "out", **options)
    names = {"final": "x/../../../up", "final|mean": "res4"}
    files = export_vissl(store, tmp_path / "vissl/here", layers=names)
    assert {path.parent for path in files} == {tmp_path / "vissl/here"}
    with pytest.raises(UnsafeNameError, match="Layers must give different files"):
        export_vissl(store, tmp_path / "vissl", layers={"final": "a/b", "final|mean": "a\\b"})


def test_pictures_of_views_have_names_without_folders():
    assert file_names(("images/a.png", "images/b.png")) == ("a", "b")
    assert file_names(("left/a.png", "../right/a.png")) == ("left_a", "right_a")
    assert file_names(("a\x1b[2J.png",)) == ("a_[2J",)
    assert all("/" not in name and "\\" not in name for name in file_names(("C:\\x\\..\\y.png",)))
    assert len(set(file_names(("a_b/c.png", "a/b_c.png", "d/c.png", "e/b_c.png")))) == 4
    long = panel_name("images/" + "x" * 250 + ".png", "red mug " * 50)
    assert len(long.encode()) <= 204
    assert "/" not in panel_name("images/..", "../../up")
