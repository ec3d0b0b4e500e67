import pytest
import torch
from nerfstudio.cameras.camera_optimizers import CameraOptimizerConfig
from nerfstudio.models.nerfacto import NerfactoModelConfig
from torch.nn import functional

from f3rm.camera_render import RGB_ONLY, CameraOutputs, RenderRequest, mean_cosine
from f3rm.colours.pca import pca_colours
from f3rm.compat import LazyLpips, lazy_lpips
from f3rm.networks.nerfacto_fast import use_fast_encodings
from f3rm.renderer import render_per_sample
from tests.nerf_fixtures import NERFACTO_SIZES, camera, feature_model, head, rays, scene_box


def _batch(model, num=32, seed=4):
    generator = torch.Generator().manual_seed(seed)
    batch = {"image": torch.rand(num, 3, generator=generator)}
    for name, module in model.heads.items():
        channels = module.spec.channels
        batch[model.key("feature", name)] = torch.randn(num, channels, generator=generator)
    return batch


def _train(model, batch, steps=3):
    groups = model.get_param_groups()
    optimisers = [torch.optim.Adam(params, lr=1e-2) for params in groups.values() if params]
    callbacks = model.get_training_callbacks(None)
    history = []
    model.train()
    for step in range(steps):
        torch.manual_seed(100 + step)
        for callback in callbacks:
            callback.func(step)
        outputs = model(rays())
        metrics = model.get_metrics_dict(outputs, batch)
        losses = model.get_loss_dict(outputs, batch, metrics)
        for optimiser in optimisers:
            optimiser.zero_grad()
        torch.stack(list(losses.values())).sum().backward()
        for optimiser in optimisers:
            optimiser.step()
        history.append({name: loss.detach() for name, loss in losses.items()})
    return history


@pytest.mark.parametrize("mode", ["SO3xR3", "off"])
def test_nerfacto_trains_bit_for_bit_as_without_features(mode):
    cameras = CameraOptimizerConfig(mode=mode)
    torch.manual_seed(0)
    with lazy_lpips():
        plain = NerfactoModelConfig(**NERFACTO_SIZES, camera_optimizer=cameras).setup(
            scene_box=scene_box(), num_train_data=3, metadata={}, device="cpu"
        )
    use_fast_encodings(plain)  # its gradients are the same up to the order of sums
    heads = (head("dino", 6, has_text=False), head("clip", 12))
    ours = feature_model(*heads, camera_optimizer=cameras)
    batch = _batch(ours)
    expected, actual = _train(plain, batch), _train(ours, batch)
    for plain_losses, our_losses in zip(expected, actual, strict=True):
        for name, loss in plain_losses.items():
            assert torch.equal(loss, our_losses[name]), name
    parameters = dict(ours.named_parameters())
    for name, parameter in plain.named_parameters():
        assert torch.equal(parameter, parameters[name]), name
    plain.eval()
    ours.eval()
    rendered = ours.get_outputs_for_camera(camera())
    for name, image in plain.get_outputs_for_camera(camera()).items():
        assert torch.equal(image, rendered[name]), name


def test_no_gradient_of_positions_is_computed_that_nobody_asks_for():
    off = CameraOptimizerConfig(mode="off")
    for wanted in (True, False):
        model = feature_model(head(), predict_normals=wanted, camera_optimizer=off).train()
        model(rays())["rgb"].sum().backward()
        positions = model.field._sample_locations  # Nerfacto's, which always require a gradient
        assert (positions.grad is not None) is wanted


def test_the_cosine_is_the_one_of_torch_and_of_a_zero_vector_zero():
    rendered, target = torch.randn(2, 20, 12, dtype=torch.float64)
    target[3] = 0
    expected = functional.cosine_similarity(rendered, target, dim=-1).mean()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        torch.testing.assert_close(
            mean_cosine(rendered, target), expected.float(), atol=1e-6, rtol=0
        )


