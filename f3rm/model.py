"""The model: Nerfacto, and beside it a feature field that distils 2D features.

Nerfacto's behaviour is inherited, not copied: a hook on one of its renderers sees the weights and
samples of every ray, which the feature field is composited with. With ``feat_geometry_grad: none``
colours and density train as plain Nerfacto's do, bit by bit on the CPU.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from jaxtyping import Float
from nerfstudio.cameras.cameras import Cameras
from nerfstudio.cameras.rays import RayBundle
from nerfstudio.data.scene_box import OrientedBox
from nerfstudio.models.nerfacto import NerfactoModel, NerfactoModelConfig
from torch import Tensor
from torch.nn import Parameter, functional
from typing_extensions import override

from f3rm.camera_render import (
    EVALUATED_RAY_BATCH,
    RAY_BATCH,
    CameraOutputs,
    CameraRender,
    FeatureTargets,
    FrameCache,
    RenderRequest,
    SampleRecorder,
    camera_key,
    compare_features,
    mean_cosine,
    single_ray,
)
from f3rm.colours.pca import PcaBasis, fit_pca
from f3rm.compat import lazy_lpips
from f3rm.errors import F3rmError, HeadSpec
from f3rm.feature_field import (
    FeatureField,
    FeatureFieldConfig,
    FeatureHead,
    output_key,
)
from f3rm.language.active_query import ActiveQuery
from f3rm.language.text_encoder import QueryText
from f3rm.networks.base import ImplementationChoice, NetworkConfig, resolve_implementation
from f3rm.networks.nerfacto_fast import use_fast_encodings
from f3rm.renderer import FeatureRenderer
from f3rm.viewer.controls import FeatureControls

_PCA_PIXELS = 1 << 15
_LEAST_ACCUMULATION = 0.5


@dataclass
class FeatureFieldModelConfig(NerfactoModelConfig):
    """Nerfacto's configuration, and the feature field's."""

    _target: type = field(default_factory=lambda: FeatureFieldModel)
    implementation: ImplementationChoice = "auto"  # pyright: ignore[reportIncompatibleVariableOverride]
    """tiny-cuda-nn, Triton, torch, or the first that can run. triton and torch share parameters."""
    feat_loss_weight: float = 1e-3
    """Weight of each head's mean squared error."""
    feat_loss_scale: Literal["variance", "none"] = "variance"
    """Of several heads: divide each error by its target's variance, so that none drowns another."""
    feat_geometry_grad: Literal["none", "full"] = "none"
    """Whether the feature loss moves density and cameras; ``none`` leaves Nerfacto as it is."""
    feat_use_pe: bool = True
    """Whether the trunk also reads a positional encoding, beside the feature hash grid."""
    feat_pe_n_freq: int = 6
    """Octaves of that positional encoding."""
    feat_num_levels: int = 12
    """Levels of the feature hash grid."""
    feat_log2_hashmap_size: int = 19
    """Largest table of a level, as a power of two."""
    feat_start_res: int = 16
    """Cells per axis of the coarsest level."""
    feat_max_res: int = 128
    """Cells per axis of the finest level: features vary slowly, colours do not."""
    feat_features_per_level: int = 8
    """Features per level."""
    feat_hidden_dim: int = 64
    """Width of the hidden vector that is composited along a ray."""
    feat_num_layers: int = 2
    """Hidden layers of the feature trunk."""
    positives: str = ""
    """Comma-separated phrases to look for, rendered as ``similarity`` also without a viewer."""
    negatives: str = "object, things, stuff, texture"
    """Comma-separated phrases that these must beat; empty shows the plain cosine."""
    softmax_temp: float = 0.1
    """Temperature of the pairwise soft-max between positives and negatives."""
    viewer_image_folder: Path | None = None
    """Folder below which the viewer reads images to ask with; the dataset's if not given."""


