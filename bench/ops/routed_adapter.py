"""routed_adapter beside the loops over sub-networks, the gathered and the grouped product that a user would write.

    pytest bench/ops/routed_adapter.py -k "uniform and N197 and S20 and float32"

The limit is not a peer: it is torch.mm on two matrices with as many operations, without bias, activation or routing
(forward), and with the gradients' two or four products (backward).
"""

import itertools
from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from artsy_ext.ops import Routes, plan_routes, reference, routed_adapter
from bench.case import OURS, PASSES, Case, Cost, Work, compiled, size, work

SCALE = 0.1
ROUTINGS = ("uniform", "zipf", "identical", "random")

Weights = tuple[Tensor, Tensor, Tensor, Tensor]
Adapter = Callable[[Tensor, Routes, Weights], Tensor]


def subnetworks(routing: str, rows: int, S: int) -> Tensor:
    """[rows] the sub-network of each sample."""
    if routing == "uniform":
        return torch.arange(rows) % S
    if routing == "zipf":
        return torch.multinomial(1 / torch.arange(1, S + 1), rows, replacement=True)
    if routing == "identical":
        return torch.full((rows,), S // 2)
    return torch.randint(S, (rows,))


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


def products(x: Tensor, weights: Weights, wanted: str, of_x: bool) -> Callable[[], object]:
    """As many operations in torch.mm, without recomputing the hidden values."""
    rows, down, up = x.detach().flatten(0, -2), weights[0][0].detach(), weights[2][0].detach()
    hidden, result = rows @ down.t(), torch.empty_like(rows)
    down_out, up_out = torch.empty_like(down), torch.empty_like(up)

    def forward() -> None:
        torch.mm(rows, down.t(), out=hidden)
        torch.mm(hidden, up.t(), out=result)

    def backward() -> None:
        torch.mm(rows, up, out=hidden)
        torch.mm(hidden, down, out=result)
        if not of_x:
            torch.mm(hidden.t(), rows, out=down_out)
            torch.mm(rows.t(), hidden, out=up_out)

    def both() -> None:
        forward()
        backward()

    return {"forward": forward, "backward": backward, "both": both}[wanted]


def build(wanted: str, dtype: torch.dtype, routing: str, S: int, N: int, D: int, R: int, of: str = "") -> Work:
    """of="of x": gradients of x alone."""
    P = 32 if N > 1 else 512
    if D < 64:
        P = 6
    routes = plan_routes(F.one_hot(subnetworks(routing, P, S), S).bool())
    x = torch.randn(P, N, D, dtype=dtype)
    weights = tuple(
        torch.randn(shape, dtype=dtype) / shape[-1] ** 0.5 for shape in ((S, R, D), (S, R), (S, D, R), (S, D))
    )

    def called(adapter: Adapter) -> Callable[..., Tensor]:
        return lambda x, routes, *weights: adapter(x, routes, weights)

    used = size(weights) * len(routes.subnetwork.unique()) // S
    product = 2 * P * N * D * R
    gradients = 2 if of else 4
    made = work(
        wanted,
        {
            name: called(adapter)
            for name, adapter in {
                OURS: ours,
                **(FORWARD if wanted == "forward" else BACKWARD),
                **compiled("gathered bmm", gathered),
            }.items()
        },
        called(lambda x, routes, weights: reference.routed_adapter(x, routes, *weights, scale=SCALE, base=x)),
        (x, routes, *weights),
        differentiate=(0,) if of else (0, 2, 3, 4, 5),
        # In a backward pass, a hidden value within a rounding of 0 may pass relu in one and not in the other.
        tolerance=(1e-5 if dtype == torch.float32 else 0.02) * (1 if wanted == "forward" else 50),
        cost={
            "forward": Cost(2 * size(x) + used, 2 * product),
            "backward": Cost(size(x) * (2 if of else 3) + used + (0 if of else size(weights)), gradients * product),
        },
    )
    return Work(made.candidates, made.check, made.cost, {"torch.mm alone": products(x, weights, wanted, bool(of))})


case = partial(Case, "routed_adapter", build, small={"D": 32, "R": 8})
CASES = [
    case(
        {"routing": routing, "S": S, "N": N, "D": 768, "R": 64}, wanted, dtype,
        headline=routing == "uniform" and N == 197 and (S == 20 or (S in (5, 50) and wanted == "forward"))
        and dtype == torch.float32,
        rounds=15,
    )
    for S in (1, 5, 20, 50, 200)
    for N in (197, 1)
    for routing in ROUTINGS
    for dtype in (torch.float32, torch.bfloat16)
    for wanted in PASSES
] + [
    case({"routing": "uniform", "of": "of x", "S": S, "N": 197, "D": 768, "R": 64}, "backward", dtype)
    for S in (5, 20, 50)
    for dtype in (torch.float32, torch.bfloat16)
]  # fmt: skip
