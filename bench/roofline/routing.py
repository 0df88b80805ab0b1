"""The least time that the routing ops can take on a GPU, from the bytes they move and the products they compute.

    python bench/roofline/routing.py

A paper estimate: every argument crosses the memory bus once and every result once, at the bandwidth of the data sheet,
and tensor cores run at its dense peak; the longer of the two is the op's floor. Launches, of which each costs some
microseconds, waiting, and what a cache saves from one op to the next are left out. The arguments are the ops' own, as
tensors without data, so that the bytes are theirs.
"""

from functools import partial
from typing import NamedTuple

import torch
from gpus import ASSUMED, GPUS, Gpu, table
from torch import Tensor

from artsy_ext import ops


class Sizes(NamedTuple):
    """S sub-networks with adapters of rank R; P functional pairs of B samples, of N tokens with D features each."""

    B: int = 256
    P: int = 512
    N: int = 197
    S: int = 20
    D: int = 768
    R: int = 64
    C: int = 100  # classes, C/S of each sub-network


CASE = Sizes()
ADAPTER = "`routed_adapter`, base=x"
Row = tuple[str, int, int]  # name, bytes, multiplications and additions


def moved(*tensors: Tensor) -> int:
    """Bytes; a tensor that is given twice, as base=x is, crosses the bus once."""
    return sum(tensor.nbytes for tensor in {id(tensor): tensor for tensor in tensors}.values())


def rows_of_ops(sizes: Sizes) -> list[Row]:
    B, P, N, S, D, R, C = sizes
    new = partial(torch.empty, dtype=torch.bfloat16, device="meta")
    mask = new(B, S, dtype=torch.bool)
    routes = ops.plan_routes(mask, capacity=P)
    h = new(B, N, D)
    x = h[routes.sample]
    adapter = down, _, up, _ = new(S, R, D), new(S, R), new(S, D, R), new(S, D)
    y = ops.routed_adapter(x, routes, *adapter, base=x)
    hidden = new(P, N, R, dtype=torch.float32)  # what the forward pass keeps for the gradients
    combined = ops.combine_routes(y, routes)

    features, base_features = new(P, D), new(B, D)
    prototypes, weight, base_prototypes = new(S, C, D), new(S, C), new(C, D)
    answer = {"base_features": base_features, "base_prototypes": base_prototypes}
    logits = ops.prototype_logits(features, routes, prototypes, weight, **answer)
    gates = new(S, R, D), new(S, R), new(S, R), new(S)
    scores = ops.synapse_scores(base_features, *gates)
    afferents, synapses, bias = new(B, 2 * D), new(S, C // S, 2 * D), new(S, C // S)
    functional = torch.empty_like(synapses, dtype=torch.bool)
    currents = ops.synapse_currents(afferents, synapses, functional, bias)

    product = 2 * P * N * D * R
    by_sample = routes.order, routes.sample_offsets
    return [
        ("`plan_routes`", moved(mask, *routes), 0),
        ("`h[routes.sample]`, PyTorch's", moved(h, routes.sample, x), 0),
        (ADAPTER, moved(x, routes.offsets, *adapter, y), 2 * product),
        ("… keeping the hidden values", moved(x, routes.offsets, *adapter, y, hidden), 2 * product),
        ("… gradient of x", moved(y, routes.offsets, hidden, down, up, x), 2 * product),
        ("… gradients of the weights", moved(y, x, routes.offsets, hidden, up, *adapter), 3 * product),
        ("`combine_routes`", moved(y, *by_sample, combined), 0),
        (
            "`prototype_logits`",
            moved(features, *by_sample, prototypes, weight, *answer.values(), logits),
            2 * (P + B) * C * D,
        ),
        ("`synapse_scores`", moved(base_features, *gates, scores), 2 * B * S * R * (D + 1)),
        ("`synapse_currents`", moved(afferents, synapses, functional, bias, currents), 2 * B * C * 2 * D),
    ]


def rows_without_fusion(sizes: Sizes) -> list[Row]:
    """routed_adapter with base=x as two grouped products with pointwise ops behind them, each at its best."""
    _, P, N, S, D, R, _ = sizes
    new = partial(torch.empty, dtype=torch.bfloat16, device="meta")
    x, product, y = new(P, N, D), new(P, N, D), new(P, N, D)
    hidden, activated = new(P, N, R), new(P, N, R)
    down, down_bias, up, up_bias = new(S, R, D), new(S, R), new(S, D, R), new(S, D)
    return [
        ("product with down", moved(x, down, hidden), 2 * P * N * D * R),
        ("bias, activation", moved(hidden, down_bias, activated), 0),
        ("product with up", moved(activated, up, product), 2 * P * N * D * R),
        ("bias, scale, base", moved(product, up_bias, x, y), 0),
    ]


def saved_by_fusion(sizes: Sizes, gpu: Gpu) -> float:
    """How many times as long it takes without."""
    times = {name: gpu.floor(*numbers) for name, *numbers in rows_of_ops(sizes)}
    return sum(gpu.floor(*numbers) for _, *numbers in rows_without_fusion(sizes)) / times[ADAPTER]


def report(sizes: Sizes = CASE) -> str:
    saved = ", ".join(f"{saved_by_fusion(sizes, gpu):.2f} ({gpu.name})" for gpu in GPUS)
    lines = [
        f"P={sizes.P} pairs of B={sizes.B} samples, N={sizes.N}, S={sizes.S}, D={sizes.D}, R={sizes.R}, "
        f"C={sizes.C}, bf16:",
        "",
        *table("op", rows_of_ops(sizes)),
        "",
        f"{ADAPTER}, as two grouped products and pointwise ops:",
        "",
        *table("step", rows_without_fusion(sizes)),
        "",
        f"Times as long as fused: {saved}.",
        "",
        ASSUMED,
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    print(report())
