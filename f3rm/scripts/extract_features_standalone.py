"""Feature extraction as a script: ``extract_features_standalone.py --data DIR``.

The same command as ``f3rm extract``, and the names that other code imports from here. The work is
done in :mod:`f3rm.extract`.
"""

import sys

from f3rm.extract.standalone import (
    LazyFeatures,
    extract_features_for_dataset,
    feature_loader,
    feature_saver,
)
from f3rm.scripts.command import run_command
from f3rm.scripts.extract import Extract

__all__ = ["LazyFeatures", "extract_features_for_dataset", "feature_loader", "feature_saver"]

if __name__ == "__main__":
    sys.exit(run_command(Extract))
