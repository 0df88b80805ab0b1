"""The definition of plan_routes."""

import torch
from torch import Tensor

from artsy_ext.ops.plan_routes.routes import Routes


def plan_routes(mask: Tensor, *, capacity: int | None = None) -> Routes:
    B, S = mask.shape
    pairs = mask.t().nonzero() if capacity is None else mask.t().nonzero_static(size=capacity, fill_value=0)
    subnetwork, sample = pairs.unbind(1)

    offsets = torch.zeros(S + 1, dtype=torch.int64, device=mask.device)
    offsets[1:] = mask.sum(0).cumsum(0)
    sample_offsets = torch.zeros(B + 1, dtype=torch.int64, device=mask.device)
    sample_offsets[1:] = mask.sum(1).cumsum(0)

    used = offsets[S]
    is_padding = torch.arange(len(sample), device=mask.device) >= used
    order = torch.where(is_padding, B, sample).argsort(stable=True)  # padding behind the last sample
    return Routes(sample.clone(), subnetwork.clone(), offsets, order, sample_offsets, used > len(sample))
