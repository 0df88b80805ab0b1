"""routed_adapter: every pair's rows through the adapter of its own sub-network. CPU kernels: csrc/cpu."""

from typing import Any

import torch
from torch import Tensor

from artsy_ext.ops._check import FLOATING, Check
from artsy_ext.ops._register import Arguments, call, register
from artsy_ext.ops.plan_routes.routes import Routes
from artsy_ext.ops.routed_adapter import reference


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
    """Bottleneck adapters of S sub-networks, each on the rows that are routed to it.

    For a pair of sub-network s: base + scale · (act(x · down_sᵀ + down_bias_s) · up_sᵀ + up_bias_s), the parallel
    adapter of AdaptFormer (Chen et al., 2022) as EASE (Zhou et al., 2024) uses it.

    Args:
        x: [P, N, D] or [P, D] floating, the rows in route order, `x = h[routes.sample]`.
        routes: the plan, with S sub-networks and P pairs.
        down: [S, R, D]. down_bias: [S, R]. up: [S, D, R]. up_bias: [S, D].
        scale: factor of the adapter's output.
        activation: "relu", "gelu" or "gelu_tanh".
        base: as x, added to the result; `base=x` is the residual form, None adds nothing.

    Returns:
        As x. Padding rows are 0; everything is NaN where the plan overflowed.
        Differentiable in x, the four weights and base.

    Raises:
        ValueError: a rank, size, dtype or device disagrees, or activation is unknown.
    """
    return call(
        torch.ops.artsy.routed_adapter,
        x,
        *routes,
        down,
        down_bias,
        up,
        up_bias,
        base,
        scale=scale,
        activation=activation,
    )


def _arguments(
    x: Tensor,
    sample: Tensor,
    subnetwork: Tensor,
    offsets: Tensor,
    order: Tensor,
    sample_offsets: Tensor,
    overflow: Tensor,
    down: Tensor,
    down_bias: Tensor,
    up: Tensor,
    up_bias: Tensor,
    base: Tensor | None = None,
    *,
    scale: float = 1.0,
    activation: str = "relu",
) -> Arguments:
    routes = Routes(sample, subnetwork, offsets, order, sample_offsets, overflow)
    check = Check("routed_adapter")
    check.tensor("x", x, "P N D", "P D", dtypes=FLOATING)
    check.routes(routes, like=x)
    check.tensor("down", down, "S R D", like=x)
    check.tensor("down_bias", down_bias, "S R", like=x)
    check.tensor("up", up, "S D R", like=x)
    check.tensor("up_bias", up_bias, "S D", like=x)
    if base is not None:
        check.tensor("base", base, "P N D" if x.dim() == 3 else "P D", like=x)
    check.word("activation", activation, tuple(reference.ACTIVATIONS))
    return (x, routes, down, down_bias, up, up_bias), {"scale": scale, "activation": activation, "base": base}


def _fake(x: Tensor, *_: Any, **__: Any) -> Tensor:
    return x.new_empty(x.shape)


register("routed_adapter", _arguments, reference.routed_adapter, _fake, differentiable=True, autocast="lower")
