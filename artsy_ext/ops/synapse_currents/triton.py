"""synapse_currents on a GPU: one product, in which silent synapses count as 0 as they are loaded; its gradients, too.

With U = S·J units: currents = x · (weight ∘ functional)ᵀ + bias, the gradient of x = grad · (weight ∘ functional), that
of weight = (gradᵀ · x) ∘ functional. All are one kernel, which reads its operands in any order of their axes.
"""

from collections.abc import Sequence
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from artsy_ext.ops._triton import Variant, dot, fp32_precision, narrow


@triton.jit
def synapse_currents_kernel(
    a, b, functional, bias, out, M, N, K, stride_am, stride_ak, stride_bk, stride_bn,
    OF: tl.constexpr, PRECISION: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    """out [M, N] = a [M, K] · b [K, N] + bias [N]; `functional` is OF "b" or "out", laid out as that."""
    tiles = tl.cdiv(M, BM)  # those that share b follow each other
    m = (tl.program_id(0) % tiles).to(tl.int64) * BM + tl.arange(0, BM)
    n = (tl.program_id(0) // tiles).to(tl.int64) * BN + tl.arange(0, BN)
    k = tl.arange(0, BK)
    step = tl.full((), BK, tl.int64)
    inside_m, inside_n = m[:, None] < M, n[None, :] < N
    p_a = a + m[:, None] * stride_am + k.to(tl.int64)[None, :] * stride_ak
    at_b = k.to(tl.int64)[:, None] * stride_bk + n[None, :] * stride_bn
    b_out = tl.zeros((BM, BN), tl.float32)
    for start in range(0, K, BK):
        inside_k = k < K - start
        b_a = tl.load(p_a, mask=inside_m & inside_k[None, :], other=0.0)
        b_b = tl.load(b + at_b, mask=inside_k[:, None] & inside_n, other=0.0)
        if functional is not None and OF == "b":
            b_b = tl.where(tl.load(functional + at_b, mask=inside_k[:, None] & inside_n, other=0) != 0, b_b, 0.0)
        b_out = dot(b_a, b_b, b_out, PRECISION)
        p_a += step * stride_ak
        at_b += step * stride_bk
    at = m[:, None] * N + n[None, :]
    if bias is not None:
        b_out += tl.load(bias + n, mask=n < N, other=0.0).to(tl.float32)[None, :]
    if functional is not None and OF == "out":
        b_out = tl.where(tl.load(functional + at, mask=inside_m & inside_n, other=0) != 0, b_out, 0.0)
    tl.store(out + at, narrow(b_out, out.dtype.element_ty), mask=inside_m & inside_n)


def _blocks(dtype: torch.dtype, precision: str, M: int) -> dict[str, int]:
    depth = 64 if dtype != torch.float32 else 32 if precision == "tf32" else 16
    return {"BM": 16 if M <= 16 else 64, "BN": 64, "BK": depth}


def _product(
    a: Tensor,
    b: Tensor,
    out: Tensor,
    *,
    bias: Tensor | None = None,
    functional_b: Tensor | None = None,
    functional_out: Tensor | None = None,
) -> Tensor:
    """out, as [M, N]: a [M, K] · b [K, N] + bias [N]; where b or the result is not functional, it is 0."""
    (M, K), N = a.shape, b.shape[1]
    if M > 0 and N > 0:
        functional, of = (functional_b, "b") if functional_out is None else (functional_out, "out")
        precision = fp32_precision()
        blocks = _blocks(a.dtype, precision, M)
        grid = (triton.cdiv(M, blocks["BM"]) * triton.cdiv(N, blocks["BN"]),)
        torch.library.wrap_triton(synapse_currents_kernel)[grid](
            a, b, functional, bias, out, M, N, K, *a.stride(), *b.stride(), of, PRECISION=precision, **blocks
        )
    return out


def synapse_currents(x: Tensor, weight: Tensor, functional: Tensor | None, bias: Tensor) -> Tensor:
    x, weight, functional, bias = _contiguous(x, weight, functional, bias)
    out = x.new_empty(x.shape[0], *weight.shape[:2])
    return _product(x, weight.flatten(0, 1).t(), out, bias=bias, functional_b=functional)


def synapse_currents_backward(
    grad: Tensor, x: Tensor, weight: Tensor, functional: Tensor | None, bias: Tensor, *, needs: Sequence[bool]
) -> list[Tensor]:
    grad, x, weight, functional = _contiguous(grad, x, weight, functional)
    grad = grad.flatten(1)
    found = []
    if needs[0]:
        found.append(_product(grad, weight.flatten(0, 1), torch.empty_like(x), functional_b=functional))
    if needs[1]:
        found.append(_product(grad.t(), x, torch.empty_like(weight), functional_out=functional))
    if needs[3]:
        found.append(grad.sum(0).view(bias.shape))
    return found


def _contiguous(*tensors: Tensor | None) -> list[Any]:
    return [t if t is None else t.contiguous() for t in tensors]


KERNELS = {"synapse_currents": synapse_currents, "synapse_currents_backward": synapse_currents_backward}


def _variant(of: str, unit_strides: tuple[str, str], **given: Any) -> Variant:
    constants = dict.fromkeys(unit_strides, 1) | {"OF": of, "PRECISION": "ieee", "BM": 64, "BN": 64, "BK": 64} | given
    tensors = {"a": "*bf16", "b": "*bf16", "functional": "*i1", "bias": "*bf16", "out": "*bf16"}
    sizes = dict.fromkeys(("M", "N", "K", "stride_am", "stride_ak", "stride_bk", "stride_bn"), "i32")
    signature = {name: kind for name, kind in (tensors | sizes).items() if name not in constants}
    promises = ("tensor cores", "128-bit loads", "asynchronous copies", "no global atomics")
    return Variant(synapse_currents_kernel, signature, constants, aligned=tuple(signature), promises=promises)


VARIANTS = [_variant("b", ("stride_ak", "stride_bk")), _variant("out", ("stride_am", "stride_bn"), bias=None)]
