"""The cache of features: its format, and reading it. Loads no model.

Names are resolved on first use.
"""

from typing import TYPE_CHECKING

from f3rm.lazy import getter

if TYPE_CHECKING:
    from f3rm.store.codecs import (
        cosine_error as cosine_error,
        fit_codec as fit_codec,
        parse_codec as parse_codec,
    )
    from f3rm.store.items import ImageItem as ImageItem, read_items as read_items
    from f3rm.store.reader import FeatureStore as FeatureStore, place_stores as place_stores

__getattr__ = getter(
    __name__,
    {
        "FeatureStore": "f3rm.store.reader",
        "ImageItem": "f3rm.store.items",
        "cosine_error": "f3rm.store.codecs",
        "fit_codec": "f3rm.store.codecs",
        "parse_codec": "f3rm.store.codecs",
        "place_stores": "f3rm.store.reader",
        "read_items": "f3rm.store.items",
    },
)
