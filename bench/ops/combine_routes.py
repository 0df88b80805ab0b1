"""combine_routes beside index_add, scatter_add and a sparse product.

pytest bench/ops/combine_routes.py
"""

from functools import partial

import torch
from torch import Tensor

from artsy_ext.ops import Routes, combine_routes, plan_routes, reference
from bench.case import OURS, PASSES, Case, Cost, Work, compiled, size, work

FUNCTIONAL = 2  # sub-networks per sample, on average


def ours(y: Tensor, routes: Routes, weight: Tensor) -> Tensor:
    return combine_routes(y, routes, weight=weight)


def definition(y: Tensor, routes: Routes, weight: Tensor) -> Tensor:
    return reference.combine_routes(y, routes, weight=weight)


def weighted(y: Tensor, weight: Tensor) -> Tensor:
    return y * weight.view(-1, *[1] * (y.dim() - 1))


def index_add(y: Tensor, routes: Routes, weight: Tensor) -> Tensor:
    result = y.new_zeros(len(routes.sample_offsets) - 1, *y.shape[1:])
    return result.index_add(0, routes.sample, weighted(y, weight))


def index_add_in_place(y: Tensor, routes: Routes, weight: Tensor) -> Tensor:
    result = y.new_zeros(len(routes.sample_offsets) - 1, *y.shape[1:])
    return result.index_add_(0, routes.sample, weighted(y, weight))


def scatter_add_in_place(y: Tensor, routes: Routes, weight: Tensor) -> Tensor:
    result = y.new_zeros(len(routes.sample_offsets) - 1, y[0].numel())
    index = routes.sample[:, None].expand(-1, result.shape[1])
    return result.scatter_add_(0, index, weighted(y, weight).flatten(1)).view(-1, *y.shape[1:])


def build(wanted: str, dtype: torch.dtype, B: int, S: int, N: int, D: int) -> Work:
    routes = plan_routes(torch.rand(B, S) < FUNCTIONAL / S)
    P, row = len(routes.sample), (N, D) if N > 1 else (D,)
    y, weight = torch.randn(P, *row, dtype=dtype), torch.rand(P, dtype=dtype)
    if wanted == "forward":
        peers = {"index_add": index_add_in_place, "scatter_add": scatter_add_in_place}
    else:
        peers = {"index_add": index_add}
    pairs, samples = size(y), B * size(y) // max(P, 1)
    return work(
        wanted,
        {OURS: ours, **peers, **compiled("index_add", index_add)},
        definition,
        (y, routes, weight),
        differentiate=(0, 2),
        tolerance=1e-6 if dtype == torch.float32 else 0.01,
        cost={
            "forward": Cost(pairs + samples + size(weight, routes.order, routes.sample_offsets), 2 * y.numel()),
            # The gradient of the weights reads y once more.
            "backward": Cost(2 * pairs + samples + size(weight, weight, routes.sample), 3 * y.numel()),
        },
    )


case = partial(Case, "combine_routes", build, small={"D": 16})
CASES = [
    case({"B": B, "S": S, "N": N, "D": 768}, wanted, dtype, headline=dtype == torch.float32 and (B, S) == (256, 20))
    for B, S, N in [(32, 20, 1), (256, 20, 1), (4096, 100, 1), (16, 20, 197)]
    for dtype in (torch.float32, torch.bfloat16)
    for wanted in PASSES
]
