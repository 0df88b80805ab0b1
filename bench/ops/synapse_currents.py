"""synapse_currents beside one product with the masked weights.

pytest bench/ops/synapse_currents.py
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from artsy_ext.ops import reference, synapse_currents
from bench.case import OURS, PASSES, Case, Cost, Work, compiled, size, work

AFFERENTS = 2 * 768 + 1  # as STDPSynapses has them for D = 768


def where(x: Tensor, weight: Tensor, functional: Tensor, bias: Tensor) -> Tensor:
    transmitting = torch.where(functional, weight, 0)
    return F.linear(x, transmitting.flatten(0, 1), bias.flatten()).view(-1, *bias.shape)


def times(x: Tensor, weight: Tensor, functional: Tensor, bias: Tensor) -> Tensor:
    return F.linear(x, (weight * functional).flatten(0, 1), bias.flatten()).view(-1, *bias.shape)


def build(wanted: str, dtype: torch.dtype, B: int, S: int, J: int, I: int) -> Work:
    x, weight = torch.rand(B, I, dtype=dtype), torch.randn(S, J, I, dtype=dtype) / I**0.5
    functional, bias = torch.rand(S, J, I) < 0.7, torch.randn(S, J, dtype=dtype)
    currents, product = B * size(bias), 2 * B * weight.numel()
    return work(
        wanted,
        {OURS: synapse_currents, "where": where, "times": times, **compiled("where", where)},
        reference.synapse_currents,
        (x, weight, functional, bias),
        differentiate=(0, 1, 3),
        tolerance=1e-5 if dtype == torch.float32 else 0.02,
        cost={
            "forward": Cost(size(x, weight, functional, bias) + currents, product),
            "backward": Cost(size(x, x, weight, weight, functional, bias) + currents, 2 * product),
        },
    )


CASES = [
    Case(
        "synapse_currents", build, {"B": B, "S": S, "J": J, "I": AFFERENTS}, wanted, dtype,
        headline=dtype == torch.float32 and (B, S) == (32, 20), small={"I": 33},
    )
    for B, S, J in [(8, 20, 10), (32, 20, 10), (256, 20, 10), (256, 100, 10)]
    for dtype in (torch.float32, torch.bfloat16)
    for wanted in PASSES
]  # fmt: skip
