"""Entry point: the methods that ``ns-train`` lists. Wiring and numbers only.

Importing it loads no weights, touches no CUDA and needs no optional package: one plugin whose
import fails takes every ``ns-*`` command down with it.
"""

from typing import Any

from nerfstudio.cameras.camera_optimizers import CameraOptimizerConfig
from nerfstudio.configs.base_config import ViewerConfig
from nerfstudio.data.dataparsers.nerfstudio_dataparser import NerfstudioDataParserConfig
from nerfstudio.engine.optimizers import AdamOptimizerConfig
from nerfstudio.pipelines.base_pipeline import VanillaPipelineConfig
from nerfstudio.plugins.types import MethodSpecification

from f3rm.compat import (
    FloatExponentialDecaySchedulerConfig,
    FusedAdamOptimizerConfig,
    allow_nerfstudio_checkpoints,
    show_messages_alone,
)
from f3rm.distribution import warn_of_namesake
from f3rm.feature_datamanager import FeatureDataManagerConfig
from f3rm.model import FeatureFieldModelConfig
from f3rm.trainer import FeatureTrainerConfig

allow_nerfstudio_checkpoints()
show_messages_alone()
warn_of_namesake()


def _adam(lr: float, lr_final: float, steps: int) -> dict[str, Any]:
    return {
        "optimizer": AdamOptimizerConfig(lr=lr, eps=1e-15),
        "scheduler": FloatExponentialDecaySchedulerConfig(lr_final=lr_final, max_steps=steps),
    }


def _proposal(max_res: int) -> dict[str, Any]:
    return {
        "hidden_dim": 16,
        "log2_hashmap_size": 13,
        "num_levels": 4,
        "max_res": max_res,
        "use_linear": False,
    }


def _optimizers(steps: int, *, feature_rate: float = 5e-3) -> dict[str, Any]:
    return {
        "proposal_networks": _adam(1e-2, 1e-4, steps),
        "fields": _adam(1e-2, 1e-4, steps),
        "camera_opt": _adam(1e-3, 1e-4, min(steps, 5000)),
        "feature_field": {
            **_adam(feature_rate, 1e-4, steps),
            "optimizer": FusedAdamOptimizerConfig(lr=feature_rate, eps=1e-15),
        },
    }


f3rm_method = MethodSpecification(
    config=FeatureTrainerConfig(
        method_name="f3rm",
        steps_per_eval_batch=500,
        steps_per_save=2000,
        max_num_iterations=30000,
        mixed_precision=True,
        pipeline=VanillaPipelineConfig(
            datamanager=FeatureDataManagerConfig(
                dataparser=NerfstudioDataParserConfig(),
                train_num_rays_per_batch=4096,
                eval_num_rays_per_batch=4096,
            ),
            model=FeatureFieldModelConfig(eval_num_rays_per_chunk=1 << 15),
        ),
        optimizers=_optimizers(30000),
        viewer=ViewerConfig(num_rays_per_chunk=1 << 15),
        vis="viewer",
    ),
    description="Nerfacto with a feature field distilled from CLIP, DINO, DINOv2 or several. "
    "docs/nerfstudio.md has the ten options that matter.",
)

f3rm_big_method = MethodSpecification(
    config=FeatureTrainerConfig(
        method_name="f3rm-big",
        steps_per_eval_batch=500,
        steps_per_save=2000,
        max_num_iterations=100000,
        mixed_precision=True,
        pipeline=VanillaPipelineConfig(
            datamanager=FeatureDataManagerConfig(
                dataparser=NerfstudioDataParserConfig(),
                train_num_rays_per_batch=8192,
                eval_num_rays_per_batch=4096,
            ),
            # Nerfacto's own sizes of nerfacto-big.
            model=FeatureFieldModelConfig(
                eval_num_rays_per_chunk=1 << 15,
                num_nerf_samples_per_ray=128,
                num_proposal_samples_per_ray=(512, 256),
                hidden_dim=128,
                hidden_dim_color=128,
                appearance_embed_dim=128,
                max_res=4096,
                proposal_weights_anneal_max_num_iters=5000,
                log2_hashmap_size=21,
                feat_log2_hashmap_size=21,
                feat_max_res=256,
            ),
        ),
        optimizers=_optimizers(50000),
        viewer=ViewerConfig(num_rays_per_chunk=1 << 15),
        vis="viewer",
    ),
    description="f3rm with larger fields, more samples and more rays, for a large GPU.",
)

f3rm_lite_method = MethodSpecification(
    config=FeatureTrainerConfig(
        method_name="f3rm-lite",
        steps_per_eval_batch=500,
        steps_per_eval_image=1000,
        steps_per_eval_all_images=1 << 30,  # whole images are slow on a CPU; ns-eval does it
        steps_per_save=500,
        max_num_iterations=3000,
        mixed_precision=False,
        pipeline=VanillaPipelineConfig(
            datamanager=FeatureDataManagerConfig(
                dataparser=NerfstudioDataParserConfig(),
                train_num_rays_per_batch=1024,
                eval_num_rays_per_batch=1024,
            ),
            model=FeatureFieldModelConfig(
                implementation="torch",
                eval_num_rays_per_chunk=1 << 12,
                num_levels=8,
                log2_hashmap_size=15,
                max_res=512,
                hidden_dim=32,
                hidden_dim_color=32,
                num_nerf_samples_per_ray=16,
                num_proposal_samples_per_ray=(48, 32),
                proposal_net_args_list=[
                    _proposal(max_res=64),
                    _proposal(max_res=128),
                ],
                appearance_embed_dim=8,
                camera_optimizer=CameraOptimizerConfig(mode="off"),
                feat_num_levels=6,
                feat_log2_hashmap_size=15,
                feat_features_per_level=4,
                feat_max_res=96,
            ),
        ),
        optimizers=_optimizers(3000, feature_rate=1e-2),  # docs/decisions/0007
        viewer=ViewerConfig(num_rays_per_chunk=1 << 12),
        vis="viewer",
    ),
    description="f3rm for a CPU or a small GPU: torch, fewer rays, samples and levels.",
)
