"""Languages: maps from features to texts score as the maps themselves, and files keep them."""

import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from torch.nn import functional

from f3rm.errors import BackboneRef, BackboneUnavailableError, HeadSpec
from f3rm.language.relevancy import (
    make_query,
    mean_unit_feature,
    similarity,
    similarity_from_hidden,
    to_hidden,
)
from f3rm.language.text_map import (
    TextMap,
    TextMapError,
    head_of_language,
    language_files,
    load_language,
)

TEXT = BackboneRef("siglip2", "google/siglip2-giant-opt-patch16-384", "folder")
CHANNELS, INNER, TEXTS, HIDDEN = 12, 20, 7, 5


class _Adaptor(nn.Module):
    """A RADIO adaptor as modules: torch computes what the map should."""

    def __init__(self, num_blocks, *, pre_norm):
        super().__init__()
        if pre_norm:
            self.pre_norm = nn.Sequential(nn.LayerNorm(CHANNELS), nn.GELU())
        self.fc1 = nn.Linear(CHANNELS, INNER)
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.LayerNorm(INNER), nn.GELU(), nn.Linear(INNER, INNER))
            for _ in range(num_blocks)
        )
        self.final = nn.Sequential(nn.LayerNorm(INNER), nn.GELU(), nn.Linear(INNER, TEXTS))
        for parameter in self.parameters():  # norms, too, are not the identity
            nn.init.normal_(parameter, 0.1, 0.5)

    def forward(self, values):
        values = self.fc1(self.pre_norm(values) if hasattr(self, "pre_norm") else values)
        for block in self.blocks:
            values = values + block(values)
        return self.final(values)


def _adaptor(num_blocks=2, *, pre_norm=False):
    torch.manual_seed(num_blocks)
    return _Adaptor(num_blocks, pre_norm=pre_norm).eval().requires_grad_(False)


def _map(kind):
    torch.manual_seed(3)
    if kind == "network":
        return TextMap(_adaptor().state_dict(), TEXT)
    tensors = {"linear.weight": torch.randn(TEXTS, CHANNELS)}
    return TextMap(
        tensors | ({"linear.bias": torch.randn(TEXTS)} if kind == "biased" else {}), TEXT
    )


@pytest.mark.parametrize("pre_norm", [False, True])
@pytest.mark.parametrize("num_blocks", [0, 1, 3])
def test_an_adaptor_computes_what_its_modules_compute(num_blocks, pre_norm):
    adaptor, features = _adaptor(num_blocks, pre_norm=pre_norm), torch.randn(2, 3, CHANNELS)
    made = TextMap(adaptor.state_dict(), TEXT)
    assert made.channels == CHANNELS
    assert made.matrix is None
    torch.testing.assert_close(made(features), adaptor(features), rtol=0, atol=1e-5)


@pytest.mark.parametrize("kind", ["network", "linear", "biased"])
@pytest.mark.parametrize("rule", ["cosine", "lerf", "scene"])
def test_composited_hidden_vectors_score_as_their_mapped_feature(kind, rule):
    text_map, weight = _map(kind), torch.randn(CHANNELS, HIDDEN)
    samples, weights = torch.randn(30, 6, HIDDEN), torch.rand(30, 6, 1)
    composited = (weights * samples).sum(1)
    feature = (weights * (samples @ weight.T)).sum(1)  # composited channel by channel
    prompts, negatives = torch.randn(3, TEXTS), torch.randn(0 if rule == "cosine" else 4, TEXTS)
    mean = mean_unit_feature(composited, weight, text_map) if rule == "scene" else None
    query = make_query(prompts, negatives, mean=mean, text_map=text_map)
    scores = similarity_from_hidden(composited.view(5, 6, HIDDEN), to_hidden(query, weight))
    assert scores.shape == (5, 6, 3)
    torch.testing.assert_close(scores.view(30, 3), similarity(feature, query), rtol=0, atol=1e-5)
    in_text_space = make_query(prompts, negatives, mean=mean)
    expected = similarity(text_map(feature), in_text_space)
    torch.testing.assert_close(scores.view(30, 3), expected, rtol=0, atol=1e-5)
    if rule == "scene":
        units = functional.normalize(text_map(feature), dim=-1)
        torch.testing.assert_close(mean, units.mean(0), rtol=0, atol=1e-5)


