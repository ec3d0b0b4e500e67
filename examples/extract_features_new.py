r"""Features of the Natural Scenes Dataset, under the name of the program that brain encoders use.

    python examples/extract_features_new.py --data_dir DATA/subj01 --output_dir features \
        --subj 01 --backbone dinov2_q --batch_size 16 --device cuda

The same command as `f3rm nsd`; f3rm.recipes.algonauts_dataset reads the results.
"""

import sys

from f3rm.scripts import Nsd, run_command

if __name__ == "__main__":
    sys.exit(run_command(Nsd))
