"""Images -> cached dense features -> rows for training: the source of truth about features.

The modules are the interface; nothing is imported here, so that each part costs only what it needs:

- :mod:`~f3rm.features.items`: which images a dataset has, read from ``transforms.json``.
- :mod:`~f3rm.features.spec`: what to extract: feature types, presets and their keys.
- :mod:`~f3rm.features.images`: decoding, and the check of every image before anything is written.
- :mod:`~f3rm.features.geometry`: sizes, and the map from pixels to feature cells.
- :mod:`~f3rm.features.plan`: which images share a chunk.
- :mod:`~f3rm.features.encode`: decoded images -> backbone -> rows of a chunk.
- :mod:`~f3rm.features.extraction`: the whole run: preflight, lock, chunks, commit.
- :mod:`~f3rm.features.writer` and :mod:`~f3rm.features.journal`: atomic files, resuming,
  committing.
- :mod:`~f3rm.features.manifest` and :mod:`~f3rm.features.records`: what a
  finished cache says about itself.
- :mod:`~f3rm.features.cache`: where a cache lies and whether it is valid.
- :mod:`~f3rm.features.store`: reading a cache: maps, rows at pixels, random cells.
- :mod:`~f3rm.features.device`: the device a name such as ``auto`` means on this machine.
- :mod:`~f3rm.features.standalone`: whole datasets in one call; the names that scripts use.
"""
