"""``f3rm models``, ``f3rm layers``, ``f3rm shape``: the models, their layers, and shapes."""

from dataclasses import dataclass, replace
from pathlib import Path

from f3rm.backbones.cards import CARDS, Card
from f3rm.backbones.layers import LayerInfo
from f3rm.backbones.registry import adapter_names, load_backbone
from f3rm.extract.tables.live import FeatureExtractor
from f3rm.scripts.command import Command
from f3rm.scripts.taps import choose_spec
from f3rm.store.geometry import Prep
from f3rm.store.spec import ALIASES, PRESETS, parse_backbone, resolve_feature_type


@dataclass
class Models(Command):
    """List the feature types that f3rm knows, and the adapters that load models.

    A feature type, for --feature-type, is a model, the layer that is read, and the preparation of
    images. Several are joined by +, and settings are given in brackets:
    DINO+CLIP[tap=-1|dense(nacclip);window=336,224].
    """

    def run(self) -> None:
        """Prints a table; loads no model and needs no network."""
        rows = [("type", "model", "tap", "image side", "M parameters", "licence")]
        for name, spec in PRESETS.items():
            model, card = spec.backbone.model, CARDS.get(spec.backbone.model, Card("-", 0))
            size = str(card.parameters) if card.parameters else "-"
            taps = ", ".join(spec.taps)
            rows.append((name, model, taps, _side(spec.prep), size, card.licence))
        rows += [(name, f"both of {parts}", "", "", "", "") for name, parts in ALIASES.items()]
        print(_table(rows))
        print(f"\nadapters: {', '.join(adapter_names())}")
        print("f3rm layers --feature-type TYPE lists the layers of a model.")


@dataclass
class Layers(Command):
    """List the layers of a model, and the facets and operations of taps on each.

    A tap is layer[:facet][@select][|operation]..., for example -1:key, final@all|proj or
    res4|avg(8,3,0). The weights are loaded, and downloaded if they are missing.
    """

    feature_type: str = "CLIP"
    """A feature type: CLIP, DINO, DINOV2, ...; f3rm models lists them."""
    weights: tuple[str, ...] = ()
    """Weights other than the default, by type: CLIP=PATH."""
    backbone: str | None = None
    """A model instead of a feature type: adapter:model@weights, as for f3rm extract."""

    def run(self) -> None:
        """Prints a table per model.

        Raises:
            F3rmError: If the type is unknown or its weights cannot be loaded.
        """
        specs = resolve_feature_type(self.feature_type, weights=self.weights)
        refs = {spec.name: spec.backbone for spec in specs}
        if self.backbone is not None:
            ref = parse_backbone(self.backbone)
            refs = {ref.adapter: ref}
        for name, ref in refs.items():
            backbone = load_backbone(ref)
            print(f"{name}: {backbone.ref.model}, its features are {backbone.default_tap}")
            rows = [("layer", "kind", "channels", "pixels per cell", "facets", "operations")]
            print(_table([*rows, *(_row(layer) for layer in backbone.layers())]))
            if backbone.dense_rules:
                print(f"dense rules: {', '.join(backbone.dense_rules)}")


@dataclass
class Shape(Command):
    """Print the shape of features for images of a size, without extracting any."""

    height: int
    """Height of the images in pixels."""
    width: int
    """Width of the images in pixels."""
    feature_type: str = "CLIP"
    """A feature type, perhaps with settings in brackets: CLIP[side=448]."""
    weights: tuple[str, ...] = ()
    """Weights other than the default, by type: CLIP=PATH."""
    taps: tuple[str, ...] = ()
    """Taps whose shapes are printed, instead of the feature type's own: -1:query@all ..."""
    backbone: str | None = None
    """A model instead of a feature type, as for f3rm extract; needs --spec or --taps."""
    spec: Path | None = None
    """YAML with backbone, taps and preparation, as for f3rm extract."""

    def run(self) -> None:
        """Prints one line per tap.

        Raises:
            F3rmError: If a name is unknown or the weights cannot be loaded.
        """
        if self.backbone is not None or self.spec is not None:
            spec = choose_spec(self.spec, self.backbone, self.taps).spec
            specs = {spec.backbone.model: spec}
        else:
            chosen = resolve_feature_type(self.feature_type, weights=self.weights)
            specs = {spec.name: replace(spec, taps=self.taps or spec.taps) for spec in chosen}
        for name, spec in specs.items():
            extractor = FeatureExtractor(spec)
            size = extractor.runner.place((self.height, self.width)).canvas
            for tap, shape in extractor.shape(self.height, self.width).items():
                print(f"{name}: {tap} at {size[0]} x {size[1]} pixels gives {_sides(shape)}")


def _side(prep: Prep) -> str:
    return f"{prep.size} ({'square' if prep.fit == 'square' else 'shorter'})"


def _sides(shape: tuple[int, ...]) -> str:
    return " x ".join(str(length) for length in shape)


def _row(layer: LayerInfo) -> tuple[str, ...]:
    stride = str(layer.stride) if layer.stride else "-"
    facets, ops = ", ".join(layer.facets), ", ".join(layer.ops)
    return layer.name, layer.kind, str(layer.channels), stride, facets, ops


def _table(rows: list[tuple[str, ...]]) -> str:
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return "\n".join(
        "  ".join(word.ljust(width) for word, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    )
