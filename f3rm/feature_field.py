"""The feature field: a trunk over contracted positions and one linear head per feature type.

It knows nothing of density or colour, and no feature type by name: a :class:`HeadSpec` says all.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

import torch
from jaxtyping import Float
from nerfstudio.cameras.rays import RaySamples
from nerfstudio.data.scene_box import SceneBox
from nerfstudio.field_components.spatial_distortions import SpatialDistortion
from torch import Tensor, nn

from f3rm._types import F3rmError, HeadSpec, ImplementationError
from f3rm.networks.base import Implementation, NetworkConfig, build_network
from f3rm.semantics.pca import PcaBasis, fit_pca


class FeatureFieldHeadNames(Enum):
    """What :meth:`FeatureField.forward` returns per sample."""

    HIDDEN = "hidden"


@dataclass(frozen=True)
class FeatureStats:
    """What a head keeps of the features that it learns from.

    Attributes:
        variance: Mean over channels of the target's variance; a head's loss is divided by it where
            several heads share a trunk.
        pca: Basis and range of the PCA colours.
    """

    variance: float
    pca: PcaBasis

    @classmethod
    def fit(cls, features: Float[Tensor, "samples channels"]) -> "FeatureStats":
        """Measures a sample of target features."""
        variance = features.float().var(dim=0, unbiased=False).mean()
        return cls(variance=float(variance), pca=fit_pca(features))


class FeatureHead(nn.Module):
    """A bias-free linear map from hidden vector to feature, and the statistics of its target."""

    variance: Tensor
    pca_mean: Tensor
    pca_components: Tensor
    pca_low: Tensor
    pca_high: Tensor

    def __init__(self, spec: HeadSpec, hidden_dim: int) -> None:
        super().__init__()
        self.spec = spec
        self.linear = nn.Linear(hidden_dim, spec.channels, bias=False)
        self.register_buffer("variance", torch.ones(()))
        self.register_buffer("pca_mean", torch.zeros(spec.channels))
        self.register_buffer("pca_components", torch.zeros(spec.channels, 3))
        self.register_buffer("pca_low", torch.zeros(3))
        self.register_buffer("pca_high", torch.ones(3))

    @property
    def weight(self) -> Float[Tensor, "channels hidden"]:
        """The basis W: features are ``W H``."""
        return self.linear.weight

    @property
    def pca(self) -> PcaBasis:
        """The PCA basis saved with the run."""
        return PcaBasis(self.pca_mean, self.pca_components, self.pca_low, self.pca_high)

    def set_stats(self, stats: FeatureStats) -> None:
        """Takes over statistics measured on the target features."""
        self.variance.fill_(max(stats.variance, 1e-12))
        self.pca_mean.copy_(stats.pca.mean)
        self.pca_components.copy_(stats.pca.components)
        self.pca_low.copy_(stats.pca.low)
        self.pca_high.copy_(stats.pca.high)

    def forward(self, hidden: Float[Tensor, "*batch hidden"]) -> Float[Tensor, "*batch channels"]:
        """Projects hidden vectors to features."""
        return self.linear(hidden)


@dataclass
class FeatureFieldConfig:
    """Sizes of the trunk and how it is computed."""

    network: NetworkConfig = field(default_factory=NetworkConfig)
    """Encoding and layers of the trunk."""
    implementation: Implementation = "torch"
    """Which library computes the trunk."""


class FeatureField(nn.Module):
    """View-independent field of hidden vectors, with named linear heads.

    Args:
        config: Sizes and implementation.
        heads: The heads to build; a checkpoint brings its own, which replace them.
        scene_box: Normalises positions where there is no contraction.
        spatial_distortion: Nerfacto's scene contraction, to [-2, 2]^3, or None.
    """

    def __init__(
        self,
        config: FeatureFieldConfig,
        heads: Sequence[HeadSpec],
        *,
        scene_box: SceneBox,
        spatial_distortion: SpatialDistortion | None,
    ) -> None:
        super().__init__()
        self.config = config
        self.scene_box = scene_box
        self.spatial_distortion = spatial_distortion
        self.trunk = build_network(config.network, config.implementation)
        self.heads = nn.ModuleDict()
        self._build_heads(heads)

    @property
    def specs(self) -> tuple[HeadSpec, ...]:
        """The heads, in order."""
        return tuple(self.head(name).spec for name in self.heads)

    def head(self, name: str) -> FeatureHead:
        """Returns a head by name.

        Raises:
            F3rmError: If there is no such head.
        """
        if name not in self.heads:
            msg = f"head: this field has the heads {list(self.heads)}, got {name!r}."
            raise F3rmError(msg)
        module = self.heads[name]
        assert isinstance(module, FeatureHead)  # noqa: S101 - narrows ModuleDict's item type
        return module

    def normalise(self, positions: Float[Tensor, "*batch 3"]) -> Float[Tensor, "*batch 3"]:
        """Maps world positions to [0, 1]^3 by contraction, or by the scene box without one."""
        if self.spatial_distortion is None:
            return SceneBox.get_normalized_positions(positions, self.scene_box.aabb.to(positions))
        return (self.spatial_distortion(positions) + 2.0) / 4.0

    def hidden(self, positions: Float[Tensor, "*batch 3"]) -> Float[Tensor, "*batch hidden"]:
        """Evaluates the trunk at world positions (Nerfstudio's scene frame)."""
        flat = self.normalise(positions).reshape(-1, 3)
        return self.trunk(flat).view(*positions.shape[:-1], -1)

    def forward(self, ray_samples: RaySamples) -> dict[FeatureFieldHeadNames, Tensor]:
        """Evaluates the trunk at ray samples, without gradient into where they lie.

        Returns:
            Hidden vectors of shape (rays, samples, hidden).
        """
        return {FeatureFieldHeadNames.HIDDEN: self.hidden(ray_samples.frustums.get_positions())}

    def get_extra_state(self) -> dict[str, Any]:
        """Returns what a checkpoint must know to be opened without its feature cache."""
        return {
            "implementation": self.config.implementation,
            "heads": [spec.to_dict() for spec in self.specs],
        }

    def set_extra_state(self, state: Mapping[str, Any]) -> None:
        """Rebuilds the heads that a checkpoint holds; torch calls it before their weights load.

        Raises:
            ImplementationError: If the checkpoint's parameters belong to another implementation.
            F3rmError: If training goes on with other heads than the checkpoint's.
        """
        saved = state["implementation"]
        if saved != self.config.implementation:
            msg = (
                f"FeatureField: the checkpoint was trained with implementation {saved!r}, this "
                f"model runs {self.config.implementation!r}; their parameters do not fit. Set "
                f"pipeline.model.implementation to {saved!r} (needs a CUDA device and tiny-cuda-nn "
                "for 'tcnn')."
            )
            raise ImplementationError(msg)
        specs = tuple(HeadSpec.from_dict(plain) for plain in state["heads"])
        sizes = [(spec.name, spec.channels) for spec in specs]
        if sizes == [(spec.name, spec.channels) for spec in self.specs]:
            return
        if self.training and len(self.heads):
            msg = (
                f"FeatureField: the checkpoint has the heads {sizes}, the data has "
                f"{[(spec.name, spec.channels) for spec in self.specs]}. Resume with the feature "
                "type and weights of the first run."
            )
            raise F3rmError(msg)
        self._build_heads(specs)

    def _build_heads(self, specs: Sequence[HeadSpec]) -> None:
        device = next((p.device for p in self.trunk.parameters()), torch.device("cpu"))
        self.heads.clear()
        for spec in specs:
            self.heads[spec.name] = FeatureHead(spec, self.config.network.hidden_dim).to(device)
