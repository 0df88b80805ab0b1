"""Per file of kernels a call that is right where they are, and the program (tests/emulation/<name>.cpp) to ask."""

from collections.abc import Callable

import torch
from emulation.emulated_ops import (
    combine_routes,
    combine_routes_backward,
    consolidate,
    encode_spikes,
    plan_routes,
    stdp,
)
from emulation.emulator import Emulator

from artsy_ext.ops import STDPRule, Triplet, reference


def run_plan_routes(emulator: Emulator) -> None:
    for B, S, capacity in ((70, 130, None), (3, 1030, 3 * 1030)):
        mask = torch.rand(B, S) < 0.3
        expected = reference.plan_routes(mask, capacity=capacity)
        for ours, theirs in zip(plan_routes(emulator, mask, capacity), expected, strict=True):
            assert torch.equal(ours, theirs)


def run_combine_routes(emulator: Emulator) -> None:
    routes = reference.plan_routes(torch.rand(9, 5) < 0.5)
    for D, start in ((8, 0), (8, 1), (7, 0)):
        room = torch.randn(len(routes.sample) * D + start)
        y, weight, base = room[start:].view(-1, D), torch.randn(len(routes.sample)), torch.randn(9, D)
        expected = reference.combine_routes(y, routes, weight=weight, base=base)
        assert torch.equal(combine_routes(emulator, y, *routes, weight, base), expected)

        grad, leaves = torch.randn(9, D), (y.clone().requires_grad_(), weight.clone().requires_grad_())
        result = reference.combine_routes(leaves[0], routes, weight=leaves[1], base=base)
        needs = [True] + [False] * 6 + [True, False]
        ours = combine_routes_backward(emulator, grad, y, *routes, weight, base, needs=needs)
        for gradient, theirs in zip(ours, torch.autograd.grad(result, leaves, grad), strict=True):
            torch.testing.assert_close(gradient, theirs)


def run_encode_spikes(emulator: Emulator) -> None:
    for x in (torch.rand(1032), torch.rand(7).double()):
        for code, dtype in (("rate", torch.bool), ("latency", torch.bfloat16)):
            expected = reference.encode_spikes(x, 5, code=code, seed=3, offset=2**32 - 2, dtype=dtype)
            assert torch.equal(
                encode_spikes(emulator, x, 5, code=code, seed=3, offset=2**32 - 2, dtype=dtype), expected
            )


def run_consolidate(emulator: Emulator) -> None:
    for shape, dtype in (((2, 3, 172), torch.float32), ((1, 3, 5), torch.float64)):
        weight, functional = torch.randn(shape, dtype=dtype), torch.rand(shape) < 0.5
        expected = reference.consolidate(weight, functional, 1.0, 0.5)
        assert torch.equal(consolidate(emulator, weight, functional, 1.0, 0.5), expected)


def run_stdp(emulator: Emulator) -> None:
    decays = {"decay_pre": 0.8, "decay_post": 0.7}
    for T, B, rule in (
        (17, 32, STDPRule(**decays, weight_decay=0.1)),  # long enough to be cut in two
        (3, 2, STDPRule(**decays, triplet=Triplet(0.9, 0.8, 0.02, 0.03))),
        (3, 2, STDPRule(**decays, clamp="step", w_min=-0.5, w_max=0.5)),
        (3, 2, STDPRule(**decays, eligibility=0.5)),
    ):
        weight, pre, post = torch.randn(1, 17, 20), torch.rand(T, B, 20) < 0.3, torch.rand(T, B, 1, 17) < 0.3
        amplitudes = (torch.full((1,), 0.01), torch.full((1,), 0.01))
        expected, traces = reference.stdp(weight, pre, post, rule)
        ours, x, *_ = stdp(emulator, weight, pre, post, *amplitudes, *(None,) * 7, **rule.flatten())
        torch.testing.assert_close((ours, x), (expected, traces.pre))


def run_histogram(kernels: Emulator) -> None:
    x = torch.randint(20, (300,)).int()
    counts = torch.zeros(20, dtype=torch.int32)
    kernels.call("histogram", x, 300, counts, 20)
    assert torch.equal(counts, x.bincount(minlength=20).int())


def run_segments(kernels: Emulator, stride: int = 2**24 + 1) -> None:
    x, n, length = torch.randn(101), 7, 45
    sums = torch.empty(n)
    kernels.call("segments", x, len(x), stride, length, sums, n)
    indices = torch.arange(n * length) * stride % len(x)
    torch.testing.assert_close(sums, x[indices].view(n, length).sum(1))


def run_rotate(kernels: Emulator) -> None:
    x = torch.randn(128)
    y = torch.empty_like(x)
    kernels.call("rotate", x, y, 128, 3)
    assert torch.equal(y, x.view(-1, 32).roll(-3, 1).flatten())


def run_product(kernels: Emulator) -> None:
    a, b = torch.randn(32, 64).bfloat16(), torch.randn(24, 64).bfloat16()
    c = torch.empty(32, 24)
    kernels.call("product", a, b, c, 32, 24, 64)
    torch.testing.assert_close(c, a.float() @ b.float().t())


RUNS: dict[str, tuple[str, Callable[[Emulator], None]]] = {
    "csrc/cuda/plan_routes.cuh": ("plan_routes", run_plan_routes),
    "csrc/cuda/combine_routes.cuh": ("combine_routes", run_combine_routes),
    "csrc/cuda/encode_spikes.cuh": ("encode_spikes", run_encode_spikes),
    "csrc/cuda/consolidate.cuh": ("consolidate", run_consolidate),
    "csrc/cuda/stdp.cuh": ("stdp", run_stdp),
    "tests/emulation/kernels/histogram.cuh": ("kernels", run_histogram),
    "tests/emulation/kernels/product.cuh": ("kernels", run_product),
    "tests/emulation/kernels/rotate.cuh": ("kernels", run_rotate),
    "tests/emulation/kernels/segments.cuh": ("kernels", run_segments),
}
