"""A whole evaluation of small runs: the numbers that are there, those that are not, and why."""

import json
import math
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from f3rm.errors import DeviceError, F3rmError
from f3rm.evaluation.evaluate import evaluate_run, nerfacto_psnr
from f3rm.evaluation.predictions import field_scores, psnr, render_view, teacher_scores
from f3rm.evaluation.report import HEAD_NUMBERS
from f3rm.evaluation.vocabulary import Speaker, open_language
from f3rm.language.heads import choose_head
from f3rm.language.relevancy import make_query, similarity, similarity_from_hidden, to_hidden
from f3rm.language.text_encoder import TextEncoder
from f3rm.scene.casting import hidden_of
from f3rm.scene.run_loading import RunError, check_same_views, field_model, load_run
from f3rm.scene.source import FieldSource
from f3rm.scripts.cli import main
from f3rm.synthetic.truth import SceneTruth
from tests.html_page import Page

CPU = torch.device("cpu")
ANSWERS = {
    "localisation",
    "localisation_mask",
    "miou",
    "miou_minmax",
    "miou_argmax",
    "miou_boundary",
    "average_precision",
    "present_max_relevancy",
    "absent_max_relevancy",
    "absent_found",
    "presence_auroc",
    "presence_auroc_scene",
}
POINTS = {"miou_ratio", "point_accuracy", "point_accuracy_objects", "point_iou"}
FINDING = {
    "find_box_iou",
    "find_box_iou_ceiling",
    "find_matched_iou",
    "find_visible_iou",
    "find_centre_error",
    "find_recall",
    "find_precision",
    "not_found_precision",
    "not_found_recall",
}
KEYS = (
    ANSWERS
    | FINDING
    | {f"teacher_{name}" for name in ANSWERS}
    | POINTS
    | set(HEAD_NUMBERS)
    | {"psnr", "nerfacto_psnr", "seconds", "pairs", "intervals", "certainty", "absent_table"}
    | {"queries", "absent", "views", "heads"}
    | {"versions", "settings", "run", "dataset", "notes"}
)


@pytest.fixture(scope="module")
def found(runs, tmp_path_factory):
    folder = tmp_path_factory.mktemp("found")
    arguments = ["--json", "numbers/eval.json", "--pictures", "pictures", "--device", "cpu"]
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert main(["eval", str(runs.config), "--nerfacto", str(runs.plain), *arguments]) == 0
    return folder


@pytest.fixture(scope="module")
def numbers(found):
    return json.loads((found / "numbers" / "eval.json").read_text())


@pytest.fixture(scope="module")
def run(runs):
    return load_run(runs.config, device=CPU)


def test_the_json_has_every_number(numbers):
    assert set(numbers) == KEYS
    missing = [name for name, value in numbers.items() if value is None]
    # There is no mean over nothing: a teacher that finds nothing, a run of six steps in which
    # nothing is found, or everything.
    explained = {
        "teacher_miou": {"miou_ratio"},
        "find_recall": {"find_centre_error", "find_matched_iou", "find_precision"},
        "not_found_recall": {"not_found_precision"},
    }
    assert set(missing) <= set[str]().union(
        *(names for zero, names in explained.items() if numbers[zero] == 0)
    )
    assert numbers["versions"]["torch"] == torch.__version__
    assert numbers["settings"]["canonical_phrases"] == ["object", "things", "stuff", "texture"]
    assert numbers["settings"]["queries_head"] == "clip"
    assert numbers["dataset"]["kind"] == "tabletop-distorted"
    assert len(numbers["dataset"]["held_out_views"]) == 2
    assert numbers["run"]["step"] == 5
    assert numbers["notes"] == []


