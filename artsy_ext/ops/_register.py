"""Enters an op into PyTorch: the definition as kernel on every device without one of its own, fake, gradient, autocast.

The schemas stand in csrc/ops.cpp. A compiled kernel, registered for its device there, takes precedence over the
definition registered here.
"""

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import Any, Literal

import torch
from torch import Tensor

from artsy_ext import _library

_library.load()
_fragment = torch.library.Library("artsy", "IMPL")

Kernel = Callable[..., Any]
Arguments = tuple[tuple[Any, ...], dict[str, Any]]


def register(
    name: str,
    arguments: Callable[..., Arguments],
    definition: Kernel,
    fake: Kernel,
    *,
    differentiable: bool = False,
    autocast: Literal["lower", "float32"] | None = None,
) -> None:
    """Registers `artsy::<name>`.

    arguments: checks the flattened arguments of the schema and gives those of the definition, (args, kwargs).
    definition: the reference.
    fake: the definition's results as empty tensors, from shapes alone; called as the definition is.
    differentiable: also registers `<name>_backward`, which differentiates the definition.
    autocast: "lower" follows the region's dtype, "float32" stays in fp32, None leaves the arguments as they come.
    """

    def kernel(*flat: Any, **keywords: Any) -> Any:
        args, kwargs = arguments(*flat, **keywords)
        with nullcontext() if differentiable else torch.no_grad():
            return definition(*args, **kwargs)

    def fake_kernel(*flat: Any, **keywords: Any) -> Any:
        args, kwargs = arguments(*flat, **keywords)
        return fake(*args, **kwargs)

    _fragment.impl(name, kernel, "CompositeExplicitAutograd")
    torch.library.register_fake(f"artsy::{name}", fake_kernel, lib=_fragment)
    op = getattr(torch.ops.artsy, name).default
    if differentiable:
        _register_gradient(name, op, kernel)
    if autocast is not None:
        for device in ("CPU", "CUDA"):
            _fragment.impl(name, _autocast_kernel(op, device, autocast), f"Autocast{device}")


def register_composite(name: str, kernel: Kernel) -> None:
    """Registers `artsy::<name>` as a composition of other ops, which bring fake, gradient and autocast with them."""
    _fragment.impl(name, kernel, "CompositeImplicitAutograd")


def _register_gradient(name: str, op: Any, kernel: Kernel) -> None:
    backward = getattr(torch.ops.artsy, f"{name}_backward").default
    arguments = [a for a in op._schema.arguments if not a.kwarg_only]
    defaults = [a.default_value for a in arguments]
    several = len(op._schema.returns) > 1

    def setup_context(ctx: Any, inputs: tuple[Any, ...], keyword_only_inputs: dict[str, Any], output: Any) -> None:
        inputs = (*inputs, *defaults[len(inputs) :])
        ctx.keywords = keyword_only_inputs
        ctx.others = [None if isinstance(a, Tensor) else a for a in inputs]
        ctx.tensor_at = [i for i, a in enumerate(inputs) if isinstance(a, Tensor)]
        ctx.save_for_backward(*(inputs[i] for i in ctx.tensor_at))

    def without_keywords(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        setup_context(ctx, inputs, {}, output)

    def gradient(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        inputs = list(ctx.others)
        for i, tensor in zip(ctx.tensor_at, ctx.saved_tensors, strict=True):
            inputs[i] = tensor
        needs = [bool(n) for n in ctx.needs_input_grad[: len(arguments)]]
        needs += [False] * (len(arguments) - len(needs))
        found = iter(backward(list(grads) if several else grads[0], *inputs, **ctx.keywords, needs=needs))
        return tuple(next(found) if need else None for need in needs)

    def backward_kernel(grad: Any, *inputs: Any, needs: Sequence[bool], **keywords: Any) -> list[Tensor]:
        inputs = (*inputs, *defaults[len(inputs) :])
        wanted: list[Tensor] = []
        leaves = []
        for a, need in zip(inputs, needs, strict=True):
            a = a.detach() if isinstance(a, Tensor) else a
            if need:
                wanted.append(a.requires_grad_())
            leaves.append(a)
        with _autograd_inside_a_kernel():
            outputs = kernel(*leaves, **keywords)
            pairs = list(zip(outputs, grad, strict=True)) if several else [(outputs, grad)]
            pairs = [(o, g) for o, g in pairs if o.requires_grad]
            if not pairs:
                return [torch.zeros_like(a) for a in wanted]
            return list(
                torch.autograd.grad(
                    [o for o, _ in pairs], wanted, [g for _, g in pairs], allow_unused=True, materialize_grads=True
                )
            )

    def backward_fake(grad: Any, *inputs: Any, needs: Sequence[bool], **keywords: Any) -> list[Tensor]:
        return [torch.empty_like(a) for a, need in zip(inputs, needs, strict=False) if need]

    _fragment.impl(f"{name}_backward", backward_kernel, "CompositeExplicitAutograd")
    torch.library.register_fake(f"artsy::{name}_backward", backward_fake, lib=_fragment)
    has_keywords = any(a.kwarg_only for a in op._schema.arguments)
    torch.library.register_autograd(
        f"artsy::{name}",
        gradient,
        setup_context=setup_context if has_keywords else without_keywords,
        lib=_fragment,
    )


class _autograd_inside_a_kernel:  # noqa: N801 - a context manager, used like a function
    """Records gradients again where the dispatcher, having passed the autograd layer, has switched it off."""

    def __enter__(self) -> None:
        C = torch._C
        below = C.DispatchKeySet(C.DispatchKey.AutogradFunctionality) | C.DispatchKeySet(C.DispatchKey.ADInplaceOrView)
        self.guard = C._ForceDispatchKeyGuard(
            C._dispatch_tls_local_include_set(), C._dispatch_tls_local_exclude_set() - below
        )
        self.guard.__enter__()
        self.grad = torch.enable_grad()
        self.grad.__enter__()

    def __exit__(self, *error: Any) -> None:
        self.grad.__exit__(*error)
        self.guard.__exit__(*error)


def _autocast_kernel(op: Any, device: str, policy: str) -> Kernel:
    keys = torch._C.DispatchKeySet(getattr(torch._C.DispatchKey, f"Autocast{device}"))

    def kernel(*args: Any, **kwargs: Any) -> Any:
        dtype = torch.float32 if policy == "float32" else torch.get_autocast_dtype(device.lower())
        with torch._C._ExcludeDispatchKeyGuard(keys):
            return op(*(_cast(a, dtype) for a in args), **kwargs)

    return kernel


def _cast(value: Any, dtype: torch.dtype) -> Any:
    # As PyTorch's own rules: double stays double.
    if isinstance(value, Tensor) and value.is_floating_point() and value.dtype != torch.float64:
        return value.to(dtype)
    return value
