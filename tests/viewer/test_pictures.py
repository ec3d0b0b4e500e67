from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from f3rm.backbones.registry import load_backbone
from f3rm.colours.palette import PALETTE, composite
from f3rm.errors import BackboneRef, F3rmError
from f3rm.language.active_query import ActiveQuery, DisplaySettings, Example, Words, active_query
from f3rm.language.image_encoder import ImageEncoder, parse_crop
from f3rm.language.relevancy import make_query, similarity
from f3rm.language.text_encoder import QueryText
from f3rm.language.text_map import TextMap
from f3rm.viewer.pictures import Drawn, draw, legend
from f3rm.viewer.saved_queries import NamedQuery, QueryFile, QueryFileError
from tests.backbones import random_clip as clip
from tests.nerf_fixtures import head

WEIGHT = torch.randn(12, 16, generator=torch.Generator().manual_seed(2))
HIDDEN = torch.rand(9, 13, 16, generator=torch.Generator().manual_seed(3))
RGB = torch.rand(9, 13, 3, generator=torch.Generator().manual_seed(4))


def _words(*positives, negatives=1):
    labels = tuple(positives)
    generator = torch.Generator().manual_seed(5)
    vectors = torch.randn(len(labels) + negatives, 12, generator=generator)
    text = QueryText(", ".join(labels), "object", 0.1)
    known = tuple("fox" not in label for label in labels)
    return Words(text, labels, vectors[: len(labels)], vectors[len(labels) :], known)


def _asked(*positives, negatives=1, **settings):
    words = _words(*positives, negatives=negatives)
    asked = active_query("clip", words, [], None, DisplaySettings(**settings))
    assert asked is not None
    return asked


def test_scores_equal_those_of_the_full_channels():
    asked = _asked("mug", "cup", several="each alone", negatives=3)
    scores = asked.scores(HIDDEN, {"clip": WEIGHT})
    (query,) = asked.queries
    assert len(query.prompts) == 2
    torch.testing.assert_close(scores, similarity(HIDDEN @ WEIGHT.T, query), atol=1e-5, rtol=0)


def test_words_are_contrasted_with_the_mean_by_the_scenes_rule_and_examples_are_not():
    words, mean = _words("mug"), torch.randn(12) / 9
    example = Example("point 1", True, {"clip": torch.randn(12)})
    settings = DisplaySettings(rule="scene")
    asked = active_query("clip", words, [example], mean, settings, is_negative=False)
    assert asked is not None
    expected = [
        similarity(HIDDEN @ WEIGHT.T, make_query(words.positives, words.negatives, mean=mean)),
        similarity(HIDDEN @ WEIGHT.T, make_query(example.features["clip"][None])),
    ]
    scores = asked.scores(HIDDEN, {"clip": WEIGHT})
    torch.testing.assert_close(scores, torch.cat(expected, dim=-1), atol=1e-5, rtol=0)


def test_each_positive_has_its_output_and_all_have_one():
    asked = _asked("mug", "cup", several="each alone")
    scores = asked.scores(HIDDEN, {"clip": WEIGHT})
    images = draw(scores, asked, RGB).images
    assert list(images) == ["similarity", "similarity_1", "similarity_2", "similarity_composite"]
    both = torch.maximum(images["similarity_1"], images["similarity_2"])
    assert torch.equal(images["similarity"], both)
    assert images["similarity"].shape == (9, 13, 1)


def test_scores_are_not_stretched_to_the_picture():
    scores = torch.tensor([[0.40], [0.42]])
    shown = draw(scores, _asked("mug", coloured=True), None).images["similarity"]
    assert shown.shape == (2, 3)
    assert float((shown[0] - shown[1]).abs().max()) < 0.1
    wide = draw(scores, _asked("mug", coloured=True, low=0.4, high=0.42), None)
    assert float((wide.images["similarity"][0] - wide.images["similarity"][1]).abs().max()) > 0.3


def test_a_composite_colours_what_is_found_and_dims_the_rest():
    scores = torch.tensor([[0.9, 0.2], [0.6, 0.8], [0.1, 0.1]])
    rgb = torch.full((3, 3), 0.5)
    shown = composite(rgb, scores, (0.5, 0.5))
    colours = torch.tensor(PALETTE[:2]) / 255
    torch.testing.assert_close(shown[:2], 0.35 * rgb[:2] + 0.65 * colours)
    assert shown[2].unique().numel() == 1
    assert float(shown[2].max()) < 0.5
    nothing = composite(rgb, scores, (float("inf"), float("inf")))
    assert float(nothing.std(dim=-1).max()) < 1e-6