def test_camera_gradients_come_from_the_features_only_when_asked():
    for choice, moved in (("none", False), ("full", True)):
        model = feature_model(head(), feat_geometry_grad=choice).train()
        torch.nn.init.normal_(model.feature_field.trunk.grid.table)
        torch.nn.init.normal_(model.camera_optimizer.pose_adjustment, std=1e-3)
        model(rays())["feature"].square().sum().backward()
        poses = model.camera_optimizer.pose_adjustment.grad
        density = [p.grad for p in model.field.mlp_base.parameters()]
        assert (poses is not None and bool(poses.any())) is moved
        assert any(grad is not None and bool(grad.any()) for grad in density) is moved


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float64, 1e-10)])
def test_rendered_features_equal_the_per_sample_reference_with_gradients(dtype, tolerance):
    model = feature_model(head(), feat_geometry_grad="full").train().to(dtype)
    torch.nn.init.normal_(model.feature_field.trunk.grid.table)
    captured = {}

    def keep(module, args, kwargs):
        captured.update(kwargs)

    model.renderer_expected_depth.register_forward_pre_hook(keep, with_kwargs=True)
    torch.manual_seed(0)
    bundle = rays()
    bundle.origins, bundle.directions = bundle.origins.to(dtype), bundle.directions.to(dtype)
    rendered = model(bundle)["feature"]
    positions = captured["ray_samples"].frustums.get_positions()
    hidden = model.feature_field.hidden(positions)
    reference = render_per_sample(hidden, captured["weights"], model.heads["clip"].weight)
    torch.testing.assert_close(rendered, reference, atol=tolerance, rtol=tolerance)
    parameters = [*model.feature_field.parameters(), *model.field.mlp_base.parameters()]
    ours = torch.autograd.grad(rendered.square().mean(), parameters, retain_graph=True)
    theirs = torch.autograd.grad(reference.square().mean(), parameters)
    for fast, slow in zip(ours, theirs, strict=True):
        torch.testing.assert_close(fast, slow, atol=tolerance, rtol=tolerance)


def test_one_head_has_plain_names_and_the_plain_loss():
    model = feature_model(head("dinov2", 12, has_text=False)).train()
    batch = _batch(model)
    outputs = model(rays())
    losses = model.get_loss_dict(outputs, batch, model.get_metrics_dict(outputs, batch))
    expected = 1e-3 * functional.mse_loss(outputs["feature"], batch["feature"])
    torch.testing.assert_close(losses["feature_loss"], expected)


def test_mixed_precision_trains_with_finite_losses_in_full_precision():
    model = feature_model(head()).train()
    batch = _batch(model)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        outputs = model(rays())
        metrics = model.get_metrics_dict(outputs, batch)
        losses = model.get_loss_dict(outputs, batch, metrics)
    assert losses["feature_loss"].dtype == torch.float32
    losses["feature_loss"].backward()
    gradients = [parameter.grad for parameter in model.feature_field.parameters()]
    assert all(gradient is not None and gradient.isfinite().all() for gradient in gradients)


def test_several_heads_are_weighed_by_their_targets_variance():
    model = feature_model(head("dino", 6, has_text=False), head("clip", 12)).train()
    batch = _batch(model)
    outputs = model(rays())
    metrics = model.get_metrics_dict(outputs, batch)
    losses = model.get_loss_dict(outputs, batch, metrics)
    for name in ("dino", "clip"):
        key = f"feature_{name}"
        error = functional.mse_loss(outputs[key], batch[key]) / model.heads[name].variance
        torch.testing.assert_close(losses[f"{key}_loss"], 1e-3 * error)
        assert -1 <= metrics[f"feature_cosine_{name}"] <= 1


def test_a_batch_without_features_trains_without_feature_losses():
    model = feature_model(head()).train()
    outputs, batch = model(rays()), {"image": torch.rand(32, 3)}
    losses = model.get_loss_dict(outputs, batch, model.get_metrics_dict(outputs, batch))
    assert not [name for name in losses if "feature" in name]


