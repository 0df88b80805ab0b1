"""prototype_logits beside a loop over sub-networks and a product of all features with all prototypes.

pytest bench/ops/prototype_logits.py
"""

import itertools
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from artsy_ext.ops import plan_routes, prototype_logits, reference
from bench.case import OURS, PASSES, Case, Cost, Work, compiled, size, work

FUNCTIONAL = 2  # sub-networks per sample, on average


def loop_in_place(features: Tensor, routes: Any, prototypes: Tensor, weight: Tensor) -> Tensor:
    """Only the classes on which a sub-network has a say."""
    logits = features.new_full((len(routes.sample_offsets) - 1, weight.shape[1]), -torch.inf)
    for s, (begin, end) in enumerate(itertools.pairwise(routes.offsets.tolist())):
        if begin < end:
            known = weight[s].nonzero().flatten()
            cosines = F.normalize(features[begin:end], dim=1) @ F.normalize(prototypes[s, known], dim=1).t()
            at = (routes.sample[begin:end, None], known)
            logits[at] = torch.maximum(logits[at], weight[s, known] * cosines)
    return logits


def loop(features: Tensor, routes: Any, prototypes: Tensor, weight: Tensor) -> Tensor:
    """For gradients: one normalisation and one product per sub-network, no slices of the large gradients."""
    logits = features.new_full((len(routes.sample_offsets) - 1, weight.shape[1]), -torch.inf)
    pieces = F.normalize(features, dim=1).split(routes.offsets.diff().tolist())
    samples = routes.sample.split(routes.offsets.diff().tolist())
    for rows, sample, own, say in zip(pieces, samples, prototypes.unbind(0), weight.unbind(0), strict=True):
        if len(rows):
            known = say.nonzero().flatten()
            at = (sample[:, None], known)
            scores = say[known] * (rows @ F.normalize(own[known], dim=1).t())
            logits = logits.index_put(at, torch.maximum(logits[at], scores))
    return logits


def gathered(features: Tensor, routes: Any, prototypes: Tensor, weight: Tensor) -> Tensor:
    """Every feature with all prototypes of its sub-network, then the maximum over the pairs of a sample."""
    rows = F.normalize(features, dim=1)[:, None]
    cosines = torch.bmm(rows, F.normalize(prototypes, dim=2)[routes.subnetwork].transpose(1, 2))[:, 0]
    own = weight[routes.subnetwork]
    scores = torch.where(own > 0, own * cosines, -torch.inf)
    logits = features.new_full((len(routes.sample_offsets) - 1, weight.shape[1]), -torch.inf)
    return logits.index_reduce_(0, routes.sample, scores, "amax")


def build(wanted: str, dtype: torch.dtype, B: int, S: int, C: int, D: int) -> Work:
    routes = plan_routes(torch.rand(B, S) < FUNCTIONAL / S)
    features, prototypes = torch.randn(len(routes.sample), D, dtype=dtype), torch.randn(S, C, D, dtype=dtype)
    weight = torch.eye(S, dtype=dtype).repeat_interleave(C // S, 1)  # each sub-network has its own classes
    if wanted == "forward":
        peers = {"loop": loop_in_place, "gathered": gathered, **compiled("gathered", gathered)}
    else:
        peers = {"loop": loop}
    known, products = size(prototypes) // S, len(routes.sample) * (C // S) * D
    logits = B * C * dtype.itemsize
    return work(
        wanted,
        {OURS: prototype_logits, **peers},
        reference.prototype_logits,
        (features, routes, prototypes, weight),
        differentiate=(0, 2),
        tolerance=1e-5 if dtype == torch.float32 else 0.02,
        cost={
            # Only the prototypes of the classes that a sub-network knows: C of S·C. Their gradient has all.
            "forward": Cost(size(features, weight, routes.sample) + known + logits, 2 * products),
            "backward": Cost(
                size(features, features, prototypes, weight, routes.sample) + known + 2 * logits, 4 * products
            ),
        },
    )


CASES = [
    Case(
        "prototype_logits", build, {"B": B, "S": S, "C": C, "D": 768}, wanted, dtype,
        headline=dtype == torch.float32 and (B, S) == (256, 20), small={"D": 16},
    )
    for B, S, C in [(32, 5, 50), (256, 20, 200), (256, 100, 200)]
    for dtype in (torch.float32, torch.bfloat16)
    for wanted in PASSES
]  # fmt: skip
