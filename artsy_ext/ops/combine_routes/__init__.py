"""combine_routes: from the pairs back to the samples, in fixed order. CPU kernels: csrc/cpu."""

from typing import Any

import torch
from torch import Tensor

from artsy_ext.ops._check import FLOATING, Check
from artsy_ext.ops._register import Arguments, call, register
from artsy_ext.ops.combine_routes import reference
from artsy_ext.ops.plan_routes.routes import Routes


def combine_routes(y: Tensor, routes: Routes, *, weight: Tensor | None = None, base: Tensor | None = None) -> Tensor:
    """For every sample the (weighted) sum of its pairs' rows, plus base.

    Args:
        y: [P, ...] floating, rows in route order.
        routes: the plan, with P pairs and B samples.
        weight: [P] factor of each row, as y; None for 1.
        base: [B, ...] added to the sums, as y; None adds nothing.

    Returns:
        [B, ...] as y, summed in fp32 (fp64 for fp64) from the lowest sub-network to the highest, so that the same input
        gives the same bits. 0 (or base) for a sample without a functional sub-network; NaN where the plan overflowed.
        Differentiable in y, weight and base.

    Raises:
        ValueError: a rank, size, dtype or device disagrees.
    """
    return call(torch.ops.artsy.combine_routes, y, *routes, weight, base)


def _arguments(
    y: Tensor,
    sample: Tensor,
    subnetwork: Tensor,
    offsets: Tensor,
    order: Tensor,
    sample_offsets: Tensor,
    overflow: Tensor,
    weight: Tensor | None = None,
    base: Tensor | None = None,
) -> Arguments:
    routes = Routes(sample, subnetwork, offsets, order, sample_offsets, overflow)
    check = Check("combine_routes")
    check.tensor("y", y, "P ...", dtypes=FLOATING)
    check.routes(routes, like=y)
    if weight is not None:
        check.tensor("weight", weight, "P", like=y)
    if base is not None:
        check.tensor("base", base, "B ...", like=y)
        if base.shape[1:] != y.shape[1:]:
            check.fail(f"base must be [B, ...] with the row shape of y, {list(y.shape[1:])}, got {list(base.shape)}")
    return (y, routes), {"weight": weight, "base": base}


def _fake(y: Tensor, routes: Routes, **_: Any) -> Tensor:
    return y.new_empty(routes.sample_offsets.shape[0] - 1, *y.shape[1:])


register("combine_routes", _arguments, reference.combine_routes, _fake, differentiable=True, autocast="lower")
