"""prototype_logits beside a loop over sub-networks and a product of all features with all prototypes.

pytest bench/ops/prototype_logits.py
"""

import itertools
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from artsy_ext.ops import plan_routes, prototype_logits, reference

FUNCTIONAL, D = 2, 768  # sub-networks per sample, on average; width of the features
CASES = [(32, 5, 50), (256, 20, 200), (256, 100, 200)]


def loop(features: Tensor, routes: Any, prototypes: Tensor, weight: Tensor) -> Tensor:
    """Only the classes on which a sub-network has a say."""
    logits = features.new_full((len(routes.sample_offsets) - 1, weight.shape[1]), -torch.inf)
    for s, (begin, end) in enumerate(itertools.pairwise(routes.offsets.tolist())):
        if begin < end:
            known = weight[s].nonzero().flatten()
            cosines = F.normalize(features[begin:end], dim=1) @ F.normalize(prototypes[s, known], dim=1).t()
            at = (routes.sample[begin:end, None], known)
            logits[at] = torch.maximum(logits[at], weight[s, known] * cosines)
    return logits


def gathered(features: Tensor, routes: Any, prototypes: Tensor, weight: Tensor) -> Tensor:
    """Every feature with all prototypes of its sub-network, then the maximum over the pairs of a sample."""
    rows = F.normalize(features, dim=1)[:, None]
    cosines = torch.bmm(rows, F.normalize(prototypes, dim=2)[routes.subnetwork].transpose(1, 2))[:, 0]
    own = weight[routes.subnetwork]
    scores = torch.where(own > 0, own * cosines, -torch.inf)
    logits = features.new_full((len(routes.sample_offsets) - 1, weight.shape[1]), -torch.inf)
    return logits.index_reduce_(0, routes.sample, scores, "amax")


PEERS: dict[str, Callable[..., Tensor]] = {"loop": loop, "gathered": gathered}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize(("B", "S", "C"), CASES)
def test_ratio(
    interleaved: Any, request: pytest.FixtureRequest, threads: int, B: int, S: int, C: int, dtype: torch.dtype
) -> None:
    width = 16 if request.config.getoption("benchmark_disable") else D
    torch.manual_seed(0)
    routes = plan_routes(torch.rand(B, S) < FUNCTIONAL / S)
    features, prototypes = torch.randn(len(routes.sample), width, dtype=dtype), torch.randn(S, C, width, dtype=dtype)
    weight = torch.eye(S, dtype=dtype).repeat_interleave(C // S, 1)  # each sub-network has its own classes
    exact = reference.prototype_logits(features.double(), routes, prototypes.double(), weight.double())
    tolerance = {"rtol": 0, "atol": 1e-5 if dtype == torch.float32 else 0.02}
    calls = {name: lambda f=f: f(features, routes, prototypes, weight) for name, f in PEERS.items()}
    calls[""] = lambda: prototype_logits(features, routes, prototypes, weight)
    for call in calls.values():
        torch.testing.assert_close(call().double(), exact, **tolerance)
    interleaved(calls.pop(""), calls)