def test_the_threshold_is_the_persons_or_the_pictures():
    scores = torch.cat((torch.full((90, 1), 0.3), torch.full((10, 1), 0.9)))
    rgb = torch.rand(100, 3)
    assert draw(scores, _asked("mug", threshold=0.4), rgb).thresholds == (0.4,)
    (automatic,) = draw(scores, _asked("mug"), rgb).thresholds
    assert 0.5 <= automatic < 0.9
    assert draw(scores.clamp_max(0.5), _asked("mug"), rgb).thresholds == (float("inf"),)


def test_a_legend_names_every_colour_and_threshold():
    asked = _asked("mug {a}", "cup", several="each alone")
    text = legend(asked, Drawn({}, (0.625, float("inf")), ("found", "absent")))
    assert "1. mug &#123;a&#125;: from 0.62 (automatic)" in text
    assert "2. cup: not found" in text
    assert "rgb(86, 180, 233)" in text
    assert "relevancy" in text
    cosine = _asked("mug", score="cosine")
    assert "Scale of cosine" in legend(cosine, Drawn({}, (0.5,), ("found",)))


def test_a_legend_says_where_the_rule_of_the_scene_is_not_known():
    language = TextMap({"linear.weight": torch.eye(12)}, BackboneRef("clip", "", ""))
    for text_map in (None, language):
        words = replace(_words("mug"), text_map=text_map)
        asked = active_query("clip", words, [], torch.ones(12), DisplaySettings(rule="scene"))
        assert asked is not None
        assert (asked.queries[0].contrast is None) == (text_map is not None)
        assert ("scored by lerf" in legend(asked, Drawn({}, (), ()))) == (text_map is not None)


def test_a_legend_says_how_certain_each_prompt_is():
    columns = [[0.9, 0.3], [0.58, 0.3], [0.5, 0.3], [0.9, 0.3], [0.3, 0.2]]
    scores = torch.tensor(columns).T
    names = ("mug", "cup", "bowl", "fox", "box")
    asked = _asked(*names, several="each alone")
    drawn = draw(scores, asked, torch.rand(2, 3))
    assert drawn.certainties == ("found", "uncertain", "uncertain", "unknown word", "absent")
    lines = legend(asked, drawn).split("  \n")
    ends = ["(automatic)", "(automatic)", "bowl: uncertain", "fox: unknown word", "not found"]
    assert all(line.endswith(end) for line, end in zip(lines[:5], ends, strict=True))
    assert "cup: uncertain, from 0." in lines[1]
    yours = _asked(*names, several="each alone", threshold=0.55)
    drawn = draw(scores, yours, torch.rand(2, 3))
    assert drawn.thresholds == (0.55,) * 5  # who says so sees it, whatever it means
    assert drawn.certainties == ("found", "found", "absent", "unknown word", "absent")


def test_an_average_with_an_unknown_word_is_unknown():
    assert _asked("mug", "red fox").is_known == (False,)
    assert _asked("mug", "red fox", several="each alone").is_known == (True, False)


def test_words_and_examples_are_told_from_negatives_of_their_own_kind():
    vectors = torch.eye(12)
    points = [
        Example("point 1", True, {"clip": vectors[0]}),
        Example("point 2", False, {"clip": vectors[1]}),
        Example("elsewhere", True, {"dino": torch.ones(6)}),
    ]
    asked = active_query("clip", _words("mug"), points, vectors[2], DisplaySettings())
    assert asked is not None
    assert asked.labels == ("mug", "point 1")
    assert [len(query.negatives) for query in asked.queries] == [1, 2]
    torch.testing.assert_close(asked.queries[1].negatives, vectors[1:3])
    assert active_query("clip", None, points[1:], None, DisplaySettings()) is None


def test_no_more_queries_than_colours():
    labels = [f"thing {number}" for number in range(20)]
    asked = _asked(*labels, several="each alone")
    assert len(asked.labels) == len(asked.queries[0].prompts) == len(PALETTE)
    assert len(draw(asked.scores(HIDDEN, {"clip": WEIGHT}), asked, RGB).thresholds) == len(PALETTE)


