"""The ops as a GPU computes them, from emulated kernels: what csrc/cuda/<op>.cu does around the launches, in Python.

`emulated` puts them in the place of the CPU's kernels, so that an op's own tests run on them.
"""

import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from emulation.emulator import Emulator
from torch import Tensor

from artsy_ext.ops._check import REAL
from artsy_ext.ops.combine_routes import _arguments as check_combine_routes
from artsy_ext.ops.consolidate import _arguments as check_consolidate
from artsy_ext.ops.encode_spikes import _arguments as check_encode_spikes
from artsy_ext.ops.plan_routes import _arguments as check_plan_routes
from artsy_ext.ops.stdp import _arguments as check_stdp
from artsy_ext.ops.stdp import _consolidate_arguments as check_stdp_consolidate


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


def encode_spikes(
    emulator: Emulator,
    x: Tensor,
    steps: int,
    *,
    code: str = "rate",
    seed: int = 0,
    offset: int = 0,
    dtype: torch.dtype | None = None,
) -> Tensor:
    dtype = torch.bool if dtype is None else dtype
    check_encode_spikes(x, steps, code=code, seed=seed, offset=offset, dtype=dtype)
    x = (x if x.dtype in REAL else x.float()).contiguous()
    spikes = x.new_empty((steps, *x.shape), dtype=dtype)
    one = torch.ones((), dtype=dtype).view(getattr(torch, f"int{8 * dtype.itemsize}")).item()
    arguments = (x, x.numel(), steps, code == "latency", seed, offset, one, spikes)
    emulator.call(f"{_word(x)}_{dtype.itemsize}", *arguments)
    return spikes


def consolidate(emulator: Emulator, weight: Tensor, functional: Tensor, on: float, off: float) -> Tensor:
    check_consolidate(weight, functional, on, off)
    weight, functional = _contiguous(weight, functional)
    result = torch.empty_like(functional)
    emulator.call(_word(weight), weight, functional, weight.numel(), on, off, result)
    return result


def stdp(emulator: Emulator, weight: Tensor, *flat: Any, **rule: Any) -> tuple[Tensor, ...]:
    return _stdp(emulator, "stdp", weight, None, flat, rule)[:6]


def stdp_(emulator: Emulator, weight: Tensor, *flat: Any, **rule: Any) -> tuple[Tensor, ...]:
    result, *traces, _ = _stdp(emulator, "stdp_", weight, None, flat, rule)
    weight.copy_(result)
    return tuple(traces)


def stdp_consolidate(
    emulator: Emulator, weight: Tensor, functional: Tensor, *flat: Any, on: float, off: float, **rule: Any
) -> tuple[Tensor, ...]:
    check_stdp_consolidate(weight, functional, *flat, on=on, off=off, **rule)
    return _stdp(emulator, "stdp_consolidate", weight, (functional, on, off), flat, rule)


WORDS = {  # of a rule, as csrc/cpu/stdp/problem.h numbers them
    "pairing": ("all", "nearest"),
    "timing": ("inclusive", "exclusive"),
    "dependence": ("none", "proportional", "soft", "hard"),
    "evaluate": ("call", "step"),
    "clamp": ("never", "end", "step"),
    "reduction": ("sum", "mean"),
}


def _stdp(
    emulator: Emulator,
    op: str,
    weight: Tensor,
    consolidation: tuple[Tensor, float, float] | None,
    flat: Sequence[Any],
    rule: dict[str, Any],
) -> tuple[Tensor, ...]:
    (_, pre, post, checked), keywords = check_stdp(op, weight, *flat, **rule)
    traces, modulation, mask = (keywords[name] for name in ("traces", "modulation", "mask"))
    T, B, S, J = post.shape
    I = weight.shape[2]

    def spikes(given: Tensor) -> Tensor:
        return (given if given.dtype in (torch.bool, torch.uint8) else given.to(weight.dtype)).contiguous()

    pre, post = spikes(pre), spikes(post)
    kinds = [{torch.bool: 2, torch.uint8: 1}.get(side.dtype, 0) for side in (pre, post)]
    own_modulation = modulation is not None and modulation.dim() == 3
    sizes = torch.tensor([T, B, S, J, I, pre.dim() == 4, own_modulation, *kinds])
    # In the order of the schema.
    words = {name: WORDS[name].index(value) if name in WORDS else value for name, value in rule.items()}
    eligibility, triplet = words.pop("eligibility"), words.pop("triplet")
    delay = words.pop("modulation_delay")
    functional, on, off = consolidation or (None, 0.0, 0.0)
    numbers = [*words.values(), -1 if eligibility is None else eligibility, delay, *(triplet or [-1] * 4), on, off]

    amplitudes = (checked.a_plus, checked.a_minus)
    given = [None] * 5 if traces is None else traces
    inputs = _contiguous(pre, post, *amplitudes, *given, modulation, mask, weight, functional)
    problem = (sizes, torch.tensor(numbers, dtype=torch.float64), *inputs)
    scratch = weight.new_empty(emulator.call(f"scratch_{_word(weight)}", *problem), dtype=torch.uint8)
    shapes = (pre.shape[1:], post.shape[1:])
    kept = (True, True, triplet is not None, triplet is not None, eligibility is not None)
    results = [
        weight.new_empty(shape if keep else 0)
        for keep, shape in zip((True, *kept), (weight.shape, *shapes, *shapes, (B, S, J, I)), strict=True)
    ]
    results.append(weight.new_empty(weight.shape if consolidation else 0, dtype=torch.bool))
    emulator.call(_word(weight), *problem, *results, scratch)
    return tuple(results)


OPS = {
    "plan_routes": [plan_routes],
    "combine_routes": [combine_routes, combine_routes_backward],
    "encode_spikes": [encode_spikes],
    "consolidate": [consolidate],
    "stdp": [stdp, stdp_, stdp_consolidate],
}
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
