"""consolidate beside what a user would write: the definition's two comparisons and a choice.

pytest bench/ops/consolidate.py
"""

import torch
from torch import Tensor

from artsy_ext.ops import consolidate, reference
from bench.case import OURS, Case, Cost, Work, compiled, size, work

ON, OFF = 0.8, 0.4


def where(weight: Tensor, functional: Tensor) -> Tensor:
    strength = weight.abs()
    return torch.where(functional, strength >= OFF, strength >= ON)


def logical(weight: Tensor, functional: Tensor) -> Tensor:
    strength = weight.abs()
    return (strength >= OFF).logical_and_(functional).logical_or_(strength >= ON)


def build(wanted: str, dtype: torch.dtype, S: int, J: int, I: int) -> Work:
    weight, functional = torch.randn(S, J, I, dtype=dtype), torch.rand(S, J, I) < 0.5
    return work(
        wanted,
        {
            OURS: lambda w, f: consolidate(w, f, ON, OFF),
            "where": where,
            "logical": logical,
            **compiled("where", where),
        },
        lambda w, f: reference.consolidate(w, f, ON, OFF),
        (weight, functional),
        tolerance=0,
        cost={"forward": Cost(size(weight, functional, functional), 2 * weight.numel())},
    )


CASES = [
    Case("consolidate", build, {"S": S, "J": J, "I": I}, headline=True, small={"I": 16})
    for S, J, I in [(1, 400, 784), (50, 64, 768)]
]
