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
        Differentiable in x, the four weights and base; for the gradient the hidden values are kept, R numbers in fp32
        (fp64 for fp64) for each row.

    Raises:
        ValueError: a rank, size, dtype or device disagrees, or activation is unknown.
    """
    leaves = (x, down, down_bias, up, up_bias, base)
    needs_gradient = torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in leaves)
    y, _ = call(
        torch.ops.artsy.routed_adapter,
        x,
        *routes,
        down,
        down_bias,
        up,
        up_bias,
        None if base is x else base,
        scale=scale,
        activation=activation,
        residual=base is x,  # one gradient of x instead of two that autograd would have to add
        save_hidden=needs_gradient,
    )
    return y


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
    residual: bool = False,
    save_hidden: bool = True,
) -> Arguments:
    routes = Routes(sample, subnetwork, offsets, order, sample_offsets, overflow)
    check = Check("routed_adapter")
    check.tensor("x", x, "P N D", "P D", dtypes=FLOATING)
    check.routes(routes, like=x)
    check.tensor("down", down, "S R D", like=x)
    check.tensor("down_bias", down_bias, "S R", like=x)
    check.tensor("up", up, "S D R", like=x)
    check.tensor("up_bias", up_bias, "S D", like=x)
    if base is not None and residual:
        check.fail("base must be None with residual, got a tensor")
    if base is not None:
        check.tensor("base", base, "P N D" if x.dim() == 3 else "P D", like=x)
    check.word("activation", activation, tuple(reference.ACTIVATIONS))
    keywords = {"scale": scale, "activation": activation, "base": x if residual else base, "save_hidden": save_hidden}
    return (x, routes, down, down_bias, up, up_bias), keywords


def _definition(x: Tensor, routes: Routes, down: Tensor, *others: Any, save_hidden: bool, **keywords: Any) -> Any:
    y = reference.routed_adapter(x, routes, down, *others, **keywords)
    return y, _hidden(x, down, save_hidden).zero_()  # the gradient of the definition needs nothing saved


def _fake(x: Tensor, routes: Routes, down: Tensor, *_: Any, save_hidden: bool, **__: Any) -> tuple[Tensor, Tensor]:
    return x.new_empty(x.shape), _hidden(x, down, save_hidden)


def _hidden(x: Tensor, down: Tensor, save_hidden: bool) -> Tensor:
    """What the kernels save: the hidden values before activation, in the type they are computed in."""
    shape = (*x.shape[:-1], down.shape[1]) if save_hidden else (0,)
    return x.new_empty(shape, dtype=torch.promote_types(x.dtype, torch.float32))


register("routed_adapter", _arguments, _definition, _fake, differentiable=True, saves=True, autocast="lower")
