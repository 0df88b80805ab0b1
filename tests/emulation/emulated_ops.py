"""The ops as a GPU computes them, from emulated kernels: what csrc/cuda/<op>.cu does around the launches, in Python.

`emulated` puts them in the place of the CPU's kernels, so that an op's own tests run on them.
"""

import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial

import torch
from emulation.emulator import Emulator
from torch import Tensor

from artsy_ext.ops.combine_routes import _arguments as check_combine_routes
from artsy_ext.ops.plan_routes import _arguments as check_plan_routes


def plan_routes(emulator: Emulator, mask: Tensor, capacity: int | None = None) -> tuple[Tensor, ...]:
    check_plan_routes(mask, capacity)
    mask = mask.contiguous()
    B, S = mask.shape
    scratch, offsets, sample_offsets = (
        mask.new_empty(size, dtype=torch.int64) for size in (emulator.call("plan_routes_scratch", B, S), S + 1, B + 1)
    )
    overflow = mask.new_empty(())
    limit = -1 if capacity is None else capacity
    emulator.call("plan_routes_count", mask, B, S, limit, scratch, offsets, sample_offsets, overflow)
    P = int(offsets[S]) if capacity is None else capacity
    sample, subnetwork, order = (mask.new_empty(P, dtype=torch.int64) for _ in range(3))
    emulator.call("plan_routes_scatter", mask, B, S, scratch, offsets, sample_offsets, P, sample, subnetwork, order)
    return sample, subnetwork, offsets, order, sample_offsets, overflow


def combine_routes(
    emulator: Emulator,
    y: Tensor,
    sample: Tensor,
    subnetwork: Tensor,
    offsets: Tensor,
    order: Tensor,
    sample_offsets: Tensor,
    overflow: Tensor,
    weight: Tensor | None = None,
    base: Tensor | None = None,
) -> Tensor:
    check_combine_routes(y, sample, subnetwork, offsets, order, sample_offsets, overflow, weight, base)
    B, row = len(sample_offsets) - 1, y.shape[1:]
    out = y.new_empty(B, *row)
    inputs = _contiguous(y, weight, base, order, sample_offsets, overflow)
    emulator.call(_word(y), *inputs, B, row.numel(), out)
    return out


def combine_routes_backward(
    emulator: Emulator,
    grad: Tensor,
    y: Tensor,
    sample: Tensor,
    subnetwork: Tensor,
    offsets: Tensor,
    order: Tensor,
    sample_offsets: Tensor,
    overflow: Tensor,
    weight: Tensor | None = None,
    base: Tensor | None = None,
    *,
    needs: Sequence[bool],
) -> list[Tensor]:
    P, row = len(y), y.shape[1:]
    grad_y = y.new_empty(y.shape) if needs[0] else None
    grad_weight = y.new_empty(P) if needs[7] else None
    inputs = _contiguous(grad, y, weight, sample, offsets, overflow)
    sizes = (len(offsets) - 1, P, row.numel())
    if needs[0] or needs[7]:
        emulator.call(f"backward_{_word(y)}", *inputs, *sizes, grad_y, grad_weight)
    grad_base = grad.masked_fill(overflow, 0).contiguous() if needs[8] else None
    return [gradient for gradient in (grad_y, grad_weight, grad_base) if gradient is not None]


OPS = {"plan_routes": [plan_routes], "combine_routes": [combine_routes, combine_routes_backward]}
"""Per program, tests/emulation/<op>.cpp, the ops that its kernels compute."""


@contextmanager
def emulated(emulator: Callable[[str], Emulator]) -> Iterator[None]:
    """Within it, the emulated kernels compute the ops of CPU tensors; emulator(op) runs the program of that name."""
    library = torch.library.Library("artsy", "IMPL")
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*overrid", category=UserWarning)
        for program, ops in OPS.items():
            for op in ops:
                library.impl(op.__name__, partial(op, emulator(program)), "CPU", allow_override=True)
    try:
        yield
    finally:
        library._destroy()


def _contiguous(*tensors: Tensor | None) -> list[Tensor | None]:
    return [None if tensor is None else tensor.contiguous() for tensor in tensors]


def _word(tensor: Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")
