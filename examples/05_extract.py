"""Extract: reads several taps of a backbone in one pass and stores them, without any 3D.

    python examples/05_extract.py --data datasets/tabletop

``--data`` is a folder of images, a list, a pattern, or a dataset such as that of 01_train.py.
`f3rm layers --feature-type TINYCLIP` lists what a backbone has; with weights from the hub try
``--backbone dinov2:facebook/dinov2-base --taps final@cls -1:query@all``.
"""

from pathlib import Path

import tyro

from f3rm.extract import FeatureDataset, FeatureSpec, extract, list_items


def main(
    data: Path = Path("datasets/tabletop"),
    out: Path = Path("features"),
    backbone: str = "TINYCLIP",
    taps: tuple[str, ...] = ("-1|dense(maskclip)|adaptive_avg(6,8)", "-1|dense(maskclip)|mean"),
    size: int = 224,
) -> None:
    """Extracts the taps, or opens them if they are extracted already, and prints their shapes.

    Args:
        data: The images.
        out: Folder of the results.
        backbone: A feature type, or adapter:model@weights.
        taps: Where the backbone is read.
        size: Length of the shorter image side in pixels.
    """
    spec = FeatureSpec.of(backbone, taps, prep={"size": size})
    store = extract(list_items(data), spec, out, device="cpu", progress=False)
    print(f"{len(store)} images in {out}")
    for tap in store.taps:
        table = store.load(tap)  # features, targets, indices, names
        print(f"{tap}: {tuple(table.features.shape)}")
    sample = FeatureDataset(store, store.taps[-1])[0]  # a PyTorch dataset
    print(f"The first of a training loop: {tuple(sample['features'].shape)}")


if __name__ == "__main__":
    tyro.cli(main)
