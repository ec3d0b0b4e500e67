"""Extraction for any purpose: many layers, any output shape, images and videos, with labels.

A feature field needs one dense map per image; this room serves everything else with the same
engine. Nothing is imported here, so that each part costs only what it needs:

- :mod:`~f3rm.toolkit.spec` and :mod:`~f3rm.toolkit.choices`: what to extract: backbone, taps,
  preparation; YAML in and out.
- :mod:`~f3rm.toolkit.prep`: how an image becomes a network input, and the geometry of that.
- :mod:`~f3rm.toolkit.video`: frames of videos, and the rules that choose them.
- :mod:`~f3rm.toolkit.lists`: which images and videos, with labels.
- :mod:`~f3rm.toolkit.live`: features of images at hand, without a disk.
- :mod:`~f3rm.toolkit.arrays`: what that gives: maps, tokens, pooled vectors.
- :mod:`~f3rm.toolkit.runner`: one pass of a model; what live computing and the disk share.
- :mod:`~f3rm.toolkit.layout`, :mod:`~f3rm.toolkit.worker` and :mod:`~f3rm.toolkit.run`: many items
  to disk, with the engine of :mod:`f3rm.features`.
- :mod:`~f3rm.toolkit.store` and :mod:`~f3rm.toolkit.splits`: reading what was extracted.
- :mod:`~f3rm.toolkit.exports`: one array, or a file per item, for other programs.
- :mod:`~f3rm.toolkit.dataset`: a PyTorch dataset of features, cached or computed on the fly.
- :mod:`~f3rm.toolkit.nsd`, :mod:`~f3rm.toolkit.vissl`, :mod:`~f3rm.toolkit.vissl_config` and
  :mod:`~f3rm.toolkit.image2rep`: the layouts and calls of three earlier systems.
- :mod:`~f3rm.toolkit.probe` and :mod:`~f3rm.toolkit.bench`: what features are worth, and cost.
"""