def test_an_evaluated_batch_of_rays_has_features_and_colours():
    model = feature_model(head()).eval()
    outputs = model(rays())
    assert outputs["feature"].shape == (32, 12)
    expected = pca_colours(outputs["feature"], model.heads["clip"].pca)
    torch.testing.assert_close(outputs["feature_pca"], expected, atol=1e-5, rtol=0)
    assert "feature_pca" not in model.train()(rays())


def test_a_camera_render_holds_pictures_only():
    model = feature_model(head("dino", 6, has_text=False), head("clip", 12)).eval()
    outputs = model.get_outputs_for_camera(camera())
    assert isinstance(outputs, CameraOutputs)
    assert outputs.hidden is not None
    assert outputs.hidden.shape == (9, 13, 16)
    assert {"feature_pca", "feature_pca_dino", "feature_pca_clip"} <= set(outputs)
    assert all(image.shape[-1] in (1, 3) for image in outputs.values())
    assert torch.equal(outputs["feature_pca"], outputs["feature_pca_dino"])
    clip = model.heads["clip"]
    expected = pca_colours(clip(outputs.hidden), clip.pca)
    torch.testing.assert_close(outputs["feature_pca_clip"], expected, atol=1e-5, rtol=0)


def test_all_channels_come_on_request_and_colours_alone_skip_the_field(monkeypatch):
    model = feature_model(head()).eval()
    wide = model.get_outputs_for_camera(camera(), request=RenderRequest(features=True))
    assert wide["feature"].shape == (9, 13, 12)
    monkeypatch.setattr(model.feature_field, "hidden", lambda *_: pytest.fail("field was used"))
    rgb = model.get_outputs_for_camera(camera(), request=RGB_ONLY)
    assert "rgb" in rgb
    assert "feature_pca" not in rgb
    assert rgb.hidden is None


class _Targets:
    def __init__(self, image):
        self.image = image

    def rows(self, name, start, stop):
        return self.image[start:stop]


def test_image_metrics_come_from_row_chunks(monkeypatch):
    monkeypatch.setattr("f3rm.camera_render._METRIC_PIXELS", 30)  # two rows of 13 pixels at a time
    monkeypatch.setattr(LazyLpips, "_build", lambda self: None)
    model = feature_model(head()).eval()
    torch.nn.init.normal_(model.feature_field.trunk.grid.table)
    outputs = model.get_outputs_for_camera(camera())
    target = torch.randn(9, 13, 12)
    batch = {"image": torch.rand(9, 13, 3), "feature_targets": _Targets(target)}
    metrics, images = model.get_image_metrics_and_images(outputs, batch)
    rendered = model.heads["clip"](outputs.hidden).detach()
    cosine = functional.cosine_similarity(rendered, target, dim=-1).mean()
    assert metrics["feature_cosine"] == pytest.approx(float(cosine), abs=1e-6)
    assert metrics["feature_mse"] == pytest.approx(float((rendered - target).square().mean()))
    assert images["feature_pca"].shape == (9, 26, 3)
    assert "lpips" not in metrics


def test_checkpoint_opens_without_metadata_and_holds_no_lpips():
    model = feature_model(head("dino", 6, has_text=False), head("clip", 12)).eval()
    state = model.state_dict()
    assert not [name for name in state if "lpips" in name]
    opened = feature_model(seed=9).eval()
    assert not opened.heads
    opened.load_state_dict(state)
    assert opened.get_outputs_for_camera(camera()).keys() == (
        model.get_outputs_for_camera(camera()).keys()
    )


def test_a_run_of_the_torch_implementation_opens_where_tiny_cuda_nn_was_chosen():
    state = feature_model(head()).eval().state_dict()
    chosen_tcnn = feature_model(seed=9).eval()
    chosen_tcnn.config.implementation = chosen_tcnn.feature_field.config.implementation = "tcnn"
    chosen_tcnn.load_state_dict(state)
    assert chosen_tcnn.feature_field.config.implementation == "torch"
    assert torch.equal(
        chosen_tcnn.heads["clip"].weight, state["feature_field.heads.clip.linear.weight"]
    )
    assert not chosen_tcnn.field.training
