"""Probes: linear and nearest-neighbour classifiers on features.

Fitting a linear one needs scikit-learn (the extra ``probe``); predicting needs NumPy alone, so that
a saved probe opens anywhere. It is saved as ``probe.safetensors`` and ``probe.json``.
"""

import json
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
from jaxtyping import Float, Int, Shaped
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from f3rm.backbones.optional import require
from f3rm.errors import F3rmError, StrPath, as_path

ProbeKind = Literal["logistic", "ridge", "knn"]

_ARRAYS = "probe.safetensors"
_SETTINGS = "probe.json"
_VERSION = 1
_TINY = 1e-12
"""Smallest standard deviation and length that are divided by."""


class ProbeError(F3rmError):
    """A probe cannot be fitted, saved or read."""


@dataclass(frozen=True)
class Predictions:
    """Predicted classes of some items.

    Attributes:
        labels: (items,) the most probable class.
        confidence: (items,) its probability, or its share of the neighbours, in [0, 1].
    """

    labels: Int[np.ndarray, " items"]
    confidence: Float[np.ndarray, " items"]


@dataclass(frozen=True)
class Score:
    """Quality of predictions.

    Attributes:
        top1: Share of right predictions, in [0, 1].
        macro_f1: F1 averaged over the classes that occur, in [0, 1].
        confusion: Rows are true classes, columns predicted ones.
        classes: Labels of rows and columns.
    """

    top1: float
    macro_f1: float
    confusion: Int[np.ndarray, "classes classes"]
    classes: tuple[int, ...]


