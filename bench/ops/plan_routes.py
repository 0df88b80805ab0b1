"""plan_routes beside what a user would write: nonzero, bincount and cumsum.

    pytest bench/ops/plan_routes.py

The peers give the pairs sorted by sub-network and both offsets; ours also gives the order by sample.
"""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from artsy_ext.ops import Routes, plan_routes, reference

FUNCTIONAL = 2  # sub-networks per sample, on average
CASES = [(256, 20), (4096, 100), (4096, 1000)]

Plan = tuple[Tensor, ...]


def offsets_of(indices: Tensor, size: int) -> Tensor:
    offsets = torch.zeros(size + 1, dtype=torch.int64)
    torch.cumsum(torch.bincount(indices, minlength=size), 0, out=offsets[1:])
    return offsets


def nonzero(mask: Tensor) -> Plan:
    subnetwork, sample = mask.t().nonzero().unbind(1)
    return sample, subnetwork, offsets_of(subnetwork, mask.shape[1]), offsets_of(sample, mask.shape[0])


def nonzero_of_copy(mask: Tensor) -> Plan:
    subnetwork, sample = mask.t().contiguous().nonzero().unbind(1)
    return sample, subnetwork, offsets_of(subnetwork, mask.shape[1]), offsets_of(sample, mask.shape[0])


PEERS: dict[str, Callable[[Tensor], Plan]] = {"nonzero": nonzero, "nonzero of a copy": nonzero_of_copy}
PLANNERS: dict[str, Callable[[Tensor], Any]] = {"ours": plan_routes, **PEERS}


@pytest.fixture(params=CASES, ids=lambda case: "{}x{}".format(*case))
def mask(request: pytest.FixtureRequest) -> Tensor:
    B, S = request.param
    return torch.rand(B, S, generator=torch.Generator().manual_seed(0)) < FUNCTIONAL / S


def assert_same_plan(plan: Any, mask: Tensor) -> None:
    expected = reference.plan_routes(mask)
    if not isinstance(plan, Routes):
        expected = (expected.sample, expected.subnetwork, expected.offsets, expected.sample_offsets)
    assert all(torch.equal(a, b) for a, b in zip(plan, expected, strict=True))


@pytest.mark.parametrize("planner", PLANNERS)
def test_time(benchmark: Any, mask: Tensor, threads: int, planner: str) -> None:
    plan = PLANNERS[planner]
    assert_same_plan(plan(mask), mask)
    benchmark.group = f"plan_routes {mask.shape[0]}x{mask.shape[1]}, threads: {threads}"
    benchmark(plan, mask)


def test_ratio(interleaved: Any, mask: Tensor, threads: int) -> None:
    for plan in PLANNERS.values():
        assert_same_plan(plan(mask), mask)
    interleaved(lambda: plan_routes(mask), {name: lambda p=p: p(mask) for name, p in PEERS.items()})
