"""VISSL's command for feature extraction, under its own name.

python tools/run_distributed_engines.py config=feature_extraction/extract_resnet_in1k_8gpu ...
"""

import sys

from f3rm.scripts import RunDistributedEngines, run_command

if __name__ == "__main__":
    sys.exit(run_command(RunDistributedEngines))
