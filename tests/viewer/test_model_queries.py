"""Queries, PCA and clicks as the model renders them, without a viewer or with one that is none."""

import copy

import pytest
import torch

from f3rm.camera_render import CameraOutputs, FrameCache, RenderRequest
from f3rm.errors import BackboneRef, BackboneUnavailableError, F3rmError
from f3rm.language.relevancy import CANONICAL_NEGATIVES, make_query, similarity
from f3rm.language.text_map import TextMap
from f3rm.viewer import controls, pictures
from tests.nerf_fixtures import camera, feature_model, head, rays
from tests.viewer.viewer_fixtures import FakeViewer, embedding, install_towers, press, wait

# Nerfstudio's viewer looks at every property of a model, also at torchmetrics' old ones.
pytestmark = pytest.mark.filterwarnings("ignore:This property will be removed:DeprecationWarning")


@pytest.fixture
def towers(monkeypatch):
    monkeypatch.setattr("f3rm.viewer.controls._DEBOUNCE_SECONDS", 0.05)
    return install_towers(monkeypatch, channels=12)


def _lively(*specs, **config):
    model = feature_model(*specs, **config).eval()
    torch.nn.init.normal_(model.feature_field.trunk.grid.table)
    return model


def test_a_configured_query_renders_the_similarity_of_the_full_channels(towers):
    model = _lively(
        head("dino", 6, has_text=False), head("clip"), positives="red mug", negatives="object,stuff"
    )
    outputs = model.get_outputs_for_camera(camera())
    vectors = torch.stack([embedding(text, 12) for text in ("red mug", "object", "stuff")])
    expected = similarity(model.heads["clip"](outputs.hidden), make_query(vectors[:1], vectors[1:]))
    torch.testing.assert_close(outputs["similarity"], expected, atol=1e-5, rtol=0)
    assert outputs["similarity_composite"].shape == (9, 13, 3)
    batch = model(rays())
    assert "similarity" in batch
    assert "similarity_composite" not in batch  # its threshold is a whole picture's
    assert [tower.texts for tower in towers] == [[["red mug", "object", "stuff"]]]


def test_a_missing_text_encoder_leaves_the_other_outputs(monkeypatch, caplog):
    def unavailable(ref, **_):
        msg = "no text tower here"
        raise BackboneUnavailableError(msg)

    monkeypatch.setattr("f3rm.language.text_encoder.load_backbone", unavailable)
    model = feature_model(head(), positives="red mug").eval()
    outputs = model.get_outputs_for_camera(camera())
    assert "similarity" not in outputs
    assert "feature_pca" in outputs
    model.get_outputs_for_camera(camera())
    assert caplog.text.count("no text tower here") == 1


def test_two_models_do_not_share_queries_or_bases():
    first, second = feature_model(head()), feature_model(head())
    assert first.controls is not second.controls
    first.controls.pca_override["clip"] = first.heads["clip"].pca
    assert not second.controls.pca_override


def test_refreshed_pca_replaces_the_colours_and_not_the_saved_basis():
    model = _lively(head())
    before = model.get_outputs_for_camera(camera())["feature_pca"]
    saved = copy.deepcopy(model.heads["clip"].pca)
    model.controls.pca.a_refresh.cb_hook(model.controls.pca.a_refresh)
    refreshed = model.get_outputs_for_camera(camera())["feature_pca"]
    again = model.get_outputs_for_camera(camera())["feature_pca"]
    assert not torch.allclose(before, refreshed)
    torch.testing.assert_close(again, refreshed, atol=1e-6, rtol=0)
    assert torch.equal(saved.components, model.heads["clip"].pca.components)
    model.controls.pca.b_reset.cb_hook(model.controls.pca.b_reset)
    assert torch.equal(model.get_outputs_for_camera(camera())["feature_pca"], before)


