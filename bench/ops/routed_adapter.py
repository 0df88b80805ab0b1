"""routed_adapter beside the loops over sub-networks, the gathered and the grouped product that a user would write.

    pytest bench/ops/routed_adapter.py -k "uniform and N197 and S20 and float32"
    pytest bench/ops/routed_adapter.py -k scaling      # all threads against one; read the column of wall times

The floor is not a peer: it is torch.mm on two matrices with as many operations, without bias, activation or routing
(forward), and with the gradients' two, three or four products (backward).
"""

import itertools
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from artsy_ext.ops import Routes, plan_routes, reference, routed_adapter

SCALE = 0.1
ROUTINGS = ("uniform", "zipf", "identical", "one-hot")

Weights = tuple[Tensor, Tensor, Tensor, Tensor]
Adapter = Callable[[Tensor, Routes, Weights], Tensor]


def subnetworks(routing: str, rows: int, S: int) -> Tensor:
    """[rows] the sub-network of each sample."""
    generator = torch.Generator().manual_seed(0)
    if routing == "uniform":
        return torch.arange(rows) % S
    if routing == "zipf":
        return torch.multinomial(1 / torch.arange(1, S + 1), rows, replacement=True, generator=generator)
    if routing == "identical":
        return torch.full((rows,), S // 2)
    return torch.randint(S, (rows,), generator=generator)


def ours(x: Tensor, routes: Routes, weights: Weights) -> Tensor:
    return routed_adapter(x, routes, *weights, scale=SCALE, base=x)


def slice_loop(x: Tensor, routes: Routes, weights: Weights) -> Tensor:
    """Slices of the rows, written in place."""
    rows, y = x.flatten(0, 1), torch.empty_like(x).flatten(0, 1)
    down, down_bias, up, up_bias = weights
    for s, (begin, end) in enumerate(itertools.pairwise((routes.offsets * x.shape[1]).tolist())):
        if begin < end:
            hidden = torch.addmm(down_bias[s], rows[begin:end], down[s].t()).relu_()
            adapted = torch.addmm(up_bias[s], hidden, up[s].t())
            torch.add(rows[begin:end], adapted, alpha=SCALE, out=y[begin:end])
    return y.view_as(x)


def split_loop(x: Tensor, routes: Routes, weights: Weights) -> Tensor:
    """The slice loop for gradients: slices in a loop would zero-pad a full gradient for each sub-network."""
    pieces = x.flatten(0, 1).split((routes.offsets.diff() * x.shape[1]).tolist())
    results = []
    for rows, down, down_bias, up, up_bias in zip(pieces, *(w.unbind(0) for w in weights), strict=True):
        if len(rows):
            hidden = torch.addmm(down_bias, rows, down.t()).relu()
            results.append(torch.add(rows, torch.addmm(up_bias, hidden, up.t()), alpha=SCALE))
    return torch.cat(results).view_as(x)


def index_loop(x: Tensor, routes: Routes, weights: Weights) -> Tensor:
    y = torch.zeros_like(x)
    down, down_bias, up, up_bias = weights
    for s, (begin, end) in enumerate(itertools.pairwise(routes.offsets.tolist())):
        if begin < end:
            index = torch.arange(begin, end)
            rows = x.index_select(0, index)
            hidden = F.linear(rows, down[s], down_bias[s]).relu()
            y = y.index_copy(0, index, rows + SCALE * F.linear(hidden, up[s], up_bias[s]))
    return y


def index_loop_in_place(x: Tensor, routes: Routes, weights: Weights) -> Tensor:
    y = torch.empty_like(x)
    down, down_bias, up, up_bias = weights
    for s, (begin, end) in enumerate(itertools.pairwise(routes.offsets.tolist())):
        if begin < end:
            index = torch.arange(begin, end)
            rows = x.index_select(0, index)
            hidden = F.linear(rows, down[s], down_bias[s]).relu_()
            y.index_copy_(0, index, rows + SCALE * F.linear(hidden, up[s], up_bias[s]))
    return y


def gathered(x: Tensor, routes: Routes, weights: Weights) -> Tensor:
    """bmm with every pair's own copy of the weights."""
    down, down_bias, up, up_bias = (w[routes.subnetwork] for w in weights)
    hidden = torch.baddbmm(down_bias[:, None], x, down.transpose(1, 2)).relu()
    return torch.add(x, torch.baddbmm(up_bias[:, None], hidden, up.transpose(1, 2)), alpha=SCALE)


def grouped(x: Tensor, routes: Routes, weights: Weights) -> Tensor:
    down, down_bias, up, up_bias = weights
    rows, ends = x.flatten(0, 1), (routes.offsets[1:] * x.shape[1]).int()
    subnetwork = routes.subnetwork.repeat_interleave(x.shape[1])
    hidden = (torch._grouped_mm(rows, down.transpose(1, 2), offs=ends) + down_bias[subnetwork]).relu()
    adapted = torch._grouped_mm(hidden, up.transpose(1, 2), offs=ends) + up_bias[subnetwork]
    return torch.add(rows, adapted, alpha=SCALE).view_as(x)


FORWARD: dict[str, Adapter] = {
    "slice loop": slice_loop, "index loop": index_loop_in_place, "gathered bmm": gathered, "grouped": grouped
}  # fmt: skip
BACKWARD: dict[str, Adapter] = {"slice loop": split_loop, "index loop": index_loop}


def floor(x: Tensor, weights: Weights, wanted: str) -> Callable[[], object]:
    """As many operations in torch.mm, without recomputing the hidden values."""
    rows, down, up = x.detach().flatten(0, 1), weights[0][0].detach(), weights[2][0].detach()
    hidden, result = rows @ down.t(), torch.empty_like(rows)
    down_out, up_out = torch.empty_like(down), torch.empty_like(up)

    def products() -> None:
        torch.mm(rows, up if wanted != "forward" else down.t(), out=hidden)
        if wanted != "backward of weights":
            torch.mm(hidden, down if wanted != "forward" else up.t(), out=result)
        if "weights" in wanted or wanted == "backward":
            torch.mm(hidden.t(), rows, out=down_out)
            torch.mm(rows.t(), hidden, out=up_out)

    return products


def problem(routing: str, S: int, N: int, dtype: torch.dtype, small: bool) -> tuple[Tensor, Routes, Weights]:
    D, R, P = (32, 8, 6) if small else (768, 64, 32 if N > 1 else 512)
    routes = plan_routes(F.one_hot(subnetworks(routing, P, S), S).bool())
    torch.manual_seed(0)
    x = torch.randn(P, N, D, dtype=dtype)
    down, down_bias, up, up_bias = (
        torch.randn(shape, dtype=dtype) / shape[-1] ** 0.5 for shape in ((S, R, D), (S, R), (S, D, R), (S, D))
    )
    return x, routes, (down, down_bias, up, up_bias)


dtypes = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
routings = pytest.mark.parametrize("routing", ROUTINGS)


@pytest.mark.parametrize("wanted", ["forward", "backward", "backward of x"])
@dtypes
@routings
@pytest.mark.parametrize("N", [197, 1], ids="N{}".format)
@pytest.mark.parametrize("S", [1, 5, 20, 50, 200], ids="S{}".format)
def test_ratio(interleaved: Any, untimed: bool, routing: str, S: int, N: int, dtype: torch.dtype, wanted: str) -> None:
    x, routes, weights = problem(routing, S, N, dtype, untimed)
    double = [w.double() for w in weights]
    tolerance = {"rtol": 0, "atol": 2e-5 if dtype == torch.float32 else 0.05}
    if wanted == "forward":
        exact = reference.routed_adapter(x.double(), routes, *double, scale=SCALE, base=x.double())
        for adapter in (ours, *FORWARD.values()):
            torch.testing.assert_close(adapter(x, routes, weights).double(), exact, **tolerance)
        calls = {name: lambda a=a: a(x, routes, weights) for name, a in {"": ours, **FORWARD}.items()}
    else:
        leaves = [x.requires_grad_(), *(w.requires_grad_() for w in weights if wanted == "backward")]
        gradient = torch.randn_like(x)
        graphs = {name: a(x, routes, weights) for name, a in {"": ours, **BACKWARD}.items()}
        calls = {
            name: lambda y=y: torch.autograd.grad(y, leaves, gradient, retain_graph=True) for name, y in graphs.items()
        }
        first, *others = (call() for call in calls.values())
        for expected in others:
            for a, b in zip(first, expected, strict=True):
                # A hidden value within a rounding of 0 may pass relu in one and not in the other.
                assert (a - b).norm() <= 50 * tolerance["atol"] * b.norm()
    mine = calls.pop("")
    interleaved(mine, calls | {"floor": floor(x, weights, wanted)})


@pytest.mark.parametrize("wanted", ["forward", "backward"])
@dtypes
@routings
def test_scaling(interleaved: Any, untimed: bool, routing: str, dtype: torch.dtype, wanted: str) -> None:
    """All threads beside one, S=20. CPU time is the work of all of them; the ratio of wall times is the gain."""
    all_threads = torch.get_num_threads()
    if all_threads == 1:
        pytest.skip("one thread")
    x, routes, weights = problem(routing, 20, 197, dtype, untimed)
    if wanted == "backward":
        leaves = [x.requires_grad_(), *(w.requires_grad_() for w in weights)]
        y, gradient = ours(x, routes, weights), torch.ones_like(x)

    def run(threads: int) -> None:
        torch.set_num_threads(threads)
        if wanted == "backward":
            torch.autograd.grad(y, leaves, gradient, retain_graph=True)
        else:
            ours(x, routes, weights)

    interleaved(lambda: run(all_threads), {"1 thread": lambda: run(1)})
    torch.set_num_threads(all_threads)
