"""prototype_logits: the answer of the functional sub-networks, cosine to class prototypes."""

from typing import Any

import torch
from torch import Tensor

from artsy_ext.ops._check import FLOATING, Check
from artsy_ext.ops._register import Arguments, call, register
from artsy_ext.ops.plan_routes.routes import Routes
from artsy_ext.ops.prototype_logits import reference


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
    """Class scores from the functional sub-networks' own feature spaces.

    For sample b and class c, over the functional sub-networks s with weight[s, c] > 0: max or sum of
    weight[s, c] · cos(features_p, prototypes[s, c]); plus cos(base_features_b, base_prototypes_c) where given.

    Args:
        features: [P, D] floating, rows in route order.
        routes: the plan, with P pairs, B samples and S sub-networks.
        prototypes: [S, C, D], as features.
        weight: [S, C], as features; 0 (or less) where sub-network s has no say on class c.
        base_features: [B, D], and base_prototypes: [C, D], as features; both or neither.
        reduce: "max" or "sum" over the sub-networks.

    Returns:
        [B, C] as features; −inf where no functional sub-network has a say on the class, NaN where the plan overflowed.
        Differentiable in features, prototypes, weight, base_features and base_prototypes; where sub-networks tie in the
        maximum the gradient is shared among them.

    Raises:
        ValueError: a rank, size, dtype or device disagrees, one base argument comes without the other, or reduce is
            unknown.
    """
    return call(
        torch.ops.artsy.prototype_logits,
        features,
        *routes,
        prototypes,
        weight,
        base_features,
        base_prototypes,
        reduce=reduce,
    )


def _arguments(
    features: Tensor,
    sample: Tensor,
    subnetwork: Tensor,
    offsets: Tensor,
    order: Tensor,
    sample_offsets: Tensor,
    overflow: Tensor,
    prototypes: Tensor,
    weight: Tensor,
    base_features: Tensor | None = None,
    base_prototypes: Tensor | None = None,
    *,
    reduce: str = "max",
) -> Arguments:
    routes = Routes(sample, subnetwork, offsets, order, sample_offsets, overflow)
    check = Check("prototype_logits")
    check.tensor("features", features, "P D", dtypes=FLOATING)
    check.routes(routes, like=features)
    check.tensor("prototypes", prototypes, "S C D", like=features)
    check.tensor("weight", weight, "S C", like=features)
    if (base_features is None) != (base_prototypes is None):
        missing = "base_features" if base_features is None else "base_prototypes"
        check.fail(f"base_features and base_prototypes go together, {missing} is missing")
    if base_features is not None and base_prototypes is not None:
        check.tensor("base_features", base_features, "B D", like=features)
        check.tensor("base_prototypes", base_prototypes, "C D", like=features)
    check.word("reduce", reduce, ("max", "sum"))
    keywords = {"base_features": base_features, "base_prototypes": base_prototypes, "reduce": reduce}
    return (features, routes, prototypes, weight), keywords


def _fake(features: Tensor, routes: Routes, prototypes: Tensor, *_: Any, **__: Any) -> Tensor:
    return features.new_empty(routes.sample_offsets.shape[0] - 1, prototypes.shape[1])


register("prototype_logits", _arguments, reference.prototype_logits, _fake, differentiable=True, autocast="lower")
