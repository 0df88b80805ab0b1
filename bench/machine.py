"""What this machine can do at best, measured: how fast memory and caches are read and written, how fast it multiplies.

Both are per second of CPU time, as everything in a run, so that neighbours do not count; with n threads a second of the
clock has n of them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from bench.case import Cost
from bench.interleave import Timing, cpu_time

Timer = Callable[[Callable[[], object], int], Timing]
SIZES = tuple(2**k for k in range(14, 29, 2))
"""Bytes that a call reads and writes: from the first cache to memory."""
DTYPES = (torch.float32, torch.float64, torch.bfloat16)


@dataclass(frozen=True)
class Machine:
    """bandwidth: bytes per second, where a call touches so many bytes; products: operations per second, by dtype."""

    bandwidth: dict[int, float]
    products: dict[str, float]

    def floor(self, cost: Cost, dtype: torch.dtype) -> float:
        """Seconds that the cost takes at least: the longer of moving the bytes and of the arithmetic.

        Bytes move as fast as the cache lets them which is just large enough for all of them; arithmetic goes as fast as
        the matrix product of the dtype, of float32 where it has none.
        """
        rate = self.products.get(str(dtype).removeprefix("torch."), self.products["float32"])
        return max(cost.bytes / self.bandwidth_at(cost.bytes), cost.operations / rate)

    def bandwidth_at(self, size: int) -> float:
        """Between the sizes measured, in proportion to the logarithm of the size."""
        sizes = sorted(self.bandwidth)
        at = min(max(size, sizes[0]), sizes[-1])
        below = max(s for s in sizes if s <= at)
        above = min(s for s in sizes if s >= at)
        if below == above:
            return self.bandwidth[below]
        part = math.log(at / below) / math.log(above / below)
        return self.bandwidth[below] * (1 - part) + self.bandwidth[above] * part


def measure(timer: Timer = cpu_time, sizes: Sequence[int] = SIZES, products: int = 1024, rounds: int = 5) -> Machine:
    """The best of `rounds`. products: rows and columns of the matrices that are multiplied."""
    return Machine(
        {size: max(size / _least(call, rounds, timer) for call in _movers(size)) for size in sizes},
        {str(dtype).removeprefix("torch."): _product_rate(dtype, products, rounds, timer) for dtype in DTYPES},
    )


def best(*machines: Machine) -> Machine:
    """Of several measurements the fastest: the others were disturbed."""

    def highest(found: Sequence[Mapping[Any, float]]) -> dict[Any, float]:
        return {key: max(one[key] for one in found) for key in found[0]}

    return Machine(highest([m.bandwidth for m in machines]), highest([m.products for m in machines]))


def _movers(size: int) -> list[Callable[[], object]]:
    """Calls that touch so many bytes in all: reading, copying, adding two into a third, filling."""
    n = size // 4
    whole, half, third = torch.ones(n), torch.ones(n // 2), torch.ones(n // 3)
    copy, total, other = torch.ones_like(half), torch.empty_like(third), torch.ones_like(third)
    return [
        lambda: torch.dot(half, copy),
        lambda: copy.copy_(half),
        lambda: torch.add(third, other, out=total),
        lambda: whole.fill_(1),
    ]


def _product_rate(dtype: torch.dtype, n: int, rounds: int, timer: Timer) -> float:
    a, b = torch.randn(n, n).to(dtype), torch.randn(n, n).to(dtype)
    out = torch.empty_like(a)
    return 2 * n**3 / _least(lambda: torch.mm(a, b, out=out), rounds, timer)


def _least(call: Callable[[], object], rounds: int, timer: Timer) -> float:
    """Seconds of a call, at best."""
    once = timer(call, 1).busy
    calls = max(1, int(0.003 / max(once, 1e-7)))
    return min(timer(call, calls).busy for _ in range(rounds))
