r"""Vectors of a folder's images and videos by a video autoencoder, for a classifier.

    python examples/extract_features_for_classifier.py --ckpt_path CHECKPOINT \
        --input_dir IMAGES --output_file features.pt --batch_size 4 --resolution 360,640

The same command as `f3rm image2rep`. `torch.load("features.pt")["features"]` has a row per file;
``--image FILE --benchmark --batch_test --demo_classifier`` tries the encoder.
"""

import sys

from f3rm.scripts import Image2Rep, run_command

if __name__ == "__main__":
    sys.exit(run_command(Image2Rep))
