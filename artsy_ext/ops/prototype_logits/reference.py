"""The definition of prototype_logits."""

import torch
import torch.nn.functional as F
from torch import Tensor

from artsy_ext.ops.plan_routes.routes import Routes


def prototype_logits(
    features: Tensor,
    routes: Routes,
    prototypes: Tensor,
    weight: Tensor,
    *,
    base_features: Tensor | None = None,
    base_prototypes: Tensor | None = None,
    reduce: str = "max",
) -> Tensor:
    B, (S, C, _) = len(routes.sample_offsets) - 1, prototypes.shape
    empty = -torch.inf if reduce == "max" else 0.0
    logits = features.new_full((B, C), empty, dtype=torch.promote_types(features.dtype, torch.float32))
    answered = torch.zeros(B, C, dtype=torch.bool, device=features.device)

    offsets = routes.offsets.clamp(max=len(features)).tolist()
    for s in range(S):  # a sub-network has a sample at most once
        rows = slice(offsets[s], offsets[s + 1])
        sample, knows = routes.sample[rows], weight[s] > 0
        known = prototypes[s].masked_fill(~knows[:, None], 0)  # the others may hold anything, also for the gradient
        scores = torch.where(knows, weight[s] * cosine(features[rows], known), empty)
        merge = torch.maximum if reduce == "max" else torch.add
        logits = logits.index_copy(0, sample, merge(logits[sample], scores))
        answered[sample] |= knows
    if base_features is not None and base_prototypes is not None:
        logits = logits + cosine(base_features, base_prototypes)
    return torch.where(answered, logits, -torch.inf).to(features.dtype).masked_fill(routes.overflow, torch.nan)


def cosine(x: Tensor, y: Tensor) -> Tensor:
    """[B, D], [C, D] -> [B, C] in fp32 (fp64 for fp64); a vector of length 0 has cosine 0."""
    dtype = torch.promote_types(x.dtype, torch.float32)
    return F.normalize(x.to(dtype), dim=-1) @ F.normalize(y.to(dtype), dim=-1).t()
