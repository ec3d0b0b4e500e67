"""What f3rm adds to the launches of Nerfacto's training step, which on a large GPU are its time."""


def test_one_head_adds_at_most_80_dispatched_operations_and_40_kernels(benchmark_module):
    count = benchmark_module("launches").count
    plain, ours = count(""), count("768")
    assert 0 < ours.dispatched - plain.dispatched <= 80
    assert 0 < ours.kernels - plain.kernels <= 40
