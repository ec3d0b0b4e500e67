"""Opens a scene: ``scene = f3rm.load(run)``."""

from f3rm.errors import StrPath, as_path, check_number
from f3rm.scene.casting import NUM_RAYS
from f3rm.scene.kept.packed import is_packed, load_packed
from f3rm.scene.run_loading import load_run
from f3rm.scene.scene import Scene
from f3rm.scene.splat.loading import is_splat, load_splat
from f3rm.store.device import resolve_device


def load(
    run: StrPath,
    *,
    data: StrPath | None = None,
    device: str = "auto",
    surface_rays: int = NUM_RAYS,
    show_progress: bool = False,
) -> Scene:
    """Opens a trained run, a packed one, or a splat with the dataset that it was trained on.

    Photographs are read only where they are asked for.

    Args:
        run: Its ``config.yml``, or the folder that has it; a ``.f3rm`` of ``f3rm pack``; or a
            ``.ply`` of Gaussians.
        data: The dataset, where it was moved since training; of a ``.ply`` always.
        device: ``auto``, ``cpu``, ``cuda`` or ``cuda:N``.
        surface_rays: Rays that give the surface points of :meth:`Scene.find`, cast at the first
            search; fewer are faster, more find smaller objects.
        show_progress: Whether a bar is drawn while they are cast.

    Raises:
        RunError: If configuration, checkpoint or dataset cannot be used.
        F3rmError: If splat, device, photographs or features cannot be used.
    """
    check_number("surface_rays", surface_rays, above=0)
    path, place = as_path(run), resolve_device(device)
    if is_packed(path):
        opened = load_packed(path, data=data, device=place)
    else:
        open_it = load_splat if is_splat(path) else load_run
        opened = open_it(path, data=data, device=place)
    return Scene(opened, surface_rays=surface_rays, show_progress=show_progress)