def test_many_vectors_are_mapped_a_batch_at_a_time(monkeypatch):
    monkeypatch.setattr("f3rm.language.relevancy._BATCH", 8)
    largest = []
    text_map, weight, hidden = (
        _map("network"),
        torch.randn(CHANNELS, HIDDEN),
        torch.randn(21, HIDDEN),
    )
    query = to_hidden(make_query(torch.randn(2, TEXTS), text_map=text_map), weight)
    monkeypatch.setattr(
        TextMap, "_linear", _watched(TextMap._linear, lambda values: largest.append(len(values)))
    )
    assert similarity_from_hidden(hidden, query).shape == (21, 2)
    assert similarity_from_hidden(hidden[:0], query).shape == (0, 2)
    assert max(largest) == 8


def _watched(method, watch):
    def called(self, layer, values):
        watch(values)
        return method(self, layer, values)

    return called


@pytest.mark.parametrize(
    "prefix", ["_heads.siglip2-g.", "radio_model.adaptors.siglip2-g.head_mlp."]
)
def test_radios_adaptors_are_read_by_name_and_kept_in_a_file(tmp_path, prefix):
    adaptor = _adaptor()
    state = {f"{prefix}{name}": tensor.half() for name, tensor in adaptor.state_dict().items()}
    state |= {
        "base_model.blocks.0.norm1.weight": torch.ones(3),
        "_heads.sam.fc1.bias": torch.ones(2),
    }
    save_file(state, tmp_path / "radio.safetensors")
    named = f"{TEXT.adapter}:{TEXT.model}"
    made = TextMap.of_radio(tmp_path / "radio.safetensors", "siglip2-g", text=named)
    assert made.text == BackboneRef(TEXT.adapter, TEXT.model, TEXT.model)
    made.save(tmp_path / "languages" / "siglip.safetensors")
    again = TextMap.load(tmp_path / "languages" / "siglip.safetensors")
    assert (again.name, again.text) == ("siglip", made.text)
    features = torch.randn(4, CHANNELS)
    assert torch.equal(again(features), made(features))
    torch.testing.assert_close(made(features), adaptor(features), rtol=0, atol=2e-2)
    with pytest.raises(TextMapError, match="has no adaptor 'clip'"):
        TextMap.of_radio(tmp_path / "radio.safetensors", "clip", text=named)


def test_a_run_knows_its_own_languages_and_those_beside_local_weights(tmp_path):
    weights, run = tmp_path / "radio", tmp_path / "run"
    for folder, name in ((weights, "siglip"), (run, "clip"), (weights, "clip")):
        _map("linear").save(folder / "languages" / f"{name}.safetensors")
    (weights / "model.safetensors").touch()
    spec = HeadSpec("radio", CHANNELS, False, BackboneRef("radio", "", str(weights)))
    others = HeadSpec("clip", CHANNELS, True, BackboneRef("clip", "a", "openai"))
    files = language_files(run, {"radio": spec, "clip": others})
    assert files == {
        "siglip": weights / "languages" / "siglip.safetensors",
        "clip": run / "languages" / "clip.safetensors",  # a run's own goes before
    }
    assert load_language("siglip", files).name == "siglip"
    assert load_language(files["clip"], {}).name == "clip"
    assert head_of_language(_map("linear"), {"clip": others, "radio": spec}) == "radio"
    assert head_of_language(_map("linear"), {"clip": others}) == "clip"
    with pytest.raises(TextMapError, match=r"no language 'siglop'; did you mean siglip\?"):
        load_language("siglop", files)
    with pytest.raises(
        TextMapError, match=r"takes features of 12 channels; .* dino \(3 channels\)"
    ):
        head_of_language(_map("linear"), {"dino": HeadSpec("dino", 3, False, spec.backbone)})


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"linear.weight": torch.ones(7, 12)}, "the layers"),
        ({"fc1.weight": torch.ones(20, 12, 1)}, "no weight of two axes"),
        ({"blocks.0.2.weight": torch.ones(20, 19)}, "do not fit each other"),
        ({"fc2.weight": torch.ones(3)}, "no layer 'fc2'"),
        ({"final.2.bias": torch.full((7,), torch.nan)}, "NaN or infinity"),
    ],
)
def test_what_is_no_such_map_is_refused(change, said):
    with pytest.raises(TextMapError, match=said):
        TextMap(_adaptor().state_dict() | change, TEXT, "broken")


def test_a_file_without_text_tower_or_of_something_else_is_refused(tmp_path):
    save_file({"linear.weight": torch.ones(7, 12)}, tmp_path / "bare.safetensors")
    with pytest.raises(TextMapError, match=r"names no text tower\. Write it with TextMap.save"):
        TextMap.load(tmp_path / "bare.safetensors")
    (tmp_path / "torn.safetensors").write_bytes(b"\x80\x04not a tensor file")
    with pytest.raises(BackboneUnavailableError, match="not a readable weight file"):
        TextMap.load(tmp_path / "torn.safetensors")
