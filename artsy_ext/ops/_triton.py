"""What Triton kernels share: the switch for Triton's interpreter, and how a kernel is shown to the static gate.

Imported by `artsy_ext/ops/<op>/triton.py` alone: triton is loaded where a kernel of it is used. Each such file has in
`KERNELS` the op and its gradient, called as `_kernels.triton_kernel` says and launching by way of
`torch.library.wrap_triton`, through which compilers see the kernels; tests/interpreted runs them in the interpreter. In
`VARIANTS` are the compiled forms of its kernels, which tests/static inspects.
"""

import os
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl

INTERPRET = tl.constexpr(os.environ.get("TRITON_INTERPRET", "0").lower() in ("1", "true", "on", "yes"))
"""Whether kernels run in Triton's interpreter, whose bf16 dot and casts are wrong: there, kernels cast up first."""


def fp32_precision() -> str:
    """`dot`'s precision for fp32, as torch.backends.cuda.matmul.fp32_precision says; AMD's GPUs multiply in fp32."""
    is_tf32 = torch.backends.cuda.matmul.fp32_precision == "tf32" and torch.version.hip is None
    return "tf32" if is_tf32 else "ieee"


@triton.jit
def dot(a, b, accumulator, PRECISION: tl.constexpr):
    """accumulator + a·b, summed in fp32, for any floating dtype; PRECISION, "tf32" or "ieee", is that of fp32."""
    if INTERPRET:
        a = a.to(tl.float32)
        b = b.to(tl.float32)
    return tl.dot(a, b, accumulator, input_precision=PRECISION)


@triton.jit
def narrow(x, dtype: tl.constexpr):
    """x in another dtype, rounded to nearest even."""
    if INTERPRET and dtype == tl.bfloat16:
        # The bits of bf16 are the upper half of fp32's; NaN stays NaN.
        bits = x.to(tl.float32).to(tl.uint32, bitcast=True)
        rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16
        rounded = tl.where(x != x, 0x7FC0, rounded)
        return rounded.to(tl.uint16).to(tl.bfloat16, bitcast=True)
    return x.to(dtype)


class Variant(NamedTuple):
    """A compiled form of a kernel."""

    kernel: Any
    signature: dict[str, str]
    """Type of each argument that is no constant, in order: {"x": "*bf16", "n": "i64"}."""
    constants: dict[str, Any]
    aligned: tuple[str, ...] = ()
    """Arguments (pointers, sizes) that are multiples of 16."""
    promises: tuple[str, ...] = ()
    """What the machine code must hold, in the words of tests/static/gate.py: "tensor cores", "128-bit loads", …"""
    num_warps: int = 4
    num_stages: int = 3
