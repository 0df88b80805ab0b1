"""synapse_currents beside one product with the masked weights.

pytest bench/ops/synapse_currents.py
"""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from artsy_ext.ops import reference, synapse_currents

AFFERENTS = 2 * 768 + 1  # as STDPSynapses has them for D = 768
CASES = [(8, 20, 10), (32, 20, 10), (256, 20, 10), (256, 100, 10)]


def where(x: Tensor, weight: Tensor, functional: Tensor, bias: Tensor) -> Tensor:
    transmitting = torch.where(functional, weight, 0)
    return F.linear(x, transmitting.flatten(0, 1), bias.flatten()).view(-1, *bias.shape)


def times(x: Tensor, weight: Tensor, functional: Tensor, bias: Tensor) -> Tensor:
    return F.linear(x, (weight * functional).flatten(0, 1), bias.flatten()).view(-1, *bias.shape)


PEERS: dict[str, Callable[..., Tensor]] = {"where": where, "times": times}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize(("B", "S", "J"), CASES)
def test_ratio(interleaved: Any, threads: int, B: int, S: int, J: int, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    x, weight = torch.rand(B, AFFERENTS, dtype=dtype), torch.randn(S, J, AFFERENTS, dtype=dtype) / AFFERENTS**0.5
    functional, bias = torch.rand(S, J, AFFERENTS) < 0.7, torch.randn(S, J, dtype=dtype)
    exact = reference.synapse_currents(x.double(), weight.double(), functional, bias.double())
    tolerance = {"rtol": 0, "atol": 1e-5 if dtype == torch.float32 else 0.05}
    calls = {name: lambda f=f: f(x, weight, functional, bias) for name, f in PEERS.items()}
    calls[""] = lambda: synapse_currents(x, weight, functional, bias)
    for call in calls.values():
        torch.testing.assert_close(call().double(), exact, **tolerance)
    interleaved(calls.pop(""), calls)