def test_numbers_lie_where_they_must(numbers):
    for name in ANSWERS - {"present_max_relevancy", "absent_max_relevancy"}:
        for key in (name, f"teacher_{name}"):
            assert 0 <= numbers[key] <= 1
    for name, value in {name: numbers[name] for name in HEAD_NUMBERS}.items():
        assert -1 <= value <= 1 or name == "feature_cosine_ratio"
        of_heads = [numbers["heads"][head][name] for head in ("dino", "clip")]
        assert value == pytest.approx(np.mean(of_heads))
    shares = [row["miou"] for row in numbers["queries"] if row["views"]]
    assert numbers["miou"] == pytest.approx(np.mean(shares))
    for name, interval in numbers["intervals"].items():
        if numbers[name] is None:
            assert (interval["low"], interval["count"]) == (None, 0)
            continue
        value = numbers[name]["mean"] if isinstance(numbers[name], dict) else numbers[name]
        assert interval["low"] <= value <= interval["high"], name
    assert numbers["pairs"] == numbers["intervals"]["localisation"]["count"]


def test_every_prompt_is_answered_with_a_certainty(numbers):
    counts = numbers["certainty"]
    assert sum(counts["present"].values()) == len(numbers["queries"])
    asked = [row["kind"] for row in numbers["absent"]]
    assert {kind: sum(row.values()) for kind, row in counts.items() if kind != "present"} == {
        kind: asked.count(kind) for kind in set(asked)
    }
    assert sum(row["prompts"] for row in numbers["absent_table"]) == len(asked)


def test_boxes_around_true_points_overlap_more_than_found_ones(numbers):
    ceilings = [ceiling for row in numbers["queries"] for ceiling in row["box_iou_ceilings"]]
    assert numbers["find_box_iou_ceiling"] == pytest.approx(np.mean(ceilings))
    assert numbers["find_box_iou"] < numbers["find_box_iou_ceiling"] < 1


def test_psnr_and_cosines_are_their_plain_formulas(numbers, run):
    measured, cosines = [], []
    for index in range(2):
        camera, batch = run.picture(index)
        outputs = render_view(FieldSource(run), camera)
        measured.append(psnr(run.model, outputs, batch["image"]))
        mse = (outputs["rgb"] - batch["image"][..., :3]).square().mean()
        assert measured[-1] == pytest.approx(-10 * math.log10(mse), abs=1e-4)
        head = field_model(run).feature_field.head("clip")
        store = run.stores["clip"]
        row = store.index(run.held_out.names[index])
        y, x = torch.meshgrid(torch.arange(36), torch.arange(48), indexing="ij")
        xy = torch.stack((x, y), dim=-1).reshape(-1, 2).float()
        target = store.gather(torch.full((len(xy),), row), xy, mode="bilinear")
        rendered = head(hidden_of(outputs).reshape(len(xy), -1))
        cosines.append(torch.cosine_similarity(rendered, target).mean().item())
    assert numbers["psnr"] == pytest.approx(np.mean(measured), abs=1e-4)
    assert numbers["heads"]["clip"]["feature_cosine_bilinear"] == pytest.approx(
        np.mean(cosines), abs=1e-5
    )


def test_pictures_of_every_pair(found, numbers):
    files = sorted(path.name for path in (found / "pictures").iterdir())
    pairs = sum(row["views"] for row in numbers["queries"])
    assert len(files) == pairs + 2
    assert "index.html" in files
    page = Page((found / "pictures" / "index.html").read_text(encoding="utf-8"))
    assert len(page.images) == 2 * (3 + 5)  # two views: photograph, render, PCA, five answers
    assert "overview.png" in files
    shown = next(row for row in numbers["queries"] if row["views"])
    words = shown["text"].replace(" ", "_")
    assert any(name.startswith("frame_000") and name.endswith(f"_{words}.png") for name in files)
    with Image.open(
        found / "pictures" / next(name for name in files if name.startswith("frame_"))
    ) as panel:
        assert panel.size[0] == 5 * (48 + 2)


