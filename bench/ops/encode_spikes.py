"""encode_spikes beside what a user would write: comparing uniform random numbers, and torch.bernoulli.

    pytest bench/ops/encode_spikes.py

The peers' spikes depend on the device, on the shape and on what was drawn before; ours do not. The backward pass is the
straight-through gradient.
"""

from typing import Any

import torch
from torch import Tensor

from artsy_ext.ops import encode_spikes, reference
from bench.case import OURS, PASSES, Case, Cost, Work, assert_close, compiled, size, work

# Philox-4x32-10: ten rounds of two wide products, four xors and two additions give four numbers.
OPERATIONS_PER_SPIKE = 10 * (2 * 2 + 4 + 2) // 4


def rand(x: Tensor, steps: int, dtype: torch.dtype) -> Tensor:
    spikes = torch.rand(steps, *x.shape, device=x.device) < x
    return spikes if dtype == torch.bool else spikes.to(dtype) + (x - x.detach())


def bernoulli(x: Tensor, steps: int, dtype: torch.dtype) -> Tensor:
    spikes = torch.bernoulli(x.detach().expand(steps, *x.shape)).to(dtype)
    return spikes if dtype == torch.bool else spikes + (x - x.detach())


def build(wanted: str, dtype: torch.dtype, T: int, B: int, I: int) -> Work:
    x, spikes = torch.rand(B, I), T * B * I * dtype.itemsize
    made = work(
        wanted,
        {
            OURS: lambda x, *rest: encode_spikes(x, T, seed=3, dtype=dtype),
            "rand <": lambda x, *rest: rand(x, T, dtype),
            "bernoulli": lambda x, *rest: bernoulli(x, T, dtype),
            **compiled("rand <", lambda x: rand(x, T, dtype)),
        },
        lambda x: reference.encode_spikes(x, T, seed=3, dtype=dtype if wanted == "forward" else torch.float64),
        (x,),
        differentiate=(0,),
        tolerance=1e-5,
        cost={
            "forward": Cost(size(x) + spikes, OPERATIONS_PER_SPIKE * T * x.numel()),
            "backward": Cost(size(x) + spikes, T * x.numel()),
        },
    )
    if wanted != "forward":
        return made

    def check(name: str, found: Any) -> None:
        if name == OURS:
            assert_close(found, reference.encode_spikes(x, T, seed=3, dtype=dtype), 0)
        else:  # its random numbers are others
            assert found.shape == (T, B, I)
            assert abs(found.float().mean() - x.mean()) < 0.05

    return Work(made.candidates, check, made.cost)


CASES = [
    Case("encode_spikes", build, {"T": T, "B": B, "I": I}, wanted, dtype, headline=T == 100, small={"I": 40})
    for T, B, I in [(100, 32, 784), (16, 64, 768)]
    for dtype, passes in ((torch.bool, ("forward",)), (torch.float32, PASSES))
    for wanted in passes
]
