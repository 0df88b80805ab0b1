"""Enters an op into PyTorch: a kernel for every device without a compiled one, fake, gradient, autocast.

The schemas stand in csrc/ops.cpp. A compiled kernel, registered for its device there, takes precedence over what is
registered here: the op's Triton kernel where `_kernels.py` says so, else its definition.
"""

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import Any, Literal, NoReturn

import torch
from torch import Tensor
from torch._library.triton import set_wrap_triton_enabled
from torch._subclasses.functional_tensor import FunctionalTensorMode

from artsy_ext import _library
from artsy_ext.ops._kernels import Kernel, triton_kernel

_library.load()
_fragment = torch.library.Library("artsy", "IMPL")

KERNELS: dict[str, Kernel] = {}
"""By op, what is registered for every device without a compiled kernel."""
Arguments = tuple[tuple[Any, ...], dict[str, Any]]
Autocast = Literal["lower", "float32"] | None


def call(op: Any, *args: Any, **kwargs: Any) -> Any:
    """`op`, a member of torch.ops.artsy, of these arguments; what its kernel refuses is a ValueError.

    Up to 2.14 PyTorch makes that of a kernel's std::invalid_argument, since 2.15 a RuntimeError.
    """
    try:
        return op(*args, **kwargs)
    except RuntimeError as error:
        message = str(error)
        if message.startswith(f"{op.__name__}: "):
            raise ValueError(message) from None
        raise


