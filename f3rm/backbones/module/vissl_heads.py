"""VISSL's heads, built from the configuration and filled from the checkpoint.

A reference carries them after its model's name, and so do caches, workers and manifests:
``torchvision:resnet50#{"heads":[["mlp",{"dims":[2048,1000]}]]}``. Heads follow one another on the
trunk's pooled output. Their parameters are called ``heads.<number>.clf...`` in the checkpoint.

*Source:* https://github.com/facebookresearch/vissl, ``vissl/models/heads`` (MIT; no code of it is
used).
"""

import itertools
import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from f3rm.backbones.checkpoint import read_state_dict
from f3rm.backbones.weights import local_weights, near_matches, unavailable
from f3rm.errors import BackboneRef

_MARK = "#"
_PREFIX = "heads."
_LEAST_DIMS = 2
_MLP = {
    "dims": None,
    "use_bn": False,
    "use_relu": False,
    "use_dropout": False,
    "use_bias": True,
    "skip_last_layer_relu_bn": True,
}
_EVAL_MLP = {"in_channels": None, "dims": None, "use_bn": False, "use_relu": False}
_HANDED_ON = ("dims", "use_bn", "use_relu")
_KNOWN = {"mlp": _MLP, "eval_mlp": _EVAL_MLP}


class HeadError(ValueError):
    """A head of another kind, or with options that cannot be built."""


class Mlp(nn.Module):
    """VISSL's ``mlp``: linear layers with norm, activation and dropout between them.

    Args:
        options: VISSL's options, complete.
        eps: Epsilon of the batch norms.
    """

    def __init__(self, options: Mapping[str, Any], eps: float) -> None:
        super().__init__()
        dims: Sequence[int] = options["dims"]
        layers: list[nn.Module] = []
        for number, (inputs, outputs) in enumerate(itertools.pairwise(dims), start=2):
            layers.append(nn.Linear(inputs, outputs, bias=options["use_bias"]))
            if number == len(dims) and options["skip_last_layer_relu_bn"]:
                break
            if options["use_bn"]:
                layers.append(nn.BatchNorm1d(outputs, eps=eps))
            if options["use_relu"]:
                layers.append(nn.ReLU())
            if options["use_dropout"]:
                layers.append(nn.Dropout())
        self.clf = nn.Sequential(*layers)

    def forward(self, features: Tensor) -> Tensor:
        """Maps (batch, channels, ...) to (batch, outputs)."""
        return self.clf(features.flatten(1))


class EvalMlp(nn.Module):
    """VISSL's ``eval_mlp``: a batch norm over channels, then an :class:`Mlp`.

    Args:
        options: VISSL's options, complete.
        eps: Epsilon of the batch norm.
    """

    def __init__(self, options: Mapping[str, Any], eps: float) -> None:
        super().__init__()
        self.channel_bn = nn.BatchNorm2d(options["in_channels"], eps=eps)
        self.clf = Mlp({**_MLP, **{key: options[key] for key in _HANDED_ON}}, eps)

    def forward(self, features: Tensor) -> Tensor:
        """Maps (batch, channels) or (batch, channels, rows, cols) to (batch, outputs)."""
        return self.clf(self.channel_bn(features.reshape(*features.shape[:2], -1, 1)))


def check_heads(params: object) -> list[tuple[str, dict[str, Any]]]:
    """Reads ``HEAD.PARAMS``: a chain of heads.

    Args:
        params: A list of ``[name, options]``.

    Returns:
        Names and complete options.

    Raises:
        HeadError: If a head is of a kind, or has an option, that cannot be built exactly.
    """
    if not isinstance(params, Sequence) or isinstance(params, str) or not params:
        raise HeadError(f"HEAD.PARAMS must be a list of [name, options], got {params!r}")
    return [_head(entry) for entry in params]


def with_heads(ref: BackboneRef, params: object, *, eps: float = 1e-5) -> BackboneRef:
    """Returns a reference whose ``head`` layer is VISSL's.

    Raises:
        HeadError: As :func:`check_heads`.
    """
    plain = {"heads": check_heads(params), "eps": eps}
    return replace(ref, model=f"{ref.model}{_MARK}{json.dumps(plain, sort_keys=True)}")


def split_heads(ref: BackboneRef) -> tuple[BackboneRef, str]:
    """Returns a reference without heads, and their description; empty if there are none."""
    model, _, described = ref.model.partition(_MARK)
    return replace(ref, model=model), described


def load_heads(ref: BackboneRef, described: str) -> nn.Module:
    """Builds heads and fills them from the reference's weight file.

    Args:
        ref: The reference without heads.
        described: The description from :func:`split_heads`.

    Raises:
        BackboneUnavailableError: If they cannot be built, or the file does not hold them.
    """
    path = local_weights(ref)
    if path is None:
        raise unavailable(ref, "VISSL's heads are read from a checkpoint; give its file")
    try:
        plain = json.loads(described)
        eps = float(plain["eps"])
        checked = check_heads(plain["heads"])
        with torch.device("meta"):
            heads = nn.Sequential(*(_build(name, options, eps) for name, options in checked))
    except (ValueError, KeyError, TypeError, RuntimeError) as error:
        raise unavailable(ref, f"its heads cannot be built ({error})") from error
    state = read_state_dict(path, keep=lambda name: name.startswith(_PREFIX))
    own = {name.removeprefix(_PREFIX): tensor.float() for name, tensor in state.items()}
    # float() also converted the batch norms' counters, which must be integers.
    counters = {k: torch.zeros((), dtype=torch.long) for k in own if k.endswith("_tracked")}
    try:
        heads.load_state_dict({**own, **counters}, assign=True)
    except RuntimeError as error:
        reason = " ".join(str(error).split())
        raise unavailable(ref, f"the checkpoint does not hold these heads ({reason})") from error
    return heads.eval().requires_grad_(requires_grad=False)


def _build(name: str, options: Mapping[str, Any], eps: float) -> nn.Module:
    return Mlp(options, eps) if name == "mlp" else EvalMlp(options, eps)


def _head(entry: object) -> tuple[str, dict[str, Any]]:
    pair = list(entry) if isinstance(entry, Sequence) and not isinstance(entry, str) else []
    if len(pair) != 2 or not isinstance(pair[0], str) or not isinstance(pair[1], Mapping):
        raise HeadError(
            f"a head of HEAD.PARAMS must be [name, options] on the trunk's output, got {entry!r}; "
            "one head per feature cannot be built"
        )
    name, options = pair[0], dict(pair[1])
    if name not in _KNOWN:
        raise HeadError(f"the head {name!r} cannot be built; {near_matches(name, _KNOWN)}")
    defaults = _KNOWN[name]
    unknown = sorted(set(options) - set(defaults))
    lacking = [key for key, value in defaults.items() if value is None and key not in options]
    if unknown or lacking:
        raise HeadError(f"the head {name!r} has unknown options {unknown} or lacks {lacking}")
    dims = options["dims"]
    if not isinstance(dims, Sequence) or len(dims) < _LEAST_DIMS:
        raise HeadError(f"the head {name!r} must have dims of two numbers or more, got {dims!r}")
    return name, {**defaults, **options, "dims": list(dims)}
