"""The seed of everything that tests train: 0, or what ``make test-seeds`` sets."""

import os

TRAIN_SEED = int(os.environ.get("F3RM_TRAIN_SEED", "0"))
