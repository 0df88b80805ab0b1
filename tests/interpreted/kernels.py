"""Small Triton kernels that exercise what the package's own will rely on: masks, bf16, tensor cores."""

import triton
import triton.language as tl

from artsy_ext.ops import _triton
from artsy_ext.ops._triton import Variant


@triton.jit
def copy_kernel(x, out, n, BLOCK: tl.constexpr, MASKED: tl.constexpr):
    """out = x; without a mask it reads and writes beyond the end."""
    i = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    if MASKED:
        b_x = tl.load(x + i, mask=i < n)
        tl.store(out + i, b_x, mask=i < n)
    else:
        b_x = tl.load(x + i)
        tl.store(out + i, b_x)


@triton.jit
def product_kernel(a, b, out, M, N, K, BLOCK: tl.constexpr):
    """out [M, N] = a [M, K] · b [K, N] in blocks, summed in fp32."""
    m = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    n = tl.program_id(1).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    b_out = tl.zeros((BLOCK, BLOCK), tl.float32)
    for start in range(0, K, BLOCK):
        k = start + tl.arange(0, BLOCK).to(tl.int64)
        b_a = tl.load(a + m[:, None] * K + k[None, :], mask=(m[:, None] < M) & (k[None, :] < K), other=0.0)
        b_b = tl.load(b + k[:, None] * N + n[None, :], mask=(k[:, None] < K) & (n[None, :] < N), other=0.0)
        b_out = _triton.dot(b_a, b_b, b_out, "ieee")
    p_out = out + m[:, None] * N + n[None, :]
    tl.store(p_out, _triton.narrow(b_out, out.dtype.element_ty), mask=(m[:, None] < M) & (n[None, :] < N))


VARIANTS = [
    Variant(
        copy_kernel,
        {"x": "*fp32", "out": "*fp32", "n": "i64"},
        {"BLOCK": 1024, "MASKED": True},
        aligned=("x", "out", "n"),
        promises=("128-bit loads", "128-bit stores", "no global atomics"),
    ),
    Variant(
        product_kernel,
        {"a": "*bf16", "b": "*bf16", "out": "*bf16", "M": "i64", "N": "i64", "K": "i64"},
        {"BLOCK": 64},
        aligned=("a", "b", "out", "M", "N", "K"),
        promises=("tensor cores", "128-bit loads", "asynchronous copies", "no global atomics"),
    ),
]
