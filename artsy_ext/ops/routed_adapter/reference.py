"""The definition of routed_adapter."""

import torch
import torch.nn.functional as F
from torch import Tensor

from artsy_ext.ops.plan_routes.routes import Routes

ACTIVATIONS = {
    "relu": torch.relu,
    "gelu": F.gelu,
    "gelu_tanh": lambda x: F.gelu(x, approximate="tanh"),
}


def routed_adapter(
    x: Tensor,
    routes: Routes,
    down: Tensor,
    down_bias: Tensor,
    up: Tensor,
    up_bias: Tensor,
    *,
    scale: float = 1.0,
    activation: str = "relu",
    base: Tensor | None = None,
) -> Tensor:
    act = ACTIVATIONS[activation]
    offsets = routes.offsets.clamp(max=len(x)).tolist()
    pieces = []
    for s in range(len(offsets) - 1):
        rows = slice(offsets[s], offsets[s + 1])
        hidden = act(F.linear(x[rows], down[s], down_bias[s]))
        y = scale * F.linear(hidden, up[s], up_bias[s])
        pieces.append(y if base is None else base[rows] + y)
    pieces.append(torch.zeros_like(x[offsets[-1] :]))  # padding
    return torch.cat(pieces).masked_fill(routes.overflow, torch.nan)
