"""Images -> cached dense features -> rows for training: the source of truth about features.

The modules are the interface; nothing is imported here, so that each part costs only what it needs:

- :mod:`~f3rm.features.items`: which images a dataset has, read from ``transforms.json``.
- :mod:`~f3rm.features.spec`: what to extract: feature types, presets and their keys.
- :mod:`~f3rm.features.images`: decoding, and the check of every image before anything is written.
- :mod:`~f3rm.features.geometry`: sizes, and the map from pixels to feature cells.
- :mod:`~f3rm.features.plan`: which images share a chunk.
- :mod:`~f3rm.features.encode` and :mod:`~f3rm.features.stored_rows`: decoded images ->
  backbone -> rows of a chunk.
- :mod:`~f3rm.features.codecs`, :mod:`~f3rm.features.codec_files` and
  :mod:`~f3rm.features.fit`: how rows become numbers on disk.
- :mod:`~f3rm.features.extraction` and :mod:`~f3rm.features.job`: what is asked for; use what is
  valid, make what is missing.
- :mod:`~f3rm.features.work` and :mod:`~f3rm.features.pipeline`: one worker: decode ahead, compute,
  write behind.
- :mod:`~f3rm.features.session` and :mod:`~f3rm.features.claims`: several workers at once.
- :mod:`~f3rm.features.engines`: who starts them.
- :mod:`~f3rm.features.preflight` and :mod:`~f3rm.features.preview`: what a run will cost.
- :mod:`~f3rm.features.writer`, :mod:`~f3rm.features.journal`, :mod:`~f3rm.features.folders` and
  :mod:`~f3rm.features.older`: atomic files, resuming, committing, what older caches leave.
- :mod:`~f3rm.features.manifest`, :mod:`~f3rm.features.manifest_fields` and
  :mod:`~f3rm.features.records`: what a finished cache says about itself.
- :mod:`~f3rm.features.cache`: where a cache lies and whether it is valid.
- :mod:`~f3rm.features.maintenance`: verify, repair, remove.
- :mod:`~f3rm.features.legacy`: caches of the earlier extractor.
- :mod:`~f3rm.features.store`: reading a cache: maps, rows at pixels, random cells.
- :mod:`~f3rm.features.gather`, :mod:`~f3rm.features.gather_fast`, :mod:`~f3rm.features.paging` and
  :mod:`~f3rm.features.places`: many random rows at once, from memory or from a cold disk.
- :mod:`~f3rm.features.residence`, :mod:`~f3rm.features.lookup` and
  :mod:`~f3rm.features.prefetch`: where rows are while training, by pixel, before they are needed.
- :mod:`~f3rm.features.device`: the device a name such as ``auto`` means on this machine.
- :mod:`~f3rm.features.standalone`: whole datasets in one call; the names that scripts use.
"""