def register(
    name: str,
    arguments: Callable[..., Arguments],
    definition: Kernel,
    fake: Kernel,
    *,
    differentiable: bool = False,
    saves: bool = False,
    autocast: Autocast = None,
) -> None:
    """Registers `artsy::<name>`.

    arguments: checks the flattened arguments of the schema and gives those of the definition, (args, kwargs).
    definition: the reference.
    fake: the definition's results as empty tensors, from shapes alone; called as the definition is.
    differentiable: also registers `<name>_backward`, which differentiates the definition.
    saves: the last of the results is for the gradient alone: `<name>_backward` takes it behind those of the others.
    autocast: "lower" follows the region's dtype, "float32" stays in fp32, None leaves the arguments as they come.
    """

    def defined(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        with nullcontext() if differentiable else torch.no_grad():
            return _contiguous(definition(*args, **kwargs))

    def kernel(*flat: Any, **keywords: Any) -> Any:
        args, kwargs = arguments(*flat, **keywords)
        launch = triton_kernel(name, name, args, kwargs)
        return defined(args, kwargs) if launch is None else _launched(launch, args, kwargs)

    def traced(*flat: Any, **keywords: Any) -> Any:
        args, kwargs = arguments(*flat, **keywords)
        launch = triton_kernel(name, name, args, kwargs)
        return None if launch is None else launch(*args, **kwargs)

    def fake_kernel(*flat: Any, **keywords: Any) -> Any:
        args, kwargs = arguments(*flat, **keywords)
        return _contiguous(fake(*args, **kwargs))

    _register_kernel(name, kernel, fake_kernel, traced)
    if differentiable:
        _register_gradient(name, arguments, defined, saves)
    _register_autocast(name, autocast)


def _register_kernel(name: str, kernel: Kernel, fake: Kernel, traced: Kernel) -> None:
    """traced: what the compiler sees of it, as a function of tensors without data: Triton kernels, or None."""
    KERNELS[name] = kernel
    _fragment.impl(name, kernel, "CompositeExplicitAutograd")
    torch.library.register_fake(f"artsy::{name}", fake, lib=_fragment)

    def decomposed(mode: Any, op: Any, types: Any, args: Any, kwargs: Any) -> Any:
        # As torch.library.triton_op does it; an exported program keeps the op.
        if not torch.compiler.is_exporting():
            with mode:
                found = traced(*args, **kwargs)
            if found is not None:
                return found
        return mode.__torch_dispatch__(op, types, args, kwargs)

    torch.library.register_torch_dispatch(f"artsy::{name}", FunctionalTensorMode, decomposed, lib=_fragment)


def _launched(kernel: Kernel, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """The kernel of these arguments, on their device; its launches go straight to Triton, past the compiler's view."""
    first = next(a for a in args if isinstance(a, Tensor))
    with set_wrap_triton_enabled(False), torch.cuda.device_of(first):
        return kernel(*args, **kwargs)


def _register_gradient(name: str, arguments: Callable[..., Arguments], defined: Kernel, saves: bool) -> None:
    op = getattr(torch.ops.artsy, name).default
    backward = getattr(torch.ops.artsy, f"{name}_backward").default
    positional = [a for a in op._schema.arguments if not a.kwarg_only]
    defaults = [a.default_value for a in positional]
    several = len(op._schema.returns) > 1 + saves

    def setup_context(ctx: Any, inputs: tuple[Any, ...], keyword_only_inputs: dict[str, Any], output: Any) -> None:
        inputs = (*inputs, *defaults[len(inputs) :])
        ctx.keywords = keyword_only_inputs
        ctx.others = [None if isinstance(a, Tensor) else a for a in inputs]
        ctx.tensor_at = [i for i, a in enumerate(inputs) if isinstance(a, Tensor)]
        saved = output[-1:] if saves else ()
        ctx.mark_non_differentiable(*saved)
        ctx.save_for_backward(*saved, *(inputs[i] for i in ctx.tensor_at))

    def without_keywords(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        setup_context(ctx, inputs, {}, output)

    def gradient(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        inputs = list(ctx.others)
        saved, tensors = ctx.saved_tensors[:saves], ctx.saved_tensors[saves:]
        for i, tensor in zip(ctx.tensor_at, tensors, strict=True):
            inputs[i] = tensor
        needs = [bool(n) for n in ctx.needs_input_grad[: len(positional)]]
        needs += [False] * (len(positional) - len(needs))
        given = list(grads[: len(grads) - saves]) if several else grads[0]
        found = iter(backward(given, *saved, *inputs, **ctx.keywords, needs=needs))
        return tuple(next(found) if need else None for need in needs)

    def chosen(grad: Any, *inputs: Any, needs: Sequence[bool], **keywords: Any) -> Any:
        """The Triton kernel of the gradient and its arguments; None where there is none."""
        args, kwargs = arguments(*inputs[saves:], **keywords)
        launch = triton_kernel(name, f"{name}_backward", args, kwargs)
        return launch and (launch, (grad, *inputs[:saves], *args), {**kwargs, "needs": list(needs)})

    def traced(*inputs: Any, **keywords: Any) -> Any:
        call = chosen(*inputs, **keywords)
        return call and call[0](*call[1], **call[2])

    def backward_kernel(grad: Any, *inputs: Any, needs: Sequence[bool], **keywords: Any) -> list[Tensor]:
        call = chosen(grad, *inputs, needs=needs, **keywords)
        if call:
            return _launched(*call)
        inputs = inputs[saves:]
        inputs = (*inputs, *defaults[len(inputs) :])
        wanted: list[Tensor] = []
        leaves = []
        for a, need in zip(inputs, needs, strict=True):
            a = a.detach() if isinstance(a, Tensor) else a
            if need:
                wanted.append(a.requires_grad_())
            leaves.append(a)
        with _autograd_inside_a_kernel():
            outputs = defined(*arguments(*leaves, **keywords))
            if saves:
                outputs = outputs[:-1] if several else outputs[0]
            pairs = list(zip(outputs, grad, strict=True)) if several else [(outputs, grad)]
            pairs = [(o, g) for o, g in pairs if o.requires_grad]
            if not pairs:
                return [torch.zeros_like(a, memory_format=torch.contiguous_format) for a in wanted]
            found = torch.autograd.grad(
                [o for o, _ in pairs], wanted, [g for _, g in pairs], allow_unused=True, materialize_grads=True
            )
        # Autograd hands a gradient through where it can; an op's results are its own.
        return [gradient.clone(memory_format=torch.contiguous_format) for gradient in found]

    def backward_fake(grad: Any, *inputs: Any, needs: Sequence[bool], **keywords: Any) -> list[Tensor]:
        wanted = [a for a, need in zip(inputs[saves:], needs, strict=False) if need]
        return [torch.empty_like(a, memory_format=torch.contiguous_format) for a in wanted]

    def no_second_gradient(ctx: Any, *grads: Any) -> NoReturn:
        raise RuntimeError(f"{name}: differentiable once, its gradients have no gradient")

    _register_kernel(f"{name}_backward", backward_kernel, backward_fake, traced)
    torch.library.register_autograd(f"artsy::{name}_backward", no_second_gradient, lib=_fragment)
    has_keywords = any(a.kwarg_only for a in op._schema.arguments)
    torch.library.register_autograd(
        f"artsy::{name}",
        gradient,
        setup_context=setup_context if has_keywords else without_keywords,
        lib=_fragment,
    )


def _contiguous(results: Any) -> Any:
    """The definition's results as a fake without strides foretells them."""
    if isinstance(results, Tensor):
        return results.contiguous()
    return tuple(result.contiguous() for result in results)


class _autograd_inside_a_kernel:  # noqa: N801 - a context manager, used like a function
    """Records gradients again where the dispatcher, having passed the autograd layer, has switched it off.

    Without autocast: a backward pass called inside a region computes in the precision of the forward pass.
    """

    def __enter__(self) -> None:
        C = torch._C
        below = C.DispatchKeySet(C.DispatchKey.AutogradFunctionality) | C.DispatchKeySet(C.DispatchKey.ADInplaceOrView)
        autocast = C.DispatchKeySet(C.DispatchKey.AutocastCPU) | C.DispatchKeySet(C.DispatchKey.AutocastCUDA)
        self.guard = C._ForceDispatchKeyGuard(
            C._dispatch_tls_local_include_set(), (C._dispatch_tls_local_exclude_set() - below) | autocast
        )
        self.guard.__enter__()
        self.grad = torch.enable_grad()
        self.grad.__enter__()

    def __exit__(self, *error: Any) -> None:
        self.grad.__exit__(*error)
        self.guard.__exit__(*error)


def _register_autocast(name: str, policy: Autocast) -> None:
    if policy is not None:
        op = getattr(torch.ops.artsy, name).default
        for device in ("CPU", "CUDA"):
            _fragment.impl(name, _autocast_kernel(op, device, policy), f"Autocast{device}")


def _autocast_kernel(op: Any, device: str, policy: str) -> Kernel:
    keys = torch._C.DispatchKeySet(getattr(torch._C.DispatchKey, f"Autocast{device}"))
    # A cast copy of an argument that the op changes would take the change with it.
    changed = {i for i, a in enumerate(op._schema.arguments) if a.alias_info is not None and a.alias_info.is_write}

    def kernel(*args: Any, **kwargs: Any) -> Any:
        dtype = torch.float32 if policy == "float32" else torch.get_autocast_dtype(device.lower())
        with torch._C._ExcludeDispatchKeyGuard(keys):
            return op(*(a if i in changed else _cast(a, dtype) for i, a in enumerate(args)), **kwargs)

    return kernel


def _cast(value: Any, dtype: torch.dtype) -> Any:
    # As PyTorch's own rules: double stays double.
    if isinstance(value, Tensor) and value.is_floating_point() and value.dtype != torch.float64:
        return value.to(dtype)
    return value
