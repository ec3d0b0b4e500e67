"""Ask: opens a trained run, finds objects by their names and scores points.

    python examples/02_ask.py --queries "orange cone" "pink cone or black mug"

Needs the run of 01_train.py, or any other run with a text tower. A query that nothing matches has a
reason instead of instances.
"""

from pathlib import Path

import tyro

import f3rm


def main(
    run: Path = Path("outputs/tabletop/f3rm-lite/run"),
    queries: tuple[str, ...] = ("orange cone", "pink cone or black mug"),
    rays: int = 20_000,
) -> None:
    """Prints the instances of each query, and the best score on the surfaces.

    Args:
        run: Folder of the run.
        queries: What to look for: phrases, joined by and, or, not and >.
        rays: Rays that sample the surfaces; more find smaller objects.
    """
    scene = f3rm.load(run, surface_rays=rays)
    surface = scene.surface_points(rays, frame="metres")
    for query in queries:
        found = scene.find(query, frame="metres")
        print(f"{query}: {len(found)} found")
        for instance in found:
            print(f"  at {instance.centre.round(2)} m, score {instance.score:.2f}")
        if found.certainty != "found":
            print(f"  {found.certainty}: {found.reason}")
        scores = scene.similarity(surface.positions, query, frame="metres")
        if len(scores):  # none where training ended before there were surfaces
            best = int(scores.argmax())
            place = surface.positions[best].numpy().round(2)
            print(f"  best of {len(scores)} surface points: {float(scores[best]):.2f} at {place} m")


if __name__ == "__main__":
    tyro.cli(main)
