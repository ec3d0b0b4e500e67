"""Small models and rays that tests of the Nerfstudio-facing modules share."""

import torch
from nerfstudio.cameras.cameras import Cameras
from nerfstudio.cameras.rays import RayBundle
from nerfstudio.data.scene_box import SceneBox

from f3rm.errors import BackboneRef, HeadSpec
from f3rm.feature_field import FeatureStats
from f3rm.model import FeatureFieldModelConfig

SMALL_PROPOSAL = {
    "hidden_dim": 16,
    "log2_hashmap_size": 8,
    "num_levels": 2,
    "max_res": 32,
    "use_linear": False,
}
NERFACTO_SIZES = {
    "implementation": "torch",
    "num_levels": 3,
    "log2_hashmap_size": 10,
    "max_res": 64,
    "hidden_dim": 16,
    "hidden_dim_color": 16,
    "num_nerf_samples_per_ray": 8,
    "num_proposal_samples_per_ray": (16, 12),
    "proposal_net_args_list": [SMALL_PROPOSAL, SMALL_PROPOSAL],
    "eval_num_rays_per_chunk": 50,
}
FEATURE_SIZES = {"feat_num_levels": 3, "feat_log2_hashmap_size": 9, "feat_hidden_dim": 16}


def head(name: str = "clip", channels: int = 12, *, has_text: bool = True) -> HeadSpec:
    ref = BackboneRef(adapter=name, model="small", weights="none")
    return HeadSpec(name=name, channels=channels, has_text=has_text, backbone=ref)


def metadata(*specs: HeadSpec):
    generator = torch.Generator().manual_seed(3)
    stats = {
        spec.name: FeatureStats.fit(torch.randn(64, spec.channels, generator=generator) * 2)
        for spec in specs
    }
    return {"feature_heads": list(specs), "feature_stats": stats}


def scene_box() -> SceneBox:
    return SceneBox(aabb=torch.tensor([[-1.0, -1.0, -1.0], [1.0, 1.0, 1.0]]))


def feature_model(*specs: HeadSpec, seed: int = 0, **config):
    torch.manual_seed(seed)
    settings = FeatureFieldModelConfig(**{**NERFACTO_SIZES, **FEATURE_SIZES, **config})
    return settings.setup(
        scene_box=scene_box(), num_train_data=3, metadata=metadata(*specs), device="cpu"
    )


def rays(num: int = 32, seed: int = 1) -> RayBundle:
    generator = torch.Generator().manual_seed(seed)
    directions = torch.randn(num, 3, generator=generator)
    return RayBundle(
        origins=torch.randn(num, 3, generator=generator) * 0.3,
        directions=torch.nn.functional.normalize(directions, dim=-1),
        pixel_area=torch.full((num, 1), 1e-4),
        camera_indices=torch.randint(0, 3, (num, 1), generator=generator),
        metadata={"directions_norm": torch.ones(num, 1)},
    )


def camera(height: int = 9, width: int = 13) -> Cameras:
    pose = torch.eye(4)[None, :3]
    return Cameras(pose, fx=10.0, fy=10.0, cx=width / 2, cy=height / 2, width=width, height=height)