class Probe:
    """A classifier on standardised features.

    Attributes:
        kind: ``logistic`` regression, ``ridge`` regression to one-hot labels, or ``knn``: a vote
            of the nearest neighbours by cosine.
        strength: Regularisation of ``ridge``; its inverse for ``logistic``.
        neighbours: Number of neighbours that vote.
    """

    def __init__(
        self, kind: ProbeKind = "logistic", *, strength: float = 1.0, neighbours: int = 20
    ) -> None:
        """Makes an unfitted probe.

        Raises:
            ProbeError: If the kind is unknown or a number not positive.
        """
        if kind not in get_args(ProbeKind) or strength <= 0 or neighbours < 1:
            msg = (
                f"kind must be one of {', '.join(get_args(ProbeKind))}, strength and "
                f"neighbours positive, got {kind!r}, {strength} and {neighbours}."
            )
            raise ProbeError(msg)
        self.kind: ProbeKind = kind
        self.strength = strength
        self.neighbours = neighbours
        self._arrays: dict[str, np.ndarray] = {}

    def fit(
        self, features: Shaped[np.ndarray, "items ..."], labels: Int[np.ndarray, " items"]
    ) -> "Probe":
        """Fits the probe to labelled features and returns it.

        Args:
            features: One row per item; further axes are flattened.
            labels: A whole number per item, at least two different ones.

        Raises:
            ProbeError: If labels do not match the features, have one class only, or features are
                not finite.
            MissingExtraError: If scikit-learn is missing.
        """
        rows = _rows(features)
        classes, targets = np.unique(labels, return_inverse=True)
        if len(rows) != len(labels) or len(classes) < 2:
            msg = (
                "A probe needs one label per item and at least two classes, got "
                f"{len(rows)} items, {len(labels)} labels and {len(classes)} classes."
            )
            raise ProbeError(msg)
        mean, scale = rows.mean(axis=0), rows.std(axis=0)
        scale = np.where(scale > _TINY, scale, 1.0).astype(np.float32)  # constant values stay 0
        self._arrays = {"classes": classes.astype(np.int64), "mean": mean, "scale": scale}
        fitted = self._fitted((rows - mean) / scale, targets, len(classes))
        self._arrays |= {
            name: np.ascontiguousarray(array, dtype=np.float32) for name, array in fitted.items()
        }
        return self

    def probabilities(
        self, features: Shaped[np.ndarray, "items ..."]
    ) -> Float[np.ndarray, "items classes"]:
        """Returns the probability of every class; ``ridge`` gives a softmax of its scores.

        Raises:
            ProbeError: If the probe is not fitted, or features have another length.
        """
        rows = self._standard(features)
        if self.kind == "knn":
            return self._votes(rows)
        scores = rows @ self._arrays["weights"].T + self._arrays["bias"]
        shifted = np.exp(scores - scores.max(axis=1, keepdims=True))
        return shifted / shifted.sum(axis=1, keepdims=True)

    def predict(self, features: Shaped[np.ndarray, "items ..."]) -> Predictions:
        """Returns the most probable class of every item.

        Raises:
            ProbeError: If the probe is not fitted, or features have another length.
        """
        found = self.probabilities(features)
        best = found.argmax(axis=1)
        return Predictions(self._arrays["classes"][best], found[np.arange(len(best)), best])

    def score(
        self, features: Shaped[np.ndarray, "items ..."], labels: Int[np.ndarray, " items"]
    ) -> Score:
        """Compares predictions with true labels.

        Raises:
            ProbeError: If the probe is not fitted, or features have another length.
        """
        predicted = self.predict(features).labels
        classes = np.union1d(self._arrays["classes"], labels)
        confusion = np.zeros((len(classes), len(classes)), dtype=np.int64)
        np.add.at(
            confusion, (np.searchsorted(classes, labels), np.searchsorted(classes, predicted)), 1
        )
        counts = confusion.sum(axis=0) + confusion.sum(axis=1)  # 2 TP + FP + FN per class
        f1 = 2 * np.diag(confusion)[counts > 0] / counts[counts > 0]
        top1 = float((predicted == labels).mean())
        return Score(top1, float(f1.mean()), confusion, tuple(int(label) for label in classes))

    def save(self, folder: StrPath) -> None:
        """Writes ``probe.safetensors`` and ``probe.json``.

        Raises:
            ProbeError: If the probe is not fitted.
        """
        folder = as_path(folder)
        self._check_fitted()
        folder.mkdir(parents=True, exist_ok=True)
        settings = {"kind": self.kind, "strength": self.strength, "neighbours": self.neighbours}
        save_file(self._arrays, str(folder / _ARRAYS))
        text = json.dumps({"version": _VERSION, **settings}, indent=1)
        (folder / _SETTINGS).write_text(f"{text}\n", encoding="utf-8")

    @classmethod
    def load(cls, folder: StrPath) -> "Probe":
        """Reads what :meth:`save` wrote; nothing in it can execute code.

        Raises:
            ProbeError: If it is damaged, or another version wrote it.
        """
        folder = as_path(folder)
        try:
            plain: dict[str, Any] = json.loads((folder / _SETTINGS).read_text(encoding="utf-8"))
            if plain.pop("version") != _VERSION:
                raise ValueError("another version wrote it")
            probe = cls(**plain)
            probe._arrays = load_file(str(folder / _ARRAYS))
        except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
            msg = f"{str(folder)!r} has no usable saved probe: {error}. Fit it again."
            raise ProbeError(msg) from error
        return probe

    def _fitted(
        self, rows: Float[np.ndarray, "items values"], targets: np.ndarray, num_classes: int
    ) -> dict[str, np.ndarray]:
        if self.kind == "knn":
            return {"rows": _unit(rows), "targets": targets}
        linear = require("sklearn.linear_model", extra="probe", purpose="Fitting a linear probe")
        if self.kind == "ridge":
            model = linear.Ridge(alpha=self.strength).fit(rows, np.eye(num_classes)[targets])
            return {"weights": model.coef_, "bias": model.intercept_}
        model = linear.LogisticRegression(C=self.strength, max_iter=1000).fit(rows, targets)
        weights, bias = model.coef_, model.intercept_
        if num_classes == 2:  # one score decides between two: the other class has the score 0
            weights = np.concatenate([np.zeros_like(weights), weights])
            bias = np.concatenate([np.zeros_like(bias), bias])
        return {"weights": weights, "bias": bias}

    def _votes(self, rows: Float[np.ndarray, "items values"]) -> Float[np.ndarray, "items classes"]:
        known, targets = self._arrays["rows"], self._arrays["targets"].astype(np.int64)
        count = min(self.neighbours, len(known))
        similarity = _unit(rows) @ known.T
        nearest = np.argpartition(-similarity, count - 1, axis=1)[:, :count]
        votes = np.zeros((len(rows), len(self._arrays["classes"])), dtype=np.float32)
        np.add.at(votes, (np.arange(len(rows))[:, None], targets[nearest]), 1 / count)
        return votes

    def _standard(
        self, features: Shaped[np.ndarray, "items ..."]
    ) -> Float[np.ndarray, "items values"]:
        self._check_fitted()
        rows = _rows(features)
        if rows.shape[1] != len(self._arrays["mean"]):
            msg = (
                f"The probe was fitted to {len(self._arrays['mean'])} values per item, got "
                f"{rows.shape[1]}. Use the same tap."
            )
            raise ProbeError(msg)
        return (rows - self._arrays["mean"]) / self._arrays["scale"]

    def _check_fitted(self) -> None:
        if not self._arrays:
            raise ProbeError("The probe is not fitted yet. Call fit.")


def _rows(features: Shaped[np.ndarray, "items ..."]) -> Float[np.ndarray, "items values"]:
    rows = np.asarray(features, dtype=np.float32).reshape(len(features), -1)
    if not np.isfinite(rows).all():
        raise ProbeError("Features hold NaN or infinity. Check the model.")
    return rows


def _unit(rows: Float[np.ndarray, "items values"]) -> Float[np.ndarray, "items values"]:
    return rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), _TINY)
