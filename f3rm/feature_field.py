"""The feature field: a trunk over contracted positions and one linear head per feature type.

It knows neither density nor colour, and no feature type by name: a :class:`HeadSpec` describes each
head. Heads trained at another time have a trunk of their own: the hidden vectors of all trunks are
concatenated, and a head reads its own trunk's channels.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import Enum
from typing import Any

import torch
from jaxtyping import Float
from nerfstudio.cameras.rays import RaySamples
from nerfstudio.data.scene_box import SceneBox
from nerfstudio.field_components.spatial_distortions import SpatialDistortion
from torch import Tensor, nn
from torch.nn import functional

from f3rm.colours.pca import PcaBasis, fit_pca
from f3rm.errors import F3rmError, HeadSpec, ImplementationError
from f3rm.networks.base import Implementation, NetworkConfig, build_network, parameters_of


class FeatureFieldHeadNames(Enum):
    """Keys of the outputs of :meth:`FeatureField.forward`."""

    HIDDEN = "hidden"
    FEATURE = "feature"


@dataclass(frozen=True)
class FeatureStats:
    """Statistics of a head's target features.

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
    """A bias-free linear map from hidden vector to feature, and the statistics of its target.

    Args:
        spec: Its name, channels and backbone.
        hidden_dim: Width of a trunk's hidden vector.
        trunk: Index of its trunk.
        num_trunks: Trunks of the field.
    """

    variance: Tensor
    pca_mean: Tensor
    pca_components: Tensor
    pca_low: Tensor
    pca_high: Tensor

    def __init__(
        self, spec: HeadSpec, hidden_dim: int, *, trunk: int = 0, num_trunks: int = 1
    ) -> None:
        super().__init__()
        self.spec = spec
        self.trunk, self.num_trunks = trunk, num_trunks
        self.linear = nn.Linear(hidden_dim, spec.channels, bias=False)
        self.register_buffer("variance", torch.ones(()))
        self.register_buffer("pca_mean", torch.zeros(spec.channels))
        self.register_buffer("pca_components", torch.zeros(spec.channels, 3))
        self.register_buffer("pca_low", torch.zeros(3))
        self.register_buffer("pca_high", torch.ones(3))

    @property
    def columns(self) -> slice:
        """The head's channels of the field's hidden vector; its weight is 0 elsewhere."""
        width = self.linear.in_features
        return slice(self.trunk * width, (self.trunk + 1) * width)

    @property
    def weight(self) -> Float[Tensor, "channels hidden"]:
        """The basis W: features are ``W H``."""
        if self.num_trunks == 1:
            return self.linear.weight
        total = self.num_trunks * self.linear.in_features
        around = (self.columns.start, total - self.columns.stop)
        return functional.pad(self.linear.weight, around)

    @property
    def unit_mean(self) -> Float[Tensor, " channels"]:
        """Mean of the target's features in units of their root mean square length."""
        squared = self.pca_mean.square().sum() + self.variance * self.spec.channels
        return self.pca_mean / squared.sqrt()

    @property
    def pca(self) -> PcaBasis:
        """The PCA basis saved with the run."""
        return PcaBasis(self.pca_mean, self.pca_components, self.pca_low, self.pca_high)

    def set_stats(self, stats: FeatureStats) -> None:
        """Copies statistics of the target features into the head's buffers."""
        self.variance.fill_(max(stats.variance, 1e-12))  # the loss is divided by it
        self.pca_mean.copy_(stats.pca.mean)
        self.pca_components.copy_(stats.pca.components)
        self.pca_low.copy_(stats.pca.low)
        self.pca_high.copy_(stats.pca.high)

    def forward(self, hidden: Float[Tensor, "*batch hidden"]) -> Float[Tensor, "*batch channels"]:
        """Projects the field's hidden vectors to features."""
        if self.num_trunks > 1:
            hidden = hidden[..., self.columns]
        return self.linear(hidden)


@dataclass
class FeatureFieldConfig:
    """Sizes and implementation of the trunk."""

    network: NetworkConfig = field(default_factory=NetworkConfig)
    """Encoding and layers of the trunk."""
    implementation: Implementation = "torch"
    """The library that computes the trunk."""

    @property
    def parameters(self) -> "FeatureFieldConfig":
        """What determines the parameters: Triton's are torch's."""
        return replace(self, implementation=parameters_of(self.implementation))


