"""What a backbone's features are like in general, read from a file beside its weights.

``calibration.safetensors`` has ``mean`` and ``moments`` of unit features of pictures of anything. A
text's cosine to these has a mean and a standard deviation: what is far above is no accident.
"""

from dataclasses import dataclass
from pathlib import Path

from jaxtyping import Float
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn import functional

from f3rm.errors import StrPath, as_path

FILE_NAME = "calibration.safetensors"

_LEAST_VARIANCE = 1e-12


@dataclass(frozen=True)
class Calibration:
    """Statistics of unit features.

    Attributes:
        mean: Their mean.
        moments: The mean of their outer products.
    """

    mean: Float[Tensor, " channels"]
    moments: Float[Tensor, "channels channels"]

    @classmethod
    def of(cls, features: Float[Tensor, "samples channels"]) -> "Calibration":
        """Measures features of any length, of many different pictures."""
        units = functional.normalize(features.float(), dim=-1)
        return cls(units.mean(0), units.T @ units / len(units))

    def cosines(
        self, texts: Float[Tensor, "texts channels"]
    ) -> tuple[Float[Tensor, " texts"], Float[Tensor, " texts"]]:
        """Returns mean and standard deviation of the features' cosine to unit vectors."""
        mean = texts @ self.mean.to(texts)
        squared = (texts @ self.moments.to(texts) * texts).sum(-1)
        return mean, (squared - mean.square()).clamp_min(_LEAST_VARIANCE).sqrt()

    def write(self, folder: StrPath) -> Path:
        """Writes the file into the folder of the weights; returns it."""
        path = as_path(folder) / FILE_NAME
        save_file({"mean": self.mean, "moments": self.moments}, path)
        return path


def read_calibration(folder: Path | None) -> Calibration | None:
    """Reads the calibration of the model in a folder; None where it has none.

    Args:
        folder: The folder of the weights; None for weights that are elsewhere.
    """
    file = None if folder is None else folder / FILE_NAME
    if file is None or not file.is_file():
        return None
    stored = load_file(file)
    return Calibration(stored["mean"], stored["moments"])
