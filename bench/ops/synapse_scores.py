"""synapse_scores beside one product for all gates, and beside a loop over them.

pytest bench/ops/synapse_scores.py
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from artsy_ext.ops import reference, synapse_scores
from bench.case import OURS, PASSES, Case, Cost, Work, compiled, size, work


def one_product(features: Tensor, down: Tensor, down_bias: Tensor, up: Tensor, up_bias: Tensor) -> Tensor:
    hidden = F.linear(features, down.flatten(0, 1), down_bias.flatten()).relu_()
    return (hidden.view(-1, *up.shape) * up).sum(2) + up_bias


def loop(features: Tensor, down: Tensor, down_bias: Tensor, up: Tensor, up_bias: Tensor) -> Tensor:
    scores = [
        torch.addmv(u_bias, torch.addmm(d_bias, features, d.t()).relu_(), u)
        for d, d_bias, u, u_bias in zip(down, down_bias, up, up_bias, strict=True)
    ]
    return torch.stack(scores, 1)


def build(wanted: str, dtype: torch.dtype, B: int, S: int, D: int, R: int) -> Work:
    shapes = ((B, D), (S, R, D), (S, R), (S, R), (S,))
    features, *weights = (torch.randn(shape, dtype=dtype) / shape[-1] ** 0.5 for shape in shapes)
    scores, products = B * S * dtype.itemsize, 2 * B * S * R * (D + 1)
    return work(
        wanted,
        {OURS: synapse_scores, "one product": one_product, "loop": loop, **compiled("one product", one_product)},
        reference.synapse_scores,
        (features, *weights),
        differentiate=range(5),
        # In a backward pass, a hidden value within a rounding of 0 may pass relu in one and not in the other.
        tolerance=(1e-5 if dtype == torch.float32 else 0.02) * (1 if wanted == "forward" else 10),
        cost={
            "forward": Cost(size(features, weights) + scores, products),
            # The hidden values are kept, or computed anew at the price of a third product.
            "backward": Cost(2 * size(features, weights) + scores, 2 * products),
        },
    )


CASES = [
    Case(
        "synapse_scores", build, {"B": B, "S": S, "D": 768, "R": 32}, wanted, dtype,
        headline=dtype == torch.float32 and (B, S) == (32, 20), small={"D": 16},
    )
    for B, S in [(8, 20), (32, 20), (256, 20), (256, 100)]
    for dtype in (torch.float32, torch.bfloat16)
    for wanted in PASSES
]  # fmt: skip
