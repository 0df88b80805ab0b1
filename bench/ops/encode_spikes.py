"""encode_spikes beside what a user would write: comparing uniform random numbers, and torch.bernoulli.

    pytest bench/ops/encode_spikes.py

The peers' spikes depend on the device, on the shape and on what was drawn before; ours do not.
"""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from artsy_ext.ops import encode_spikes, reference

CASES = [(100, 32, 784), (16, 64, 768)]


def compared(x: Tensor, steps: int) -> Tensor:
    return torch.rand(steps, *x.shape) < x


def bernoulli(x: Tensor, steps: int) -> Tensor:
    return torch.bernoulli(x.expand(steps, *x.shape)).bool()


PEERS: dict[str, Callable[[Tensor, int], Tensor]] = {"rand <": compared, "bernoulli": bernoulli}


@pytest.mark.parametrize(("steps", "samples", "features"), CASES)
def test_ratio(interleaved: Any, threads: int, steps: int, samples: int, features: int) -> None:
    x = torch.rand(samples, features, generator=torch.Generator().manual_seed(0))
    assert torch.equal(encode_spikes(x, steps, seed=3), reference.encode_spikes(x, steps, seed=3))
    for encode in PEERS.values():
        assert abs(encode(x, steps).float().mean() - x.mean()) < 0.01
    interleaved(lambda: encode_spikes(x, steps), {name: lambda e=e: e(x, steps) for name, e in PEERS.items()})
