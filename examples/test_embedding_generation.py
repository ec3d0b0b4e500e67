r"""Tries a video autoencoder on one image: shapes, speed, batches, a small classifier.

    python examples/test_embedding_generation.py --ckpt_path CHECKPOINT --image test_image.jpg \
        --benchmark --num_iterations 20 --batch_test --demo_classifier

The same command as `f3rm image2rep`.
"""

import sys

from f3rm.scripts import Image2Rep, run_command

if __name__ == "__main__":
    sys.exit(run_command(Image2Rep))
