import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st

from f3rm.errors import CacheError, CacheMismatchError, FeatureTypeError
from f3rm.store.codec_files import read_codec, write_codec
from f3rm.store.codecs import (
    CodecSpec,
    CosineError,
    combine_errors,
    cosine_error,
    fit_codec,
    load_codec,
    parse_codec,
)
from f3rm.store.manifest import CodecRecord

ALL = ["fp16", "fp32", "int8", "pca3", "pca8"]


def rows_of(num: int = 200, channels: int = 8, seed: int = 0) -> torch.Tensor:
    """Correlated features with an offset and very different scales."""
    generator = torch.Generator().manual_seed(seed)
    mixed = torch.randn(num, channels, generator=generator)
    mixed = mixed @ torch.randn(channels, channels, generator=generator)
    return mixed * torch.logspace(-3, 2, channels) + 5


@pytest.mark.parametrize("text", [*ALL, " PCA128 "])
def test_names_are_read_and_said_again(text):
    assert parse_codec(parse_codec(text).text) == parse_codec(text)
    assert parse_codec(text).text == text.strip().lower()


@pytest.mark.parametrize("text", ["", "pca", "pca0", "pca-1", "pca999999", "int4", "fp8"])
def test_other_names_are_refused(text):
    with pytest.raises(FeatureTypeError, match=r"^--codec must be fp16, fp32, int8 or pca"):
        parse_codec(text)


def test_plain_types_store_the_channels():
    rows = rows_of()
    assert torch.equal(fit_codec(parse_codec("fp32"), rows).encode(rows), rows)
    half = fit_codec(parse_codec("fp16"), rows)
    assert torch.equal(half.encode(rows), rows.half())
    assert torch.equal(half.decode(rows.half()), rows.half().float())


def test_float16_may_overflow_and_be_widened():
    codec = fit_codec(parse_codec("fp16"), torch.full((2, 3), 1e6))
    assert codec.encode(torch.full((1, 3), 1e6)).isinf().all()
    assert torch.equal(codec.encode(torch.full((1, 3), 1e6), "float32"), torch.full((1, 3), 1e6))


@settings(max_examples=50, deadline=None)
@given(st.integers(2, 100), st.integers(1, 12), st.integers(0, 1000))
def test_int8_is_off_by_at_most_half_a_step_and_clips_outside(num, channels, seed):
    rows = rows_of(num, channels, seed)
    codec = fit_codec(parse_codec("int8"), rows)
    assert codec.encode(rows).dtype == torch.int8
    lost = (codec.decode(codec.encode(rows)) - rows).abs()
    assert (lost <= codec.arrays["scale"] * 0.501 + 1e-4).all()
    far = codec.decode(codec.encode(rows + 1e6))
    highest = rows.amax(dim=0)
    torch.testing.assert_close(far, highest.expand_as(far), rtol=1e-4, atol=1e-4)


def test_a_constant_channel_comes_back_exactly():
    rows = torch.stack([torch.full((9,), 2.5), torch.arange(9.0)], dim=-1)
    codec = fit_codec(parse_codec("int8"), rows)
    assert torch.equal(codec.decode(codec.encode(rows))[:, 0], rows[:, 0])


def test_a_whole_basis_loses_only_the_rounding():
    rows = rows_of()
    codec = fit_codec(parse_codec("pca8"), rows)
    exact = codec.decode(codec.encode(rows, "float32"))
    torch.testing.assert_close(exact, rows, rtol=1e-4, atol=1e-3)
    assert cosine_error(rows, codec.decode(codec.encode(rows))).worst < 1e-5