def output_key(output: str, head: str, num_heads: int) -> str:
    """Names an entry of a head: ``feature`` of the only head, ``feature_clip`` of several."""
    return output if num_heads == 1 else f"{output}_{head}"


class FieldOutputs(dict[FeatureFieldHeadNames, Tensor]):
    """Hidden vectors of samples, and their features, which are computed when they are asked for.

    Compositing ``HIDDEN`` and projecting once per ray gives the same and is many times faster.
    """

    def __init__(
        self, hidden: Float[Tensor, "*batch hidden"], heads: Sequence["FeatureHead"]
    ) -> None:
        super().__init__({FeatureFieldHeadNames.HIDDEN: hidden})
        self._heads = heads

    def __missing__(self, key: object) -> Float[Tensor, "*batch channels"]:
        """Returns ``FEATURE``: the channels of all heads, one head after another."""
        if key is not FeatureFieldHeadNames.FEATURE:
            raise KeyError(key)
        hidden = self[FeatureFieldHeadNames.HIDDEN]
        self[key] = torch.cat([head(hidden) for head in self._heads], dim=-1)
        return self[key]


class FeatureField(nn.Module):
    """View-independent field of hidden vectors, with named linear heads.

    Args:
        config: Sizes and implementation.
        heads: The heads to build; those of a checkpoint replace them.
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
        self.more_trunks = nn.ModuleList()
        self.heads = nn.ModuleDict()
        self._build_heads([(spec, 0) for spec in heads])

    @property
    def specs(self) -> tuple[HeadSpec, ...]:
        """The heads, in order."""
        return tuple(self.head(name).spec for name in self.heads)

    @property
    def hidden_dim(self) -> int:
        """Channels of a hidden vector: those of all trunks."""
        return (1 + len(self.more_trunks)) * self.config.network.hidden_dim

    def head(self, name: str) -> FeatureHead:
        """Returns a head by name.

        Raises:
            F3rmError: If there is no such head.
        """
        if name not in self.heads:
            msg = f"This field has the heads {list(self.heads)}, got {name!r}."
            raise F3rmError(msg)
        module = self.heads[name]
        assert isinstance(module, FeatureHead)  # noqa: S101 - narrows ModuleDict's item type
        return module

    def normalise(self, positions: Float[Tensor, "*batch 3"]) -> Float[Tensor, "*batch 3"]:
        """Maps world positions to [0, 1]^3 by contraction, or by the scene box without one.

        Beyond the box its border is meant.
        """
        if self.spatial_distortion is None:
            aabb = self.scene_box.aabb.to(positions)
            return SceneBox.get_normalized_positions(positions, aabb).clamp(0, 1)
        return (self.spatial_distortion(positions) + 2.0) / 4.0

    def hidden(self, positions: Float[Tensor, "*batch 3"]) -> Float[Tensor, "*batch hidden"]:
        """Evaluates all trunks at world positions (Nerfstudio's scene frame).

        Args:
            positions: Any number of them, also none.

        Returns:
            Concatenated hidden vectors in the precision of the field's parameters, float32, in any
            implementation and under autocast too: they are composited in float32 anyway, and a
            gradient that is cast to half before it is scaled is lost.
        """
        hidden = self.hidden_in_cube(self.normalise(positions).reshape(-1, 3))
        return hidden.view(*positions.shape[:-1], self.hidden_dim)

    def hidden_in_cube(
        self, positions: Float[Tensor, "points 3"]
    ) -> Float[Tensor, "points hidden"]:
        """Evaluates all trunks at normalised positions in [0, 1]^3; see :meth:`hidden`."""
        hidden = self.trunk(positions)
        if self.more_trunks:
            others = (trunk(positions) for trunk in self.more_trunks)
            hidden = torch.cat([hidden, *others], dim=-1)
        return hidden.to(next(self.trunk.parameters()).dtype)

    def adopt(self, other: "FeatureField") -> None:
        """Adds the trunks and heads of another field of the same sizes to its own.

        The features of its present heads do not change.

        Raises:
            F3rmError: If sizes or implementation differ, or a head's name is taken.
        """
        if other.config.parameters != self.config.parameters:
            msg = (
                f"Both fields must have the same sizes, got {self.config} and {other.config}. "
                "Train the second with the sizes of the first."
            )
            raise F3rmError(msg)
        taken = sorted(set(self.heads) & set(other.heads))
        if taken:
            msg = f"Heads must have different names, got {taken} twice. Leave one out."
            raise F3rmError(msg)
        first = 1 + len(self.more_trunks)
        self.more_trunks.extend([other.trunk, *other.more_trunks])
        for name in other.heads:
            head = other.head(name)
            head.trunk += first
            self.heads[name] = head
        for name in self.heads:
            self.head(name).num_trunks = 1 + len(self.more_trunks)

    def forward(self, ray_samples: RaySamples) -> FieldOutputs:
        """Evaluates the trunks at ray samples, without gradient into their positions.

        Returns:
            ``HIDDEN`` (rays, samples, hidden), and ``FEATURE`` (rays, samples, channels) on demand.
        """
        hidden = self.hidden(ray_samples.frustums.get_positions())
        return FieldOutputs(hidden, [self.head(name) for name in self.heads])

    def get_extra_state(self) -> dict[str, Any]:
        """Returns the heads and the implementation, so that a run opens without its cache."""
        return {
            "implementation": self.config.parameters.implementation,
            "heads": [spec.to_dict() for spec in self.specs],
            "trunks": [self.head(name).trunk for name in self.heads],
        }

    def set_extra_state(self, state: Mapping[str, Any]) -> None:
        """Rebuilds a checkpoint's heads; torch calls it before their weights load.

        Raises:
            ImplementationError: If the checkpoint's parameters belong to another implementation.
            F3rmError: If training resumes with other heads than the checkpoint's.
        """
        saved = state["implementation"]
        if saved != self.config.parameters.implementation:
            msg = (
                f"The checkpoint was trained with implementation {saved!r}, this model runs "
                f"{self.config.implementation!r}; their parameters do not fit. Pass "
                f"--pipeline.model.implementation {saved} (needs a CUDA device and tiny-cuda-nn "
                "for 'tcnn')."
            )
            raise ImplementationError(msg)
        specs = [HeadSpec.from_dict(plain) for plain in state["heads"]]
        trunks: Sequence[int] = state.get("trunks", [0] * len(specs))
        sizes = [(spec.name, spec.channels) for spec in specs]
        here = [(spec.name, spec.channels) for spec in self.specs]
        if sizes == here and not any(trunks) and not self.more_trunks:
            if self.training:
                self._check_models(specs)
                return
            if specs == list(self.specs):
                return
        if self.training and len(self.heads):
            if any(trunks):
                msg = (
                    f"The head {sizes[trunks.index(max(trunks))][0]!r} was added to this run "
                    "later, and ns-train cannot continue it. Add it again, with more steps, to the "
                    "original run: f3rm attach --help."
                )
                raise F3rmError(msg)
            msg = (
                f"The checkpoint has the heads {sizes}, the data has {here}. Resume "
                "with the feature type and weights of the first run."
            )
            raise F3rmError(msg)
        self._build_heads(list(zip(specs, trunks, strict=True)))

    def _check_models(self, saved: Sequence[HeadSpec]) -> None:
        for before, now in zip(saved, self.specs, strict=True):
            if not before.is_same_model(now):
                msg = (
                    f"The head {now.name!r} of the checkpoint distils "
                    f"{_model_text(before)}, the data has features of {_model_text(now)}. Resume "
                    "with the weights of the first run, from any place, or start a new run."
                )
                raise F3rmError(msg)

    def _build_heads(self, heads: Sequence[tuple[HeadSpec, int]]) -> None:
        """Builds heads, each with the index of its trunk, and their trunks."""
        network = self.config.network
        device = next((p.device for p in self.trunk.parameters()), torch.device("cpu"))
        num_trunks = 1 + max((trunk for _, trunk in heads), default=0)
        self.more_trunks = nn.ModuleList(
            build_network(network, self.config.implementation) for _ in range(num_trunks - 1)
        ).to(device)
        self.heads.clear()
        for spec, trunk in heads:
            head = FeatureHead(spec, network.hidden_dim, trunk=trunk, num_trunks=num_trunks)
            self.heads[spec.name] = head.to(device)


def _model_text(spec: HeadSpec) -> str:
    ref = spec.backbone
    known = f" ({spec.identity})" if spec.identity else ""
    return f"{ref.adapter}:{ref.model}@{ref.weights}{known}"