def test_an_image_and_its_crop_are_the_mean_of_their_patch_features(tmp_path):
    folder = clip.write_random_checkpoint(tmp_path / "clip", layers=2, image_size=28)
    spec = head("clip", 32)
    spec = type(spec)("clip", 32, True, type(spec.backbone)("clip", "small", str(folder)))
    pixels = np.random.default_rng(0).integers(0, 255, (60, 90, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "whole.png")
    Image.fromarray(pixels[10:40, 20:70]).save(tmp_path / "part.png")
    encoder = ImageEncoder(spec)
    part = encoder.encode(tmp_path / "part.png", None)
    assert part.shape == (32,)
    crop = encoder.encode(tmp_path / "whole.png", parse_crop("20, 10, 70, 40"))
    torch.testing.assert_close(crop, part)
    backbone = load_backbone(spec.backbone, towers=("image",))
    assert backbone.channels == 32
    with pytest.raises(F3rmError, match="Crop must be inside the image of 90 x 60"):
        encoder.encode(tmp_path / "whole.png", (0, 0, 91, 60))
    with pytest.raises(F3rmError, match="complete image"):
        encoder.encode(tmp_path / "missing.png", None)


def test_a_crop_is_four_numbers_or_nothing():
    assert parse_crop("  ") is None
    assert parse_crop("1 2,3, 4") == (1, 2, 3, 4)
    for text in ("1 2 3", "a b c d", "1 2 3 4 5"):
        with pytest.raises(F3rmError, match="four whole numbers"):
            parse_crop(text)


QUERY = NamedQuery(
    QueryText("mug 🦊", "", 0.2),
    canonical=False,
    head="clip",
    settings=DisplaySettings("each alone", "cosine", "scene", threshold=0.3, low=-1.0),
    examples=(Example("point 1", False, {"clip": torch.tensor([0.25, -1.5])}),),
)


def test_named_queries_come_back_as_they_were(tmp_path):
    file = QueryFile(tmp_path)
    assert file.read() == {}
    file.save(" mugs ", QUERY)
    file.save("others", QUERY)
    (back,) = {name: query for name, query in file.read().items() if name == "mugs"}.values()
    assert (back.text, back.canonical, back.head, back.settings) == (
        QUERY.text,
        QUERY.canonical,
        QUERY.head,
        QUERY.settings,
    )
    assert torch.equal(back.examples[0].features["clip"], QUERY.examples[0].features["clip"])
    file.delete("mugs")
    file.delete("mugs")
    assert list(file.read()) == ["others"]
    assert [path.name for path in tmp_path.iterdir()] == ["f3rm_queries.json"]


@pytest.mark.parametrize(
    "content",
    [
        "{",
        "[]",
        '{"version": 2, "queries": {}}',
        '{"version": 1}',
        '{"version": 1, "queries": {"a": {}}}',
        '{"version": 1, "queries": {"a": 3}}',
    ],
)
def test_a_damaged_file_is_refused_and_left_alone(tmp_path, content):
    file = QueryFile(tmp_path)
    file.path.write_text(content)
    with pytest.raises(QueryFileError, match="is not a file of saved queries"):
        file.read()
    with pytest.raises(QueryFileError):
        file.save("a", QUERY)
    assert file.path.read_text() == content


def test_a_query_needs_a_name_and_a_place(tmp_path):
    with pytest.raises(QueryFileError, match="needs a name"):
        QueryFile(tmp_path).save("  ", QUERY)
    with pytest.raises(QueryFileError, match=r"was not saved.*writable"):
        QueryFile(tmp_path / "missing").save("a", QUERY)


def test_a_query_of_unknown_settings_is_refused(tmp_path):
    file = QueryFile(tmp_path)
    file.save("a", QUERY)
    file.path.write_text(file.path.read_text().replace('"each alone"', '"sorted"'))
    with pytest.raises(QueryFileError, match="sorted"):
        file.read()


def test_what_is_asked_is_a_value():
    asked = _asked("mug")
    assert isinstance(asked, ActiveQuery)
    with pytest.raises(AttributeError):
        asked.head = "dino"  # pyright: ignore[reportAttributeAccessIssue]
    assert make_query(torch.eye(3)[:1]).temperature == 0.1
