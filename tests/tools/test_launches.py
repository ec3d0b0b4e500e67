"""What f3rm adds to the launches of Nerfacto's training step, and what it saves of them."""


def test_one_head_adds_at_most_80_operations_and_40_kernels_and_nerfacto_takes_140_less(
    benchmark_module,
):
    count = benchmark_module("launches").count
    plain, ours = count(""), count("768")
    assert 0 < ours.dispatched - plain.dispatched <= 80
    assert 0 < ours.kernels - plain.kernels <= 40
    as_is = count("", as_is=True)
    assert plain.kernels <= as_is.kernels - 140
    assert plain.dispatched <= as_is.dispatched - 220
