"""Per file of kernels a call that is right where they are, and the program (tests/emulation/<name>.cpp) to ask."""

from collections.abc import Callable

import torch
from emulation.emulated_ops import combine_routes, combine_routes_backward, plan_routes
from emulation.emulator import Emulator

from artsy_ext.ops import reference


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
    "tests/emulation/kernels/histogram.cuh": ("kernels", run_histogram),
    "tests/emulation/kernels/product.cuh": ("kernels", run_product),
    "tests/emulation/kernels/rotate.cuh": ("kernels", run_rotate),
    "tests/emulation/kernels/segments.cuh": ("kernels", run_segments),
}
