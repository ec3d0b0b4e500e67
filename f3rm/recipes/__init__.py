"""Other systems' files, names and calls on top of extract: NSD, VISSL, Image2Representation.

Names are resolved on first use.
"""

from typing import TYPE_CHECKING

from f3rm.lazy import getter

if TYPE_CHECKING:
    from f3rm.recipes.image2rep import (
        Image2RepresentationExtractor as Image2RepresentationExtractor,
    )
    from f3rm.recipes.nsd import algonauts_dataset as algonauts_dataset
    from f3rm.recipes.vissl import ExtractedFeaturesLoader as ExtractedFeaturesLoader

__getattr__ = getter(
    __name__,
    {
        "ExtractedFeaturesLoader": "f3rm.recipes.vissl",
        "Image2RepresentationExtractor": "f3rm.recipes.image2rep",
        "algonauts_dataset": "f3rm.recipes.nsd",
    },
)
