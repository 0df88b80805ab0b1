"""combine_routes beside index_add, scatter_add and a sparse product.

pytest bench/ops/combine_routes.py
"""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from artsy_ext.ops import Routes, combine_routes, plan_routes, reference

FUNCTIONAL = 2  # sub-networks per sample, on average
CASES = [(32, 20, (768,)), (256, 20, (768,)), (4096, 100, (768,)), (16, 20, (197, 768))]

Combine = Callable[[Tensor, Routes, Tensor], Tensor]


def ours(y: Tensor, routes: Routes, weight: Tensor) -> Tensor:
    return combine_routes(y, routes, weight=weight)


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


PEERS: dict[str, dict[str, Combine]] = {
    "forward": {"index_add": index_add_in_place, "scatter_add": scatter_add_in_place},
    "backward": {"index_add": index_add},
}


@pytest.mark.parametrize("wanted", PEERS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize(("B", "S", "row"), CASES, ids=lambda v: "x".join(map(str, v)) if isinstance(v, tuple) else v)
def test_ratio(
    interleaved: Any, threads: int, B: int, S: int, row: tuple[int, ...], dtype: torch.dtype, wanted: str
) -> None:
    torch.manual_seed(0)
    routes = plan_routes(torch.rand(B, S) < FUNCTIONAL / S)
    P = len(routes.sample)
    y, weight = torch.randn(P, *row, dtype=dtype), torch.rand(P, dtype=dtype)
    tolerance = 1e-5 if dtype == torch.float32 else 0.1
    if wanted == "forward":
        exact = reference.combine_routes(y.double(), routes, weight=weight.double())
        for combine in (ours, *PEERS[wanted].values()):
            torch.testing.assert_close(combine(y, routes, weight).double(), exact, rtol=0, atol=tolerance)
        calls = {name: lambda c=c: c(y, routes, weight) for name, c in PEERS[wanted].items()}
        interleaved(lambda: ours(y, routes, weight), calls)
        return
    leaves = [y.requires_grad_(), weight.requires_grad_()]
    gradient = torch.randn(B, *row, dtype=dtype)
    graphs = {name: combine(y, routes, weight) for name, combine in {"": ours, **PEERS[wanted]}.items()}
    calls = {
        name: lambda r=r: torch.autograd.grad(r, leaves, gradient, retain_graph=True) for name, r in graphs.items()
    }
    expected, *others = (call() for call in calls.values())
    for found in others:
        for a, b in zip(found, expected, strict=True):
            assert (a - b).abs().max() <= tolerance * b.abs().max()
    interleaved(calls.pop(""), calls)