def test_the_basis_is_orthonormal_and_the_best_of_its_size():
    rows = rows_of().double()
    basis = fit_codec(parse_codec("pca3"), rows).arrays["basis"].double()
    torch.testing.assert_close(basis @ basis.T, torch.eye(3).double(), atol=1e-5, rtol=0)
    centred = rows - rows.mean(dim=0)
    singular = torch.linalg.svdvals(centred)
    left = (centred - centred @ basis.T @ basis).norm()
    torch.testing.assert_close(left, singular[3:].norm(), rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("text", ALL)
def test_decoding_is_affine_so_codes_may_be_blended(text):
    rows = rows_of()
    codec = fit_codec(parse_codec(text), rows)
    first, second = codec.encode(rows[:50]), codec.encode(rows[50:100])
    blended = codec.decode(first.float().lerp(second.float(), 0.3))
    expected = codec.decode(first).lerp(codec.decode(second), 0.3)
    torch.testing.assert_close(blended, expected, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("text", ALL)
def test_leading_axes_are_kept_and_the_stored_width_is_told(text):
    rows = rows_of(24)
    codec = fit_codec(parse_codec(text), rows)
    maps = rows.reshape(2, 3, 4, 8)
    stored = codec.encode(maps)
    assert stored.shape == (2, 3, 4, codec.stored_channels)
    assert codec.decode(stored).shape == maps.shape
    assert torch.equal(stored.reshape(24, -1), codec.encode(rows))


@pytest.mark.parametrize("text", ALL)
def test_fitting_is_repeatable_and_files_bring_it_back(tmp_path, text):
    rows = rows_of()
    codec = fit_codec(parse_codec(text), rows)
    again = fit_codec(parse_codec(text), rows)
    arrays = write_codec(tmp_path, codec)
    assert {array.file for array in arrays} == {f"codec_{name}.npy" for name in codec.arrays}
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(a.file for a in arrays)
    read = read_codec(tmp_path, CodecRecord(codec.spec.name, arrays), 8)
    assert read.stored_channels == codec.stored_channels
    for name, array in codec.arrays.items():
        assert torch.equal(again.arrays[name], array)
        assert torch.equal(read.arrays[name], array)
    stored = codec.encode(rows)
    assert torch.equal(read.decode(stored), codec.to("cpu").decode(stored))


@pytest.mark.parametrize("fault", ["gone", "cut", "flipped", "name", "shape"])
def test_a_damaged_array_is_named(tmp_path, fault):
    (first, second) = write_codec(tmp_path, fit_codec(parse_codec("int8"), rows_of()))
    path = tmp_path / first.file
    content = path.read_bytes()
    if fault == "gone":
        path.unlink()
    elif fault == "cut":
        path.write_bytes(content[:-1])
    elif fault == "flipped":
        path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    elif fault == "name":
        first = type(first)(**{**vars(first), "file": "../codec_scale.npy"})
    else:
        first = type(first)(**{**vars(first), "shape": (9,)})
    with pytest.raises(CacheMismatchError, match=r"codec_scale\.npy' is not the array"):
        read_codec(tmp_path, CodecRecord("int8", (first, second)), 8)


def test_arrays_that_do_not_fit_are_refused():
    with pytest.raises(CacheError, match="needs arrays of the shapes"):
        load_codec("int8", {"scale": np.ones(8, np.float32)}, 8)
    with pytest.raises(CacheError, match="needs arrays of the shapes"):
        load_codec("pca", {"mean": np.ones(8), "basis": np.ones((9, 8))}, 8)
    with pytest.raises(CacheError, match="--codec pca9 needs at least 2 features of at least 9"):
        fit_codec(CodecSpec("pca", "float16", 9), rows_of())


def test_cosine_error_by_hand():
    """Angles of 0, 60 and 90 degrees; two zeros agree; a lost vector counts as a right angle."""
    original = torch.tensor([[1.0, 0.0], [1.0, 0.0], [1.0, 0.0], [0.0, 0.0], [1.0, 0.0]])
    half = 3**0.5 / 2
    decoded = torch.tensor([[2.0, 0.0], [0.5, half], [0.0, 1.0], [0.0, 0.0], [0.0, 0.0]])
    error = cosine_error(original, decoded)
    assert error.num == 5
    assert error.mean == pytest.approx((0 + 0.5 + 1 + 0 + 1) / 5)
    assert error.worst == 1
    assert 0.5 < error.p99 <= 1


def test_errors_of_parts_are_weighted():
    parts = [CosineError(1, 0.5, 0.5, 0.5), CosineError(3, 0.25, 0.1, 0.75)]
    assert combine_errors(parts) == CosineError(4, (0.5 + 0.75) / 4, 0.5, 0.75)
