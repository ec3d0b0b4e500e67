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
    from f3rm.extract.taps.dataset import FeatureDataset as FeatureDataset
    from f3rm.extract.taps.exports import (
        export_array as export_array,
        export_per_item as export_per_item,
    )
    from f3rm.extract.taps.lists import ItemList as ItemList, list_items as list_items
    from f3rm.extract.taps.live import (
        FeatureExtractor as FeatureExtractor,
        LiveSource as LiveSource,
    )
    from f3rm.extract.taps.prep import Prep as Prep
    from f3rm.extract.taps.probe import Probe as Probe
    from f3rm.extract.taps.run import extract as extract
    from f3rm.extract.taps.spec import ExtractionSpec as ExtractionSpec
    from f3rm.extract.taps.store import TapStore as TapStore

__getattr__ = getter(
    __name__,
    {
        "ExtractionSpec": "f3rm.extract.taps.spec",
        "FeatureDataset": "f3rm.extract.taps.dataset",
        "FeatureExtractor": "f3rm.extract.taps.live",
        "ItemList": "f3rm.extract.taps.lists",
        "LiveSource": "f3rm.extract.taps.live",
        "Prep": "f3rm.extract.taps.prep",
        "Probe": "f3rm.extract.taps.probe",
        "TapStore": "f3rm.extract.taps.store",
        "export_array": "f3rm.extract.taps.exports",
        "export_per_item": "f3rm.extract.taps.exports",
        "extract": "f3rm.extract.taps.run",
        "extract_features": "f3rm.extract.extraction",
        "extract_features_for_dataset": "f3rm.extract.standalone",
        "feature_loader": "f3rm.extract.standalone",
        "jobs_for_dataset": "f3rm.extract.standalone",
        "list_items": "f3rm.extract.taps.lists",
        "preview_job": "f3rm.extract.extraction",
        "repair_cache": "f3rm.extract.maintenance",
        "verify_cache": "f3rm.extract.maintenance",
    },
)