def test_maps_are_what_the_similarity_of_each_pixel_is(run, runs):
    model, truth = field_model(run), SceneTruth.read(runs.data)
    language = open_language(Speaker((model.feature_field.head("clip"),)), truth)
    texts = list(language.vocabulary.texts)
    spec = model.feature_field.head("clip").spec
    embeddings = TextEncoder(spec.backbone).encode([*texts, "object", "things", "stuff", "texture"])
    store = run.stores["clip"]
    row = store.index(run.held_out.names[0])
    maps = teacher_scores(store, row, language.query)
    hidden = hidden_of(render_view(FieldSource(run), run.picture(0)[0]))
    field = field_scores(hidden, language.hidden_query, (36, 48))
    for number in (0, len(texts) - 1):
        query = make_query(embeddings[number : number + 1], embeddings[len(texts) :])
        direct = store.gather(torch.tensor([row]), torch.tensor([[31.0, 7.0]]), mode="bilinear")
        assert maps[number, 7, 31] == pytest.approx(
            float(similarity(direct, query)[0, 0]), abs=1e-5
        )
        weight = model.feature_field.head("clip").weight.detach()
        expected = similarity_from_hidden(hidden, to_hidden(query, weight))[..., 0]
        np.testing.assert_allclose(field[number], expected.numpy(), atol=1e-5)
        by_features = similarity(hidden @ weight.T, query)[..., 0]
        np.testing.assert_allclose(field[number], by_features.numpy(), atol=1e-4)


def test_scores_of_a_smaller_render_are_interpolated_to_the_files_pixels(run, runs):
    model, truth = field_model(run), SceneTruth.read(runs.data)
    language = open_language(Speaker((model.feature_field.head("clip"),)), truth)
    hidden = torch.randn(18, 24, 16, generator=torch.Generator().manual_seed(0))
    small = field_scores(hidden, language.hidden_query, (18, 24))
    large = field_scores(hidden, language.hidden_query, (36, 48))
    weights = np.array([[9, 3], [3, 1]]) / 16
    blended = (small[:, :2, :2] * weights).sum(axis=(1, 2))
    np.testing.assert_allclose(large[:, 1, 1], blended, atol=1e-6)


def test_the_same_seed_gives_the_same_numbers_and_the_run_may_be_moved(runs, numbers, tmp_path):
    moved = tmp_path / "elsewhere"
    shutil.copytree(runs.config.parent, moved)
    again = evaluate_run(moved / "config.yml", device="cpu").to_dict()
    for name in KEYS - {"seconds", "nerfacto_psnr", "run"}:
        assert again[name] == numbers[name], name
    assert again["nerfacto_psnr"] is None


def test_the_scenes_rule_is_also_the_teachers(runs, numbers):
    found = evaluate_run(runs.config, rule="scene", device="cpu").to_dict()
    assert (found["settings"]["rule"], numbers["settings"]["rule"]) == ("scene", "lerf")
    own, other = (
        [
            best
            for row in (*rows["queries"], *rows["absent"])
            for name in ("max_relevancies", "teacher_max_relevancies")
            for best in row[name]
        ]
        for rows in (found, numbers)
    )
    assert own != other
    # The geometric mean of relevancy and a cosine, which is at most 1.
    assert (np.array(own) <= np.sqrt(other) + 1e-6).all()


def test_photographs_without_truth_give_cosine_and_psnr(runs, numbers, copied_scene):
    (copied_scene / "scene.json").unlink()
    pictures = copied_scene.parent / "pictures"
    result = evaluate_run(
        runs.config, data=copied_scene, pictures=pictures, queries=["a cup"], device="cpu"
    )
    assert [path.name for path in pictures.iterdir()] == ["index.html"]
    page = Page((pictures / "index.html").read_text(encoding="utf-8"))
    assert len(page.images) == 2 * (3 + 1)
    assert any(cell.startswith("“a cup”") for cell in page.cells)
    values = result.to_dict()
    assert values["psnr"] == pytest.approx(numbers["psnr"])
    assert values["feature_cosine_bilinear"] == pytest.approx(numbers["feature_cosine_bilinear"])
    unmeasured = ANSWERS | POINTS | {"feature_cosine_teacher_mean", "consistency"}
    assert all(values[name] is None for name in unmeasured)
    assert values["queries"] == []
    assert "No ground truth" in values["notes"][0]
    json.dumps(values, allow_nan=False)


def test_a_field_without_language_still_has_cosines(runs):
    values = evaluate_run(runs.silent, device="cpu").to_dict()
    assert values["feature_cosine_teacher_mean"] is not None
    assert values["miou"] is None
    assert values["point_accuracy"] is None
    assert "no language" in values["notes"][0]