def test_a_viewer_draws_a_known_view_again_without_rendering_it(tmp_path, towers, monkeypatch):
    model = _lively(head())
    viewer = FakeViewer(model, tmp_path)
    first = viewer.render(model, camera())
    assert torch.equal(first["similarity"], first["rgb"])  # there is no query yet
    rendered = []
    render_hidden = model._render_hidden
    monkeypatch.setattr(
        model, "_render_hidden", lambda *args: rendered.append(args) or render_hidden(*args)
    )
    model.controls.ask.a_positives.value = "mug"
    wait(lambda: model._active_query() is not None)
    again = viewer.render(model, camera())
    assert again["similarity"].shape == (9, 13, 3)  # colours on an absolute scale
    assert torch.equal(again["rgb"], first["rgb"])
    assert not rendered
    viewer.render(model, camera(height=10))
    assert rendered
    rendered.clear()
    model.train()(rays())  # training changes the scene
    rendered.clear()
    viewer.render(model.eval(), camera())
    assert rendered


def test_a_viewers_frame_costs_what_it_shows(tmp_path, towers, monkeypatch):
    model = _lively(head("dino", 6, has_text=False), head("clip"))
    viewer = FakeViewer(model, tmp_path)
    made = []
    for owner, name in (
        (model.feature_field, "hidden_in_cube"),
        (controls, "pca_colours_from_hidden"),
        (pictures, "composite"),
    ):
        plain = getattr(owner, name)
        spy = lambda *a, plain=plain, name=name: made.append(name) or plain(*a)  # noqa: E731
        monkeypatch.setattr(owner, name, spy)
    model.controls.ask.a_positives.value = "mug, cup"
    model.controls.look.a_several.value = "each alone"
    panel = viewer.control_panel
    wait(lambda: "similarity_2" in viewer.render(model, camera()))
    expected = {
        "rgb": [],
        "depth": [],
        "similarity": ["hidden_in_cube"],
        "similarity_2": [],  # of the view that is known by now
        "similarity_composite": ["composite"],
        "feature_pca_clip": ["pca_colours_from_hidden"],
        "rgb again": [],
    }
    model._frames.clear()
    alone = model.get_outputs_for_camera(camera())  # everything, as without a viewer
    for output, cost in expected.items():
        panel.output_render = output.split()[0]
        made.clear()
        frame = viewer.render(model, camera())
        # 117 pixels in chunks of 50 rays
        assert made == cost * (3 if cost == ["hidden_in_cube"] else 1), output
        assert frame.keys() == alone.keys()
        if not output.startswith("similarity"):
            torch.testing.assert_close(frame[panel.output_render], alone[panel.output_render])
    panel.split, panel.split_output_render = True, "feature_pca"
    made.clear()
    torch.testing.assert_close(viewer.render(model, camera())["feature_pca"], alone["feature_pca"])
    assert made == ["pca_colours_from_hidden"]


def test_frames_that_no_viewer_shows_are_not_kept(tmp_path, towers):
    model = _lively(head())
    model.get_outputs_for_camera(camera())
    assert model._frames.num_bytes == 0
    viewer = FakeViewer(model, tmp_path)
    model.get_outputs_for_camera(camera())  # as training evaluates a photograph
    assert model._frames.num_bytes == 0
    shown = viewer.render(model, camera())
    assert model._frames.num_bytes > shown.hidden.nbytes > 0


def test_kept_frames_are_bounded_in_bytes_and_the_newest_stays(monkeypatch):
    def frame(pixels):
        made = CameraOutputs(rgb=torch.zeros(pixels, 3))
        made.hidden = torch.zeros(pixels, 64)
        return made

    monkeypatch.setattr("f3rm.camera_render._KEPT_BYTES", 3 * frame(10).num_bytes - 1)
    assert frame(10).num_bytes == 10 * 67 * 4
    cache = FrameCache()
    for key in "abc":
        cache.put(key, frame(10))
    assert [cache.get(key) is None for key in "abc"] == [True, False, False]
    cache.put("d", frame(1))
    assert [cache.get(key) is None for key in "bcd"] == [False, False, False]
    cache.put("e", frame(1))
    assert [cache.get(key) is None for key in "bcde"] == [True, False, False, False]
    cache.put("large", frame(1000))
    assert cache.num_bytes == frame(1000).num_bytes
    cache.put("f", frame(1))
    assert cache.get("large") is None


