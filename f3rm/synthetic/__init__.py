"""Generated scenes with ground truth.

Names are resolved on first use.
"""

from typing import TYPE_CHECKING

from f3rm.lazy import getter

if TYPE_CHECKING:
    from f3rm.synthetic.scenes import SceneSettings as SceneSettings, make_scene as make_scene
    from f3rm.synthetic.truth import SceneTruth as SceneTruth

__getattr__ = getter(
    __name__,
    {
        "SceneSettings": "f3rm.synthetic.scenes",
        "SceneTruth": "f3rm.synthetic.truth",
        "make_scene": "f3rm.synthetic.scenes",
    },
)
