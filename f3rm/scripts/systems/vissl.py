"""``tools/run_distributed_engines.py``: VISSL's command line for feature extraction."""

from dataclasses import dataclass
from typing import Annotated

import tyro

from f3rm.recipes.vissl_engine import run_engine
from f3rm.scripts.command import Command, say


@dataclass
class RunDistributedEngines(Command):
    """Extract features as VISSL's configurations say, e.g. of the layers of a ResNet-50.

    config=feature_extraction/extract_resnet_in1k_8gpu
    +config/feature_extraction/trunk_only=rn50_layers
    config.MODEL.WEIGHTS_INIT.PARAMS_FILE=WEIGHTS
    config.DATA.TRAIN.DATA_PATHS=[FOLDER]
    """

    overrides: Annotated[tuple[str, ...], tyro.conf.Positional]
    """A configuration, further parts of it, and values, in Hydra's grammar."""

    def run(self) -> None:
        """Extracts and prints the files of features.

        Raises:
            F3rmError: If it cannot be done; the message says what to do.
        """
        for path in run_engine(self.overrides):
            say(str(path))
