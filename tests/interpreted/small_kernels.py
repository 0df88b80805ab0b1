"""Small Triton kernels in the interpreter, with guarded memory; test_interpreted.py runs this file where it is on."""

import sys
import types

import pytest
import torch
import triton
import triton.language as tl
from interpreted import kernels
from interpreted.interpreted_ops import interpreted
from torch import Tensor

from artsy_ext.ops import _kernels, consolidate, reference

pytestmark = pytest.mark.interpreted

REMOVE = "Triton's interpreter has learned it: remove this crutch from artsy_ext/ops/_triton.py"


def copy(x: Tensor, *, masked: bool = True) -> Tensor:
    out = torch.empty_like(x)
    kernels.copy_kernel[(triton.cdiv(len(x), 64),)](x, out, len(x), 64, masked)
    return out


def product(a: Tensor, b: Tensor, dtype: torch.dtype) -> Tensor:
    (M, K), N = a.shape, b.shape[1]
    out = torch.empty(M, N, dtype=dtype)
    kernels.product_kernel[(triton.cdiv(M, 16), triton.cdiv(N, 16))](a, b, out, M, N, K, 16)
    return out


@pytest.mark.parametrize("n", [1, 63, 64, 1000])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16, torch.int64])
def test_copy(n: int, dtype: torch.dtype) -> None:
    x = torch.randn(n).mul(100).to(dtype)
    assert torch.equal(copy(x), x)


def test_views_stay_views() -> None:
    whole = torch.arange(100.0)
    assert torch.equal(copy(whole[7:30]), whole[7:30])
    kernels.copy_kernel[(1,)](whole, whole[50:], 50, 64, True)  # two arguments, one memory
    assert torch.equal(whole[50:], torch.arange(50.0))


def test_an_access_within_bounds_needs_no_mask() -> None:
    x = torch.randn(128)
    assert torch.equal(copy(x, masked=False), x)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_product_is_summed_in_fp32_and_rounded_once(dtype: torch.dtype) -> None:
    a, b = torch.randn(33, 47).to(dtype), torch.randn(47, 20).to(dtype)
    expected = a.float() @ b.float()
    torch.testing.assert_close(product(a, b, torch.float32), expected, rtol=1e-5, atol=1e-5)
    assert torch.equal(product(a, b, dtype), product(a, b, torch.float32).to(dtype))


def test_narrowing_keeps_what_is_no_number() -> None:
    special = torch.tensor([[torch.nan, torch.inf, -torch.inf, 3.4e38, -0.0, 1e-40]])
    one = torch.ones(1, 1)
    found = torch.cat([product(one, special[:, i : i + 1], torch.bfloat16) for i in range(6)], 1)
    torch.testing.assert_close(found, special.bfloat16(), rtol=0, atol=0, equal_nan=True)


@triton.jit
def hysteresis_kernel(weight, functional, out, n, on, off, BLOCK: tl.constexpr):
    i = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    b_size = tl.abs(tl.load(weight + i, mask=i < n))
    b_was = tl.load(functional + i, mask=i < n)
    tl.store(out + i, (b_size >= on) | (b_was & (b_size >= off)), mask=i < n)


def test_an_op_runs_its_triton_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    launched = []

    def kernel(weight: Tensor, functional: Tensor, on: float, off: float) -> Tensor:
        launched.append(weight.shape)
        out = torch.empty_like(functional)
        n = out.numel()
        hysteresis_kernel[(triton.cdiv(n, 64),)](weight, functional, out, n, on, off, 64)
        return out

    module = types.ModuleType("artsy_ext.ops.consolidate.triton")
    module.KERNELS = {"consolidate": kernel}
    monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.setattr(_kernels, "TRITON", {"consolidate": _kernels.Served()})
    weight, functional = torch.randn(3, 5, 7), torch.rand(3, 5, 7) < 0.5
    expected = reference.consolidate(weight, functional, 0.8, 0.3)
    with interpreted():
        assert torch.equal(consolidate(weight, functional, 0.8, 0.3), expected)
        consolidate(weight.double(), functional, 0.8, 0.3)  # a dtype that the kernel does not take
    assert torch.equal(consolidate(weight, functional, 0.8, 0.3), expected)
    assert launched == [weight.shape]


@triton.jit
def plain_dot_kernel(a, b, out, n: tl.constexpr):
    at = tl.arange(0, n)[:, None] * n + tl.arange(0, n)[None, :]
    tl.store(out + at, tl.dot(tl.load(a + at), tl.load(b + at)))


@triton.jit
def plain_cast_kernel(x, out, n: tl.constexpr):
    at = tl.arange(0, n)
    tl.store(out + at, tl.load(x + at).to(tl.bfloat16))


def test_the_interpreter_still_multiplies_bf16_wrongly() -> None:
    a, b, out = torch.randn(32, 32).bfloat16(), torch.randn(32, 32).bfloat16(), torch.empty(32, 32)
    plain_dot_kernel[(1,)](a, b, out, 32)
    assert not torch.allclose(out, a.float() @ b.float(), rtol=1e-2, atol=1e-2), REMOVE


def test_the_interpreter_still_rounds_to_bf16_wrongly() -> None:
    x, out = torch.randn(4096), torch.empty(4096, dtype=torch.bfloat16)
    plain_cast_kernel[(1,)](x, out, 4096)
    assert not torch.equal(out, x.bfloat16()), REMOVE