def test_without_a_cache_nothing_is_said_about_the_teacher(runs, numbers, copied_scene):
    shutil.rmtree(copied_scene / "features")
    values = evaluate_run(runs.config, data=copied_scene, device="cpu").to_dict()
    assert values["miou"] == pytest.approx(numbers["miou"])
    assert values["point_accuracy"] == pytest.approx(numbers["point_accuracy"])
    assert values["teacher_miou"] is None
    assert values["feature_cosine_bilinear"] is None
    assert "feature cache" in values["notes"][0]


def test_a_head_can_be_chosen_if_it_has_words(runs, run):
    model = field_model(run)
    assert choose_head(model.heads, None) == model.feature_field.head("clip").spec
    with pytest.raises(F3rmError, match=r"The head 'dino' has no text tower.*'clip'"):
        choose_head(model.heads, "dino")
    with pytest.raises(F3rmError, match=r"no head 'nothing'.*clip"):
        choose_head(model.heads, "nothing")


def test_a_moved_dataset_is_asked_for(runs, tmp_path, capsys):
    config = _with_data(runs.config, tmp_path / "gone", tmp_path)
    assert main(["eval", str(config)]) == 1
    error = capsys.readouterr().err
    assert "No such dataset: " in error
    assert "give its new path with --data" in error
    assert load_run(config, data=runs.data, device=CPU).data == runs.data


def _with_data(config, place, folder):
    shutil.copytree(config.parent, folder / "run")
    content = yaml.load(config.read_text(), Loader=yaml.Loader)  # noqa: S506 - our own
    content.pipeline.datamanager.data = place
    (folder / "run" / "config.yml").write_text(yaml.dump(content))
    return folder / "run" / "config.yml"


def test_files_that_are_no_runs_are_refused(runs, tmp_path):
    for text in ("a: 1", "!!python/name:nothing.there", ":\n -"):
        (tmp_path / "config.yml").write_text(text)
        with pytest.raises(RunError, match=r"is not the config.yml of a run"):
            load_run(tmp_path / "config.yml", device=CPU)
    with pytest.raises(RunError, match=r"No such file: '.*none.yml'"):
        load_run(tmp_path / "none.yml", device=CPU)
    shutil.copy(runs.config, tmp_path / "config.yml")
    with pytest.raises(RunError, match="There is no checkpoint in"):
        load_run(tmp_path / "config.yml", device=CPU)
    with pytest.raises(RunError, match="without features"):
        evaluate_run(runs.plain, device="cpu")
    with pytest.raises(DeviceError):
        evaluate_run(runs.config, device="gpu")


def test_another_run_must_hold_out_the_same_photographs(run):
    other = replace(run, held_out=replace(run.held_out, names=("images/other.png",)))
    check_same_views(run, run)
    with pytest.raises(RunError, match=r"3 are held out by one only, e.g. images/frame_"):
        check_same_views(run, other)


def test_psnr_of_a_run_beside_itself_is_its_own(run, runs, numbers):
    assert nerfacto_psnr(run, runs.config, device=CPU) == pytest.approx(numbers["psnr"])


def test_a_broken_checkpoint_is_named(runs, tmp_path):
    shutil.copytree(runs.config.parent, tmp_path / "run")
    (checkpoint,) = (tmp_path / "run" / "nerfstudio_models").iterdir()
    checkpoint.write_bytes(checkpoint.read_bytes()[:1000])
    with pytest.raises(RunError, match="newest checkpoint"):
        load_run(tmp_path / "run" / "config.yml", device=CPU)


def test_an_unwritable_json_is_named(runs, numbers, tmp_path):
    (tmp_path / "file").write_text("")
    result = evaluate_run(runs.silent, device="cpu")
    with pytest.raises(F3rmError, match="Give another --json"):
        result.write_json(tmp_path / "file" / "eval.json")
    with pytest.raises(F3rmError, match="Give another --pictures"):
        evaluate_run(runs.config, pictures=tmp_path / "file" / "pictures", device="cpu")
