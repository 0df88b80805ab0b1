"""synapse_scores beside one product for all gates, and beside a loop over them.

pytest bench/ops/synapse_scores.py
"""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from artsy_ext.ops import reference, synapse_scores

D, R = 768, 32
CASES = [(8, 20), (32, 20), (256, 20), (256, 100)]


def one_product(features: Tensor, down: Tensor, down_bias: Tensor, up: Tensor, up_bias: Tensor) -> Tensor:
    hidden = F.linear(features, down.flatten(0, 1), down_bias.flatten()).relu_()
    return (hidden.view(-1, *up.shape) * up).sum(2) + up_bias


def loop(features: Tensor, down: Tensor, down_bias: Tensor, up: Tensor, up_bias: Tensor) -> Tensor:
    scores = features.new_empty(len(features), len(up))
    for s in range(len(up)):
        hidden = torch.addmm(down_bias[s], features, down[s].t()).relu_()
        torch.add(hidden @ up[s], up_bias[s], out=scores[:, s])
    return scores


PEERS: dict[str, Callable[..., Tensor]] = {"one product": one_product, "loop": loop}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize(("B", "S"), CASES)
def test_ratio(interleaved: Any, threads: int, B: int, S: int, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    shapes = ((B, D), (S, R, D), (S, R), (S, R), (S,))
    arguments = [torch.randn(shape, dtype=dtype) / shape[-1] ** 0.5 for shape in shapes]
    exact = reference.synapse_scores(*(a.double() for a in arguments))
    tolerance = {"rtol": 0, "atol": 1e-5 if dtype == torch.float32 else 0.05}
    calls = {name: lambda f=f: f(*arguments) for name, f in {"": synapse_scores, **PEERS}.items()}
    for call in calls.values():
        torch.testing.assert_close(call().double(), exact, **tolerance)
    interleaved(calls.pop(""), calls)
