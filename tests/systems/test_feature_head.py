"""The calls of the feature head's page, in its order, on a small field and a small CLIP."""

import json

import open_clip
import pytest
import torch
from torch.nn import functional

from f3rm.backbones.clip.backbone import ClipBackbone
from f3rm.camera_render import RenderRequest
from f3rm.errors import BackboneRef
from f3rm.f3rm_config import f3rm_method
from f3rm.feature_field import FeatureFieldHeadNames
from f3rm.features.clip_extract import get_patch_encodings
from f3rm.model import FeatureFieldModelConfig
from tests.nerf_fixtures import camera, feature_model, head, rays
from tests.systems.table import shows
from tests.viewer.viewer_fixtures import embedding, install_towers


def rendered(model):
    """The features of a batch of rays, their samples, and their weights."""
    seen = {}
    hook = model.renderer_expected_depth.register_forward_pre_hook(
        lambda module, args, kwargs: seen.update(kwargs), with_kwargs=True
    )
    torch.manual_seed(0)
    outputs = model(rays())
    hook.remove()
    return outputs, seen["ray_samples"], seen["weights"]


@shows("`ff_outputs[FeatureFieldHeadNames.FEATURE]`: (rays, samples, d)", "computed on demand")
@shows("`renderer_feature(features=ff_outputs[FeatureFieldHeadNames.FEATURE], weights=weights)`")
def test_features_of_samples_composite_to_those_of_rays():
    model = feature_model(head("clip", 12)).train()
    outputs, ray_samples, weights = rendered(model)
    ff_outputs = model.feature_field(ray_samples)
    assert list(ff_outputs) == [
        FeatureFieldHeadNames.HIDDEN
    ]  # nothing projects the samples unasked
    feature_samples = ff_outputs[FeatureFieldHeadNames.FEATURE]
    assert feature_samples.shape == (32, 8, 12)
    features = model.renderer_feature(features=feature_samples, weights=weights)
    torch.testing.assert_close(features, outputs["feature"], atol=1e-5, rtol=1e-5)
    assert ff_outputs[FeatureFieldHeadNames.FEATURE] is feature_samples
    with pytest.raises(KeyError, match="density"):
        ff_outputs["density"]


@shows("`f_feat: (x, y, z)`: the same features from every direction, no gradient into density")
def test_features_do_not_depend_on_the_direction():
    model = feature_model(head("clip", 12)).train()
    _, ray_samples, _ = rendered(model)
    turned = rendered(model)[1]
    turned.frustums.origins = ray_samples.frustums.get_positions()
    turned.frustums.directions = -ray_samples.frustums.directions
    turned.frustums.starts = turned.frustums.ends = torch.zeros_like(ray_samples.frustums.starts)
    feature = FeatureFieldHeadNames.FEATURE
    expected = model.feature_field(ray_samples)[feature]
    torch.testing.assert_close(model.feature_field(turned)[feature], expected, atol=1e-6, rtol=1e-5)
    model(rays())["feature"].sum().backward()
    assert all(not (p.grad is not None and p.grad.any()) for p in model.field.parameters())


@shows(
    "`feat_hash_config`: 12 levels of 8 features from 16 to 128, tables of 2^19, MLP 2 x 64",
    "options `--pipeline.model.feat-num-levels`, ...",
)
@shows("`use_pe`, `pe_n_freq` = 6", "`--pipeline.model.feat-use-pe`, `feat-pe-n-freq`")
def test_the_pages_sizes_are_the_defaults():
    config = f3rm_method.config.pipeline.model
    assert isinstance(config, FeatureFieldModelConfig)
    assert (config.feat_num_levels, config.feat_features_per_level) == (12, 8)
    assert (config.feat_start_res, config.feat_max_res) == (16, 128)
    assert (config.feat_log2_hashmap_size, config.feat_hidden_dim, config.feat_num_layers) == (
        19,
        64,
        2,
    )
    assert (config.feat_use_pe, config.feat_pe_n_freq, config.feat_loss_weight) == (True, 6, 1e-3)
    assert round(16 * (128 / 16) ** (1 / 11) ** 1, 2) == 19.33  # growth 1.208 per level
    assert 12 * 8 * 2**19 * 4 == 192 * 2**20


@shows("`get_patch_encodings(model, image_batch)`: (batch, patches, d)")
def test_patch_encodings_are_those_that_are_cached(clip_folder):
    config = json.loads((clip_folder / "open_clip_config.json").read_text())["model_cfg"]
    model = open_clip.CLIP(**config)
    open_clip.load_checkpoint(model, str(clip_folder / "open_clip_model.safetensors"))
    images = torch.randn(2, 3, 56, 70, generator=torch.Generator().manual_seed(0))
    found = get_patch_encodings(model.eval(), images)
    clip = ClipBackbone.load(BackboneRef("clip", "ViT-L-14-336-quickgelu", str(clip_folder)))
    assert found.shape == (2, 4 * 5, 32)
    torch.testing.assert_close(found.unflatten(1, (4, 5)), clip.encode_image(images))


@shows(
    "`feature_dino_loss`, `feature_clip_loss`: `feat_loss_weight * F.mse_loss(...)`",
    "`--pipeline.model.feat-loss-scale none`; else each is divided by its target's variance",
)
def test_losses_are_plain_errors_where_that_is_chosen():
    heads = head("dino", 6, has_text=False), head("clip", 12)
    for scale in ("none", "variance"):
        model = feature_model(*heads, feat_loss_scale=scale).train()
        outputs = model(rays())
        batch = {
            f"feature_{each.name}": torch.randn(32, each.channels) for each in heads
        } | {"image": torch.rand(32, 3)}  # fmt: skip
        loss_dict = model.get_loss_dict(outputs, batch, model.get_metrics_dict(outputs, batch))
        for name in ("dino", "clip"):
            error = functional.mse_loss(outputs[f"feature_{name}"], batch[f"feature_{name}"])
            by = model.heads[name].variance if scale == "variance" else 1
            torch.testing.assert_close(loss_dict[f"feature_{name}_loss"], 1e-3 * error / by)


@shows("`feature_pca` and `similarity` of `get_outputs_for_camera_ray_bundle`")
def test_a_view_shows_colours_and_similarity_of_the_features(monkeypatch):
    install_towers(monkeypatch, channels=12)
    model = feature_model(head("clip", 12), positives="red mug", negatives="object").eval()
    torch.nn.init.normal_(model.feature_field.trunk.grid.table)
    bundle = camera().generate_rays(camera_indices=0, keep_shape=True)
    view = model.get_outputs_for_camera_ray_bundle(bundle, RenderRequest(features=True))
    assert view["feature_pca"].shape == (9, 13, 3)
    clip_features = functional.normalize(view["feature"], dim=-1)
    sims = [clip_features @ embedding(text, 12) for text in ("red mug", "object")]
    torch.testing.assert_close(
        view["similarity"][..., 0], torch.softmax(torch.stack(sims) / 0.1, 0)[0], atol=1e-4, rtol=0
    )
