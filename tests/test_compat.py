"""Nerfstudio's own parts are replaced for a while, and put back."""

import pytest
from torchmetrics.image import lpip

from f3rm.compat import LazyLpips, lazy_lpips


def test_lpips_is_replaced_within_the_block_alone():
    original = lpip.LearnedPerceptualImagePatchSimilarity
    with lazy_lpips():
        assert lpip.LearnedPerceptualImagePatchSimilarity is LazyLpips
    assert lpip.LearnedPerceptualImagePatchSimilarity is original


def test_lpips_comes_back_after_an_error():
    original = lpip.LearnedPerceptualImagePatchSimilarity
    with pytest.raises(RuntimeError, match="no scene"), lazy_lpips():
        raise RuntimeError("no scene")
    assert lpip.LearnedPerceptualImagePatchSimilarity is original