def test_without_a_viewer_every_frame_is_rendered():
    model = _lively(head())
    first = model.get_outputs_for_camera(camera())["feature_pca"]
    torch.nn.init.normal_(model.feature_field.trunk.grid.table)
    assert not torch.equal(model.get_outputs_for_camera(camera())["feature_pca"], first)


def test_a_click_takes_the_feature_that_is_rendered_there(tmp_path, towers):
    model = _lively(head("dino", 6, has_text=False), head("clip")).train()
    model.eval()
    view = camera()
    bundle = view.generate_rays(camera_indices=0, keep_shape=True)
    rendered = model.get_outputs_for_camera(view, request=RenderRequest(features=True))
    row, column = 4, 7
    found = model._features_along(
        tuple(bundle.origins[row, column].tolist()),
        tuple((3 * bundle.directions[row, column]).tolist()),
    )
    for name, feature in found.items():
        expected = rendered[f"feature_{name}"][row, column]
        torch.testing.assert_close(feature, expected, atol=1e-5, rtol=1e-4)
    assert not model.training
    model.train()._features_along((0.0, 0.0, 0.0), (0.0, 0.0, -1.0))
    assert model.training


def test_a_click_beside_everything_is_refused():
    model = _lively(head())
    with torch.no_grad():
        for parameter in model.field.mlp_base.parameters():
            parameter.zero_()
    model.field.average_init_density = 0.0
    with pytest.raises(F3rmError, match="nothing where you clicked"):
        model._features_along((0.0, 0.0, 0.0), (0.0, 0.0, -1.0))


def test_buttons_are_pressed_without_a_camera(tmp_path, towers):
    model = _lively(head())
    viewer = FakeViewer(model, tmp_path)
    press(model.controls.pca.a_refresh)
    press(model.controls.pca.b_reset)
    assert [action.action for action in viewer.machine.actions][:2] == ["rerender", "rerender"]


def test_a_viewer_offers_a_head_in_each_language_of_the_run(tmp_path, monkeypatch):
    monkeypatch.setattr("f3rm.viewer.controls._DEBOUNCE_SECONDS", 0.05)
    install_towers(monkeypatch, channels=5)
    bias = torch.linspace(-1, 1, 5)
    language = TextMap(
        {"linear.weight": torch.randn(5, 6), "linear.bias": bias}, BackboneRef("siglip2", "a", "b")
    )
    language.save(tmp_path / "languages" / "siglip.safetensors")
    TextMap({"linear.weight": torch.ones(5, 99)}, language.text).save(
        tmp_path / "languages" / "of_another_head.safetensors"
    )
    model = _lively(head("dino", 6, has_text=False))
    FakeViewer(model, tmp_path)
    panel = model.controls.ask
    wait(lambda: "dino in siglip" in panel.d_head.options)
    assert panel.d_head.options == ["dino in siglip", "dino"]
    model.controls.look.b_score.value = "relevancy"
    panel.d_head.value = "dino in siglip"
    panel.a_positives.value = "red mug"
    wait(lambda: model._active_query() is not None)
    hidden = model.get_outputs_for_camera(camera(), request=RenderRequest(hidden=True)).hidden
    means = {"dino": model.heads["dino"].pca_mean}
    query = model.controls.active_query(means)
    vectors = torch.stack([embedding(text, 5) for text in ("red mug", *CANONICAL_NEGATIVES)])
    expected = similarity(
        language(model.heads["dino"](hidden)), make_query(vectors[:1], vectors[1:])
    )
    weights = {name: head.weight for name, head in model.heads.items()}
    scores = query.scores(hidden, weights)
    torch.testing.assert_close(scores, expected, atol=1e-5, rtol=0)
