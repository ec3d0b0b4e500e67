"""Heads of several scales: each prompt is answered by the one where it scores highest."""

from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from f3rm.errors import BackboneRef, FeatureTypeError, HeadSpec
from f3rm.language.active_query import DisplaySettings, Example, Words, active_query
from f3rm.language.heads import choose_head, scales_of, translated
from f3rm.language.questions import Questioner
from f3rm.language.relevancy import (
    ScaledQuery,
    best_scales,
    make_query,
    similarity_from_hidden,
    to_hidden,
)
from f3rm.language.text_encoder import QueryText
from f3rm.language.text_map import TextMap
from f3rm.store.spec import resolve_feature_type

CHANNELS, HIDDEN = 9, 6
TINYCLIP = BackboneRef("clip", "tinyclip", "builtin:tinyclip")


@dataclass
class _Head:
    spec: HeadSpec
    weight: Tensor


def _heads(*names, backbone=TINYCLIP, channels=CHANNELS):
    torch.manual_seed(len(names))
    return {
        name: _Head(HeadSpec(name, channels, True, backbone), torch.randn(channels, HIDDEN))
        for name in names
    }


def test_each_prompt_takes_the_scale_of_its_highest_score():
    query = make_query(torch.randn(20, CHANNELS), torch.randn(3, CHANNELS))
    hidden = torch.randn(2, 15, HIDDEN)
    scales = [to_hidden(query, torch.randn(CHANNELS, HIDDEN)) for _ in range(3)]
    every = torch.stack([similarity_from_hidden(hidden, each) for each in scales])
    chosen = best_scales(scales, lambda: hidden)
    assert isinstance(chosen, ScaledQuery)
    assert set(chosen.chosen) == {0, 1, 2}  # 20 prompts: each scale is the best of some
    scores = similarity_from_hidden(hidden, chosen)
    torch.testing.assert_close(scores.amax((0, 1)), every.amax((0, 1, 2)))
    for prompt, scale in enumerate(chosen.chosen):
        assert torch.equal(scores[..., prompt], every[scale, ..., prompt])
    elsewhere = torch.randn(7, HIDDEN)  # the choice is kept, other vectors are scored by it
    assert torch.equal(
        similarity_from_hidden(elsewhere, chosen)[:, 4],
        similarity_from_hidden(elsewhere, scales[chosen.chosen[4]])[:, 4],
    )


def test_one_scale_is_asked_as_before():
    scales = [to_hidden(make_query(torch.randn(1, 4)), torch.randn(4, 2)) for _ in range(2)]
    assert best_scales(scales[:1], lambda: pytest.fail("nothing to compare")) is scales[0]
    assert best_scales(scales, None) is scales[0]
    nothing = best_scales(scales, lambda: torch.zeros(0, 2))
    assert similarity_from_hidden(torch.zeros(0, 2), nothing).shape == (0, 1)


def test_heads_of_one_model_answer_together_unless_one_is_named():
    heads = _heads("tinyclip-50", "tinyclip") | _heads("clip", backbone=BackboneRef("clip", "", ""))
    first = choose_head(heads, None)
    assert first is not None
    assert [head.spec.name for head in scales_of(heads, first, None)] == ["tinyclip-50", "tinyclip"]
    assert scales_of(heads, heads["tinyclip"].spec, "tinyclip") == (heads["tinyclip"],)
    language = TextMap({"linear.weight": torch.ones(3, CHANNELS)}, TINYCLIP)
    spoken = translated(heads, language)
    first = choose_head(spoken, None)
    assert first is not None
    assert scales_of(spoken, first, None) == (spoken["tinyclip-50"],)


def test_a_question_in_words_is_answered_by_the_best_scale_of_each_phrase():
    heads = _heads("tinyclip-50", "tinyclip", "tinyclip-200", channels=128)
    hidden = torch.randn(40, HIDDEN)
    questioner = Questioner(heads, lambda: hidden)
    alone = {name: questioner.ask("red mug or blue bowl", head=name) for name in heads}
    together = questioner.ask("red mug or blue bowl")
    highest = torch.stack(
        [similarity_from_hidden(hidden, each.query).amax(0) for each in alone.values()]
    )
    best = similarity_from_hidden(hidden, together.query).amax(0)
    torch.testing.assert_close(best, highest.amax(0))
    assert together.scores(hidden).shape == (40,)
    assert Questioner(heads).ask("red mug").query.prompts.shape == (HIDDEN, 1)  # no scene: one head


def test_a_picture_chooses_scales_for_words_and_not_for_examples():
    heads = _heads("small", "large")
    weights = {name: head.weight for name, head in heads.items()}
    positives = torch.randn(2, CHANNELS)
    words = Words(QueryText("a, b", "", 0.1), ("a", "b"), positives, positives[:0], (True, True))
    example = Example("point 1", is_positive=True, features={"small": torch.randn(CHANNELS)})
    settings = DisplaySettings(several="each alone")
    hidden = torch.randn(5, 4, HIDDEN)
    both = active_query("small", words, [example], None, settings, ("small", "large"))
    alone = {name: active_query(name, words, [example], None, settings) for name in heads}
    assert both is not None
    scores = both.scores(hidden, weights)
    single = {name: query.scores(hidden, weights) for name, query in alone.items() if query}
    for prompt in (0, 1):
        best = max(single.values(), key=lambda each: float(each[..., prompt].max()))
        torch.testing.assert_close(scores[..., prompt], best[..., prompt])
    torch.testing.assert_close(scores[..., 2], single["small"][..., 2])


def test_a_pyramid_is_a_type_per_scale_and_scale_one_keeps_its_cache():
    specs = resolve_feature_type("DINO+TINYCLIP[pyramid=0.5,1,2]", weights=["TINYCLIP=else"])
    assert [spec.name for spec in specs] == ["dino", "tinyclip-50", "tinyclip", "tinyclip-200"]
    assert [spec.prep.scales for spec in specs[1:]] == [(0.5,), (1.0,), (2.0,)]
    assert {spec.backbone.weights for spec in specs[1:]} == {"else"}
    (plain,) = resolve_feature_type("TINYCLIP", weights=["TINYCLIP=else"])
    assert specs[2] == plain
    with pytest.raises(FeatureTypeError, match="pyramid must have different factors"):
        resolve_feature_type("CLIP[pyramid=1,1]")
