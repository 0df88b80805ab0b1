"""consolidate beside what a user would write: the definition's two comparisons and a choice.

pytest bench/ops/consolidate.py
"""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from artsy_ext.ops import consolidate, reference

CASES = [(1, 400, 784), (50, 64, 768)]
ON, OFF = 0.8, 0.4


def chosen(weight: Tensor, functional: Tensor) -> Tensor:
    strength = weight.abs()
    return torch.where(functional, strength >= OFF, strength >= ON)


def combined(weight: Tensor, functional: Tensor) -> Tensor:
    strength = weight.abs()
    return (strength >= OFF).logical_and_(functional).logical_or_(strength >= ON)


PEERS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {"where": chosen, "logical": combined}


@pytest.mark.parametrize("shape", CASES, ids=lambda shape: "x".join(map(str, shape)))
def test_ratio(interleaved: Any, threads: int, shape: tuple[int, ...]) -> None:
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(shape, generator=generator)
    functional = torch.rand(shape, generator=generator) < 0.5
    expected = reference.consolidate(weight, functional, ON, OFF)
    for found in (consolidate(weight, functional, ON, OFF), *(p(weight, functional) for p in PEERS.values())):
        assert torch.equal(found, expected)
    interleaved(
        lambda: consolidate(weight, functional, ON, OFF),
        {name: lambda p=p: p(weight, functional) for name, p in PEERS.items()},
    )
