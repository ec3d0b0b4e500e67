"""Images to features on disk: for a field (one tap), and for anything else (several taps).

Names are resolved on first use.
"""

from typing import TYPE_CHECKING

from f3rm.lazy import getter

if TYPE_CHECKING:
    from f3rm.extract.extraction import (
        extract_features as extract_features,
        preview_job as preview_job,
    )
    from f3rm.extract.maintenance import repair_cache as repair_cache, verify_cache as verify_cache
    from f3rm.extract.standalone import (
        extract_features_for_dataset as extract_features_for_dataset,
        feature_loader as feature_loader,
        jobs_for_dataset as jobs_for_dataset,
    )
    from f3rm.extract.tables.exports import (
        export_array as export_array,
        export_per_item as export_per_item,
    )
    from f3rm.extract.tables.items import ItemList as ItemList, list_items as list_items
    from f3rm.extract.tables.live import (
        FeatureExtractor as FeatureExtractor,
        LiveSource as LiveSource,
    )
    from f3rm.extract.tables.probe import Probe as Probe
    from f3rm.extract.tables.run import extract as extract
    from f3rm.extract.tables.tables import FeatureDataset as FeatureDataset, TapStore as TapStore
    from f3rm.store.geometry import Prep as Prep
    from f3rm.store.spec import FeatureSpec as FeatureSpec

__getattr__ = getter(
    __name__,
    {
        "FeatureDataset": "f3rm.extract.tables.tables",
        "FeatureExtractor": "f3rm.extract.tables.live",
        "FeatureSpec": "f3rm.store.spec",
        "ItemList": "f3rm.extract.tables.items",
        "LiveSource": "f3rm.extract.tables.live",
        "Prep": "f3rm.store.geometry",
        "Probe": "f3rm.extract.tables.probe",
        "TapStore": "f3rm.extract.tables.tables",
        "export_array": "f3rm.extract.tables.exports",
        "export_per_item": "f3rm.extract.tables.exports",
        "extract": "f3rm.extract.tables.run",
        "extract_features": "f3rm.extract.extraction",
        "extract_features_for_dataset": "f3rm.extract.standalone",
        "feature_loader": "f3rm.extract.standalone",
        "jobs_for_dataset": "f3rm.extract.standalone",
        "list_items": "f3rm.extract.tables.items",
        "preview_job": "f3rm.extract.extraction",
        "repair_cache": "f3rm.extract.maintenance",
        "verify_cache": "f3rm.extract.maintenance",
    },
)
