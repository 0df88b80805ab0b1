"""What every op promises, asked in one place: layouts of memory, pure functions, one-line errors, sparing gradients."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

DEVICES = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
REAL = [torch.float32, torch.float64]
FLOATING = [*REAL, torch.bfloat16, torch.float16]
ISAS = ["portable", "avx2", "avx512"]


def supported(isa: str) -> bool:
    capability = torch.backends.cpu.get_cpu_capability()
    return isa == "portable" or capability == "AVX512" or (isa, capability) == ("avx2", "AVX2")


def transposed(tensor: Tensor) -> Tensor:
    """The same values in column-major order."""
    axes = list(reversed(range(tensor.dim())))
    return tensor.permute(axes).contiguous().permute(axes)


def sliced(tensor: Tensor) -> Tensor:
    """The same values with gaps between them, and in column-major order."""
    if tensor.dim() == 0:
        return tensor.clone()
    room = tensor.new_zeros([2 * size + 1 for size in reversed(tensor.shape)])
    view = room.permute(list(reversed(range(tensor.dim()))))[tuple(slice(1, None, 2) for _ in tensor.shape)]
    return view.copy_(tensor)


LAYOUTS = {"contiguous": Tensor.clone, "transposed": transposed, "sliced": sliced}


def laid_out(arguments: Any, layout: str) -> Any:
    """Arguments with every tensor in that layout."""
    return tree_map(lambda leaf: LAYOUTS[layout](leaf) if isinstance(leaf, Tensor) else leaf, arguments)


def on(device: str, arguments: Any) -> Any:
    """Arguments with every tensor on that device."""
    return tree_map(lambda leaf: leaf.to(device) if isinstance(leaf, Tensor) else leaf, arguments)


def tensors(arguments: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(arguments) if isinstance(leaf, Tensor)]


def assert_same_bits(actual: Any, expected: Any) -> None:
    torch.testing.assert_close(actual, expected, rtol=0, atol=0, equal_nan=True)


def assert_pure(op: Callable[..., Any], *args: Any, **kwargs: Any) -> None:
    """Inputs stay as they are, a second call gives the same bits, and nothing returned shares memory."""
    inputs = tensors((args, kwargs))
    before = [tensor.clone() for tensor in inputs]
    outputs = tensors(op(*args, **kwargs))
    assert_same_bits(inputs, before)
    assert_same_bits(tensors(op(*args, **kwargs)), outputs)
    memory = [tensor.untyped_storage().data_ptr() for tensor in outputs if tensor.numel()]
    taken = {tensor.untyped_storage().data_ptr() for tensor in inputs}
    assert len(set(memory)) == len(memory), "two outputs share memory"
    assert not taken.intersection(memory), "an output shares memory with an input"


def assert_any_layout(op: Callable[..., Any], *args: Any, **kwargs: Any) -> None:
    """Strides change nothing but the order of a sum."""
    expected = op(*args, **kwargs)
    for layout in LAYOUTS:
        args_, kwargs_ = laid_out((args, kwargs), layout)
        torch.testing.assert_close(op(*args_, **kwargs_), expected)


def assert_refused(name: str, argument: str, call: Callable[[], Any]) -> None:
    """Bad input: one line that names the op and the argument."""
    with pytest.raises((ValueError, TypeError)) as caught:
        call()
    message = str(caught.value)
    assert "\n" not in message
    assert message.startswith(f"{name}: ")
    assert argument in message.removeprefix(f"{name}: ")


class _Backward(TorchDispatchMode):
    def __init__(self, name: str) -> None:
        super().__init__()
        self.op = getattr(torch.ops.artsy, f"{name}_backward").default
        self.calls: list[tuple[list[bool], int]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if func is self.op:
            self.calls.append(([bool(need) for need in kwargs["needs"]], len(result)))
        return result


def assert_only_asked(name: str, op: Callable[..., Any], args: tuple[Any, ...], asked: list[int]) -> None:
    """Asks for the gradients of the tensors `asked` (positions in args) only: those, and no others, are computed."""
    args = tuple(a.detach().requires_grad_(i in asked) if isinstance(a, Tensor) else a for i, a in enumerate(args))
    outputs = [out for out in tensors(op(*args)) if out.requires_grad]
    with _Backward(name) as backward:
        found = torch.autograd.grad([out.sum() for out in outputs], [args[i] for i in asked])
    ((needs, count),) = backward.calls
    assert count == sum(needs) == len(asked)
    assert [gradient.shape for gradient in found] == [args[i].shape for i in asked]