class FeatureFieldModel(NerfactoModel):
    """Nerfacto with a feature field.

    ``metadata["feature_heads"]`` (a sequence of :class:`HeadSpec`) and
    ``metadata["feature_stats"]`` (:class:`~f3rm.feature_field.FeatureStats` by head name) come
    from the data manager; without them the heads come from the checkpoint.
    """

    config: FeatureFieldModelConfig

    def populate_modules(self) -> None:
        """Builds Nerfacto, then the feature field under a forked random state."""
        device = self.kwargs.get("device", "cpu")
        network = self._network_config()
        implementation = resolve_implementation(self.config.implementation, device, network)
        nerfactos = "tcnn" if implementation == "tcnn" else "torch"  # the run's stays as asked
        self.config = replace(self.config, implementation=nerfactos)  # pyright: ignore[reportIncompatibleVariableOverride]
        with lazy_lpips():
            super().populate_modules()
        use_fast_encodings(self, implementation)
        moves = self.config.camera_optimizer.mode != "off" or self.config.predict_normals
        self._samples = SampleRecorder(of_positions=moves)
        self.field.mlp_base.register_forward_pre_hook(self._samples.positions_hook)
        self.renderer_expected_depth.register_forward_pre_hook(
            self._samples.weights_hook, with_kwargs=True
        )
        metadata: Mapping[str, Any] = self.kwargs.get("metadata") or {}
        heads: Sequence[HeadSpec] = metadata.get("feature_heads", ())
        devices = [device] if torch.device(device).type == "cuda" else []
        with torch.random.fork_rng(devices=devices):
            self.feature_field = FeatureField(
                FeatureFieldConfig(network, implementation),
                heads,
                scene_box=self.scene_box,
                spatial_distortion=self.field.spatial_distortion,
            )
        for name, measured in metadata.get("feature_stats", {}).items():
            self.feature_field.head(name).set_stats(measured)
        self.renderer_feature = FeatureRenderer()
        self._frames = FrameCache()
        self.controls = FeatureControls(
            QueryText(self.config.positives, self.config.negatives, self.config.softmax_temp),
            self._features_along,
            image_folder=self.config.viewer_image_folder,
        )
        self.controls.set_heads(self.feature_field.specs)

    @override
    def load_state_dict(
        self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False
    ) -> Any:
        """Loads a checkpoint, also one that was trained in torch where tiny-cuda-nn would run now.

        Raises:
            ImplementationError: If the checkpoint needs tiny-cuda-nn and this model runs in torch.
            F3rmError: If training goes on with other heads than the checkpoint's.
        """
        saved = state_dict.get("feature_field._extra_state", {}).get("implementation")
        if saved == "torch" and self.config.implementation == "tcnn" and not self.training:
            device = self.device
            self.config.implementation = resolve_implementation("auto", device, with_tcnn=False)
            self.populate_modules()
            self.to(device).eval()
        self._frames.clear()
        loaded = super().load_state_dict(state_dict, strict=strict, assign=assign)
        self.controls.set_heads(self.feature_field.specs)
        return loaded

    def _network_config(self) -> NetworkConfig:
        config = self.config
        return NetworkConfig(
            num_levels=config.feat_num_levels,
            features_per_level=config.feat_features_per_level,
            log2_hashmap_size=config.feat_log2_hashmap_size,
            start_res=config.feat_start_res,
            max_res=config.feat_max_res,
            use_pe=config.feat_use_pe,
            pe_num_frequencies=config.feat_pe_n_freq,
            hidden_dim=config.feat_hidden_dim,
            num_layers=config.feat_num_layers,
        )

    def get_param_groups(self) -> dict[str, list[Parameter]]:
        """Adds the feature field as a group of its own."""
        groups = super().get_param_groups()
        groups["feature_field"] = list(self.feature_field.parameters())
        return groups

    def key(self, output: str, head: str) -> str:
        """Names an output of a head; see :func:`~f3rm.feature_field.output_key`."""
        return output_key(output, head, len(self.feature_field.heads))

    @property
    def heads(self) -> dict[str, FeatureHead]:
        """The heads by name, in order."""
        return {name: self.feature_field.head(name) for name in self.feature_field.heads}

    def get_outputs(self, ray_bundle: RayBundle) -> dict[str, Any]:
        """Renders Nerfacto's outputs and the feature field's for a batch of rays.

        Returns:
            Nerfacto's outputs; for a batch of rays ``feature`` (rays, channels) of every head and,
            in evaluation, what a picture would have (``ns-export`` colours points with it); for a
            camera render what its :class:`RenderRequest` asks for.
        """
        outputs = super().get_outputs(ray_bundle)
        positions, weights = self._samples.take()
        if self.training:
            self._frames.clear()
        render = CameraRender.get()
        if not self.heads or (render is not None and not render.request.anything):
            return outputs
        hidden = self._render_hidden(positions, weights)
        if render is not None:
            render.hidden.append(hidden)
        else:
            batch = RAY_BATCH if self.training else EVALUATED_RAY_BATCH
            outputs.update(self._images(hidden, outputs["rgb"], batch))
        return outputs

    def _render_hidden(
        self, positions: Float[Tensor, "points 3"], weights: Float[Tensor, "rays samples 1"]
    ) -> Float[Tensor, "rays hidden"]:
        if self.config.feat_geometry_grad == "none":
            weights, positions = weights.detach(), positions.detach()
        hidden = self.feature_field.hidden_in_cube(positions)
        hidden = hidden.view(*weights.shape[:-1], -1)  # (rays, samples, hidden)
        return self.renderer_feature(features=hidden, weights=weights)

    def _images(
        self,
        hidden: Float[Tensor, "*batch hidden"],
        rgb: Float[Tensor, "*batch 3"],
        request: RenderRequest,
    ) -> dict[str, Tensor]:
        images: dict[str, Tensor] = {}
        if request.features:
            images.update({self.key("feature", n): head(hidden) for n, head in self.heads.items()})
        if request.pca:
            images.update(self.controls.pca_pictures(hidden, self.heads))
        query = self._active_query() if request.similarity else None
        if query is not None:
            under = rgb if request.composite else None
            weights = {name: head.weight for name, head in self.heads.items()}
            images.update(self.controls.pictures(hidden, under, query, weights))
        return images

    def _active_query(self) -> ActiveQuery | None:
        means = {name: head.unit_mean for name, head in self.heads.items()}
        return self.controls.active_query(means)

    @torch.no_grad()
    def get_outputs_for_camera(
        self,
        camera: Cameras,
        obb_box: OrientedBox | None = None,
        request: RenderRequest | None = None,
    ) -> CameraOutputs:
        """Renders a camera; a view that an open viewer just showed is only drawn again for it.

        Args:
            camera: One camera.
            obb_box: Crop box, or None.
            request: What to add to Nerfacto's outputs; None for the default, in a viewer for what
                it shows; ``RGB_ONLY`` skips the feature field.
        """
        request = request or RenderRequest.showing(self.controls.shown)
        key = None
        if self.controls.is_rendering and obb_box is None and not self.training:
            key = camera_key(camera)
        frame = self._frames.get(key)
        if frame is None or (frame.hidden is None and self.heads and request.anything):
            bundle = camera.generate_rays(camera_indices=0, keep_shape=True, obb_box=obb_box)
            frame = self._render(bundle, request)
            if key is not None:
                self._frames.put(key, frame)
        return self._with_images(frame, request)

    @torch.no_grad()
    def get_outputs_for_camera_ray_bundle(
        self, camera_ray_bundle: RayBundle, request: RenderRequest | None = None
    ) -> CameraOutputs:
        """Renders rays in image order, in chunks; see :meth:`get_outputs_for_camera`."""
        request = request or RenderRequest()
        return self._with_images(self._render(camera_ray_bundle, request), request)

    def _render(self, bundle: RayBundle, request: RenderRequest) -> CameraOutputs:
        render = CameraRender(request)
        with render.current(), self.controls.timed(bundle):
            frame = CameraOutputs(super().get_outputs_for_camera_ray_bundle(bundle))
        if render.hidden:  # of the chunks of rays that Nerfstudio rendered, in image order
            hidden = torch.cat(render.hidden).unflatten(0, tuple(bundle.shape))
            frame.hidden = hidden.to(frame["rgb"].device)
        return frame

    def _with_images(self, frame: CameraOutputs, request: RenderRequest) -> CameraOutputs:
        outputs = CameraOutputs(frame)
        if self.controls.is_rendering:
            outputs |= self.controls.choices(frame["rgb"], list(self.heads), self._active_query())
        if frame.hidden is None or not request.anything:
            return outputs
        hidden, rgb = frame.hidden.to(self.device), frame["rgb"].to(self.device)
        self.controls.fit_wanted_pca(lambda: self._fit_pca(hidden))
        images = self._images(hidden, rgb, request)
        outputs.update({name: image.to(frame.hidden.device) for name, image in images.items()})
        outputs.hidden = frame.hidden if request.hidden else None
        return outputs

    def _fit_pca(self, hidden: Float[Tensor, "height width hidden"]) -> dict[str, PcaBasis]:
        flat = hidden.flatten(0, 1)
        sample = flat[:: max(1, len(flat) // _PCA_PIXELS)]
        return {name: fit_pca(head(sample)) for name, head in self.heads.items()}

    @torch.no_grad()
    def _features_along(
        self, origin: tuple[float, float, float], direction: tuple[float, float, float]
    ) -> dict[str, Tensor]:
        """Renders the features that a ray hits.

        Args:
            origin: Where it starts, in the scene frame.
            direction: Where it goes, of any length.

        Raises:
            F3rmError: If it hits nothing.
        """
        was_training = self.training
        self.eval()
        try:
            hit = self._render(single_ray(origin, direction), RenderRequest())
        finally:
            self.train(was_training)
        if hit.hidden is None or float(hit["accumulation"]) < _LEAST_ACCUMULATION:
            msg = "There is nothing where you clicked; click on a surface."
            raise F3rmError(msg)
        hidden = hit.hidden[0, 0].to(self.device)
        return {name: head(hidden) for name, head in self.heads.items()}

    def get_loss_dict(
        self,
        outputs: dict[str, Any],
        batch: dict[str, Any],
        metrics_dict: dict[str, Tensor] | None = None,
    ) -> dict[str, Tensor]:
        """Adds one mean squared error per head."""
        losses = super().get_loss_dict(outputs, batch, metrics_dict)
        return losses | self.feature_losses(outputs, batch)

    def feature_losses(
        self, outputs: Mapping[str, Any], batch: Mapping[str, Any]
    ) -> dict[str, Tensor]:
        """Returns one mean squared error per head, scaled as ``feat_loss_scale`` says."""
        scaled = len(self.heads) > 1 and self.config.feat_loss_scale == "variance"
        losses: dict[str, Tensor] = {}
        for name, head in self.heads.items():
            key = self.key("feature", name)
            if key in batch:
                error = functional.mse_loss(outputs[key], batch[key].to(self.device))
                loss = self.config.feat_loss_weight * error
                losses[f"{key}_loss"] = loss / head.variance if scaled else loss
        return losses

    def get_metrics_dict(self, outputs: dict[str, Any], batch: dict[str, Any]) -> dict[str, Tensor]:
        """Adds each head's mean cosine between rendered and extracted features."""
        return super().get_metrics_dict(outputs, batch) | self.feature_metrics(outputs, batch)

    def feature_metrics(
        self, outputs: Mapping[str, Any], batch: Mapping[str, Any]
    ) -> dict[str, Tensor]:
        """Returns each head's mean cosine between rendered and extracted features."""
        metrics: dict[str, Tensor] = {}
        for name in self.heads:
            key = self.key("feature", name)
            if key in batch:
                target = batch[key].to(self.device)
                metrics[self.key("feature_cosine", name)] = mean_cosine(outputs[key], target)
        return metrics

    @torch.no_grad()
    def get_image_metrics_and_images(
        self, outputs: dict[str, Tensor], batch: dict[str, Any]
    ) -> tuple[dict[str, float], dict[str, Tensor]]:
        """Adds feature metrics, and extracted beside rendered PCA pictures, of a whole image.

        The C channels exist for a few rows at a time only. Without target features in the batch the
        feature metrics are left out, as is LPIPS where its weights cannot be had.
        """
        metrics, images = super().get_image_metrics_and_images(outputs, batch)
        if math.isnan(metrics.get("lpips", 0.0)):
            del metrics["lpips"]
        targets: FeatureTargets | None = batch.get("feature_targets")
        hidden = outputs.hidden if isinstance(outputs, CameraOutputs) else None
        if targets is not None and hidden is not None:
            for name, head in self.heads.items():
                rows = partial(targets.rows, name)
                compared = compare_features(hidden, rows, head, head.pca, self.device)
                metrics[self.key("feature_cosine", name)] = compared.cosine
                metrics[self.key("feature_mse", name)] = compared.mse
                images[self.key("feature_pca", name)] = compared.picture
        return metrics, images
