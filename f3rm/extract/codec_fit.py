"""The codec of a run: loaded, or fitted once before the first chunk and shared by all workers.

The sample is determined by the list of images. A cache that gets new images keeps its codec, so
that its chunks stay valid; ``--force`` fits a new one.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from f3rm.errors import CacheError
from f3rm.extract.encoder import Encoder, check_finite
from f3rm.extract.locks.chunk_reuse import older_codecs
from f3rm.extract.locks.folders import older_folders
from f3rm.extract.locks.journal import CODEC
from f3rm.extract.plan import ChunkPlan
from f3rm.extract.writer import CacheWriter
from f3rm.store.codec_files import read_codec
from f3rm.store.codecs import Codec, fit_codec
from f3rm.store.images import ImageInfo
from f3rm.store.manifest import CodecRecord

SAMPLE_IMAGES = 16
SAMPLE_CELLS = 1024
"""Cells per image, at most about twice as many."""


def load_or_fit_codec(
    writer: CacheWriter, plans: Sequence[ChunkPlan], encoder: Encoder
) -> CodecRecord:
    """Gives the encoder its codec: the run's, an older cache's, or one fitted now.

    Args:
        writer: This worker's view of the run.
        plans: All chunks.
        encoder: Computes the sample; its ``codec`` is set afterwards.

    Returns:
        The manifest's record of the codec.

    Raises:
        CacheError: If the file system refuses, the codec cannot be fitted, or the run has ended.
        ImageError: If an image of the sample cannot be read.
        DeviceError: If not even one image fits into memory.
    """
    if encoder.spec.stored.name == "none":  # fp16 and fp32 need no fitting
        return CodecRecord()
    while (record := writer.journal.codec()) is None:
        if writer.locks.take(CODEC):
            writer.publish_codec(_older_codec(writer, encoder) or _fitted(plans, encoder))
        else:
            writer.locks.wait()
    # Read back even by the worker that fitted it, so that all compute with the same bits.
    encoder.codec = read_codec(writer.building, record, encoder.channels)
    return record


def _older_codec(writer: CacheWriter, encoder: Encoder) -> Codec | None:
    for folder, record in older_codecs(writer.folder, older_folders(writer.folder), writer.run):
        try:
            codec = read_codec(folder, record, encoder.channels)
        except CacheError:
            continue
        if codec.spec == encoder.spec.stored:
            return codec
    return None


def _fitted(plans: Sequence[ChunkPlan], encoder: Encoder) -> Codec:
    everything = [(plan, info) for plan in plans for info in plan.images]
    count = min(SAMPLE_IMAGES, len(everything))
    # Evenly spaced over the dataset, and not random: every machine would fit the same codec.
    picked = [everything[number * len(everything) // count] for number in range(count)]
    rows = torch.cat([_sample(plan, info, encoder) for plan, info in picked])
    return fit_codec(encoder.spec.stored, rows)


def _sample(plan: ChunkPlan, info: ImageInfo, encoder: Encoder) -> Float[Tensor, "cells channels"]:
    """Returns evenly spaced cells of one image."""
    (features,) = encoder.features([encoder.read(plan, info)], plan)
    check_finite(torch.isfinite(features).flatten(1).all(dim=1), [info])
    cells = features.reshape(-1, features.shape[-1])
    return cells[:: max(1, len(cells) // SAMPLE_CELLS)].cpu()
