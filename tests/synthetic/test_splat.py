"""The true splat of a generated scene shows its photographs."""

import torch

from f3rm.scene.splat.loading import load_splat
from f3rm.splats.views import compare
from f3rm.synthetic import splat as true_splat
from f3rm.synthetic.scenes import SceneSettings
from tests.scene_fixtures import write_scene


def test_the_true_splat_shows_the_photographs(tmp_path, monkeypatch):
    monkeypatch.setattr(true_splat, "NUM_GAUSSIANS", 100_000)
    sizes = {"views": 12, "height": 120, "width": 160}
    data = write_scene(tmp_path / "scene", "tabletop", **sizes)
    path = true_splat.write_splat(data, "tabletop", SceneSettings(seed=0, **sizes))
    assert path == data / true_splat.SPLAT_FILE
    splat = load_splat(path, data=data, device=torch.device("cpu"))
    assert 80_000 < len(splat.source.gaussians) < 120_000
    found = compare(splat.source.gaussians, splat.photographs(160)[::3])
    assert found.cover > 0.95
    assert found.psnr >= 21  # with photographs of the default size and all Gaussians, 25
