"""plan_routes beside what a user would write: nonzero, bincount and cumsum.

    pytest bench/ops/plan_routes.py

The peers give the pairs sorted by sub-network and both offsets; ours also gives the order by sample.
"""

from typing import Any

import torch
from torch import Tensor

from artsy_ext.ops import Routes, plan_routes, reference
from bench.case import OURS, Case, Cost, Work, assert_close, size

FUNCTIONAL = 2  # sub-networks per sample, on average

Plan = tuple[Tensor, ...]


def offsets_of(indices: Tensor, size: int) -> Tensor:
    offsets = torch.zeros(size + 1, dtype=torch.int64)
    torch.cumsum(torch.bincount(indices, minlength=size), 0, out=offsets[1:])
    return offsets


def nonzero(mask: Tensor) -> Plan:
    subnetwork, sample = mask.t().nonzero().unbind(1)
    return sample, subnetwork, offsets_of(subnetwork, mask.shape[1]), offsets_of(sample, mask.shape[0])


def nonzero_of_copy(mask: Tensor) -> Plan:
    return nonzero(mask.t().contiguous().t())


def build(wanted: str, dtype: torch.dtype, B: int, S: int) -> Work:
    mask = torch.rand(B, S) < FUNCTIONAL / S
    expected = reference.plan_routes(mask)

    def check(name: str, found: Any) -> None:
        plan = expected
        if not isinstance(found, Routes):
            plan = (expected.sample, expected.subnetwork, expected.offsets, expected.sample_offsets)
        assert_close(found, plan, 0)

    return Work(
        {
            OURS: lambda: plan_routes(mask),
            "nonzero": lambda: nonzero(mask),
            "nonzero of a copy": lambda: nonzero_of_copy(mask),
        },
        check,
        Cost(size(mask, expected), mask.numel()),
    )


CASES = [
    Case("plan_routes", build, {"B": B, "S": S}, dtype=torch.bool, headline=True, small={"S": 7})
    for B, S in [(256, 20), (4096, 100), (4096, 1000)]
]
