"""The definition of combine_routes."""

import itertools

import torch
from torch import Tensor

from artsy_ext.ops.plan_routes.routes import Routes


def combine_routes(y: Tensor, routes: Routes, *, weight: Tensor | None = None, base: Tensor | None = None) -> Tensor:
    B = len(routes.sample_offsets) - 1
    total = y.new_zeros(B, *y.shape[1:], dtype=torch.promote_types(y.dtype, torch.float32))
    if base is not None:
        total = total + base
    offsets = routes.offsets.clamp(max=len(y)).tolist()
    for start, stop in itertools.pairwise(offsets):  # a sub-network has a sample at most once
        rows = y[start:stop].to(total.dtype)
        if weight is not None:
            rows = rows * weight[start:stop].view(-1, *[1] * (y.dim() - 1))
        total = total.index_add(0, routes.sample[start:stop], rows)
    return total.to(y.dtype).masked_fill(routes.overflow, torch.nan)
