"""plan_routes: from the mask of functional sub-networks to the list of pairs that run. CPU kernel: csrc/cpu."""

import torch
from torch import Tensor

from artsy_ext.ops._check import Check
from artsy_ext.ops._register import Arguments, call, register
from artsy_ext.ops.plan_routes import reference
from artsy_ext.ops.plan_routes.routes import Routes


def plan_routes(mask: Tensor, *, capacity: int | None = None) -> Routes:
    """Plans which sub-network runs for which sample.

    Args:
        mask: [B, S] bool, True where sub-network s is functional for sample b.
        capacity: None for exactly as many pairs as are functional (one synchronisation on a GPU), or the number P of
            pairs to make room for: then every shape is known beforehand and nothing waits for the device.

    Returns:
        `Routes`, int64 on the device of mask.

    Raises:
        ValueError: mask is not a bool [B, S]; capacity is negative, or (on a CPU) smaller than the number of pairs.
            On a GPU `routes.overflow` is set instead, ops that use the plan return NaN, and `routes.check()` raises.
    """
    return Routes(*call(torch.ops.artsy.plan_routes, mask, capacity))


def _arguments(mask: Tensor, capacity: int | None = None) -> Arguments:
    check = Check("plan_routes")
    check.tensor("mask", mask, "B S", dtypes=(torch.bool,))
    if capacity is not None and capacity < 0:
        check.fail(f"capacity must be >= 0, got {capacity}")
    return (mask,), {"capacity": capacity}


def _fake(mask: Tensor, *, capacity: int | None) -> tuple[Tensor, ...]:
    B, S = mask.shape
    P = torch.library.get_ctx().new_dynamic_size() if capacity is None else capacity
    sizes = ((P,), (P,), (S + 1,), (P,), (B + 1,))
    return (*(mask.new_empty(size, dtype=torch.int64) for size in sizes), mask.new_empty(()))


register("plan_routes", _arguments, reference.plan_routes, _fake)
