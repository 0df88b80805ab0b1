"""synapse_currents: x · (weight ∘ functional)ᵀ + bias of every sub-network."""

import math

import pytest
import torch
from properties import (
    FLOATING,
    LAYOUTS,
    assert_any_layout,
    assert_only_asked,
    assert_pure,
    assert_refused,
    assert_same_bits,
    laid_out,
    on,
    sliced,
)
from routing_cases import assert_near, assert_same_on_every_thread_count, every_isa
from torch import Tensor

from artsy_ext import ops
from artsy_ext.ops import reference

op = ops.synapse_currents


def sample(B: int = 3, S: int = 2, J: int = 4, I: int = 5, dtype: torch.dtype = torch.float64) -> tuple[Tensor, ...]:
    weight = torch.randn(S, J, I, dtype=dtype)
    return torch.randn(B, I, dtype=dtype), weight, torch.rand(S, J, I) < 0.6, torch.randn(S, J, dtype=dtype)


@pytest.mark.parametrize("dtype", FLOATING)
@pytest.mark.parametrize(
    ("functional", "expected"),
    [
        # sample 0, x = (1, 2, 0): s=0: 1·1+2·2+10 = 15, 1·0−2·1+20 = 18; s=1: 1·3+2·1−1 = 4, 1·2+2·2+0 = 6
        # sample 1, x = (0, −1, 3): s=0: −2+9+10 = 17, 1+3+20 = 24; s=1: −1+0−1 = −2, −2−6+0 = −8
        (None, [[[15, 18], [4, 6]], [[17, 24], [-2, -8]]]),
        # Silent: w[0,0,1] = 2 (sample 0 loses 4, sample 1 gains 2), w[1,1,2] = −2 (sample 1 gains 6).
        ([[[1, 0, 1], [1, 1, 1]], [[1, 1, 1], [1, 1, 0]]], [[[11, 18], [4, 6]], [[19, 24], [-2, -2]]]),
        # All silent: the bias alone.
        ([[[0] * 3] * 2] * 2, [[[10, 20], [-1, 0]]] * 2),
    ],
)
def test_table(functional, expected, dtype, triton_device):
    x = torch.tensor([[1, 2, 0], [0, -1, 3]], dtype=dtype, device=triton_device)
    weight = torch.tensor([[[1, 2, 3], [0, -1, 1]], [[3, 1, 0], [2, 2, -2]]], dtype=dtype, device=triton_device)
    bias = torch.tensor([[10, 20], [-1, 0]], dtype=dtype, device=triton_device)
    if functional is not None:
        functional = torch.tensor(functional, dtype=torch.bool, device=triton_device)
    assert_same_bits(op(x, weight, functional, bias), torch.tensor(expected, dtype=dtype, device=triton_device))


# Sizes below, at and beyond the kernels' vectors, panels, tiles of rows and depth.
@every_isa
@pytest.mark.parametrize("dtype", FLOATING)
@pytest.mark.parametrize("sizes", [(1, 3, 7, 5), (24, 1, 64, 64), (63, 2, 33, 300), (7, 5, 130, 17)])
def test_every_instruction_set(isa: None, dtype: torch.dtype, sizes: tuple[int, ...]) -> None:
    arguments = tuple(t.to(dtype) if t.is_floating_point() else t for t in sample(*sizes, dtype=torch.float32))
    exact = reference.synapse_currents(*(t.double() if t.is_floating_point() else t for t in arguments))
    assert_near([op(*arguments)], [exact], 8 * torch.finfo(dtype).eps)


@every_isa
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_threads_change_nothing(isa: None, dtype: torch.dtype) -> None:
    arguments = sample(63, 5, 70, 130, dtype=dtype)
    assert_same_on_every_thread_count(lambda: op(*arguments))


# Sizes below, at and beyond the GPU kernels' tiles of rows, columns and depth; for a gradient each is a depth.
@pytest.mark.parametrize("masked", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("sizes", [(1, 3, 7, 5), (16, 1, 64, 64), (70, 2, 33, 130)])
def test_values_and_gradients(sizes: tuple[int, ...], dtype: torch.dtype, masked: bool, triton_device: str) -> None:
    x, weight, functional, bias = on(triton_device, sample(*sizes, dtype=torch.float64))
    short = [tensor.to(dtype).requires_grad_() for tensor in (x, weight, bias)]
    exact = [tensor.detach().double().requires_grad_() for tensor in short]
    results = []
    for inputs, of in ((short, op), (exact, reference.synapse_currents)):
        currents = of(*inputs[:2], functional if masked else None, inputs[2])
        ways = torch.randn(currents.shape, generator=torch.Generator().manual_seed(7)).to(dtype).to(currents)
        results.append([currents.detach(), *torch.autograd.grad(currents, inputs, ways)])
    assert_near(*results, 8 * torch.finfo(dtype).eps)


@pytest.mark.parametrize(("dtype", "count"), [(torch.bfloat16, 1024), (torch.float16, 4096)])
def test_sums_in_float32(dtype, count, triton_device):
    """A sum of ones in these dtypes would stop at 256 and 2048."""
    ones = torch.ones(1, count, dtype=dtype, device=triton_device)
    assert op(ones, ones[None], None, torch.zeros(1, 1, dtype=dtype, device=triton_device)).item() == count


@pytest.mark.parametrize("masked", [True, False])
def test_gradcheck(masked):
    x, weight, functional, bias = sample()
    inputs = [tensor.requires_grad_() for tensor in (x, weight, bias)]
    torch.autograd.gradcheck(lambda x, w, b: op(x, w, functional if masked else None, b), inputs)


@pytest.mark.parametrize("asked", [[0], [1], [3], [0, 3], [0, 1, 3]])
def test_only_the_gradients_asked_for(asked, triton_device):
    assert_only_asked("synapse_currents", op, on(triton_device, sample(dtype=torch.float32)), asked)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_silent_synapses_transmit_nothing(dtype, triton_device):
    """Neither a current nor, backwards, a gradient; not even from a weight that is NaN."""
    x, weight, functional, bias = on(triton_device, sample(dtype=dtype))
    clean = [tensor.clone().requires_grad_() for tensor in (x, weight * functional, bias)]
    spoilt = [tensor.requires_grad_() for tensor in (x, weight.masked_fill(~functional, math.nan), bias)]
    results = []
    for x_, weight_, bias_ in (clean, spoilt):
        currents = op(x_, weight_, functional, bias_)
        results.append((currents.detach(), *torch.autograd.grad(currents.square().sum(), (x_, weight_, bias_))))
    assert_same_bits(*results)
    assert not results[1][2][~functional].any()


@pytest.mark.parametrize("masked", [True, False])
@pytest.mark.parametrize("empty", range(4))
def test_empty(empty, masked, triton_device):
    sizes = [3, 2, 4, 5]
    sizes[empty] = 0
    x, weight, functional, bias = on(triton_device, sample(*sizes, dtype=torch.float32))
    inputs = [tensor.requires_grad_() for tensor in (x, weight, bias)]
    currents = op(x, weight, functional if masked else None, bias)
    assert currents.shape == (*sizes[:3],)
    if empty == 3:
        assert torch.equal(currents, bias.expand(3, -1, -1))
    gradients = torch.autograd.grad(currents.sum(), inputs)
    assert_same_bits(gradients[1], torch.zeros_like(weight))
    assert_same_bits(gradients[2], torch.full_like(bias, sizes[0]))


@pytest.mark.parametrize("masked", [True, False])
def test_pure_and_any_layout(masked, triton_device):
    x, weight, functional, bias = on(triton_device, sample(dtype=torch.float32))
    arguments = (x, weight, functional if masked else None, bias)
    assert_pure(op, *arguments)
    assert_any_layout(op, *arguments)


def test_autocast_follows():
    x, weight, functional, bias = sample(dtype=torch.float32)
    expected = op(x.bfloat16(), weight.bfloat16(), functional, bias.bfloat16())
    inputs = [tensor.requires_grad_() for tensor in (x, weight, bias)]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        currents = op(x, weight, functional, bias)
    assert_same_bits(currents, expected)
    assert all(gradient.dtype == torch.float32 for gradient in torch.autograd.grad(currents.sum(), inputs))


@pytest.mark.parametrize(
    ("argument", "change"),
    [
        ("x", {"x": torch.zeros(3, 2, 5)}),
        ("x", {"x": torch.zeros(3, 5, dtype=torch.int64)}),
        ("weight", {"weight": torch.zeros(4, 5)}),
        ("weight", {"weight": torch.zeros(2, 4, 6)}),
        ("weight", {"weight": torch.zeros(2, 4, 5, dtype=torch.float64)}),
        ("weight", {"weight": torch.zeros(2, 4, 5, device="meta")}),
        ("functional", {"functional": torch.ones(2, 4, 5)}),
        ("functional", {"functional": torch.ones(2, 5, 4, dtype=torch.bool)}),
        ("functional", {"functional": torch.ones(2, 4, 5, dtype=torch.bool, device="meta")}),
        ("bias", {"bias": torch.zeros(4)}),
        ("bias", {"bias": torch.zeros(3, 4)}),
        ("bias", {"bias": torch.zeros(2, 4, dtype=torch.float16)}),
        ("bias", {"bias": torch.zeros(2, 4, device="meta")}),
    ],
)
def test_bad_input(argument, change):
    good = dict(zip(("x", "weight", "functional", "bias"), sample(dtype=torch.float32), strict=True))
    assert_refused("synapse_currents", argument, lambda: op(**{**good, **change}))


@pytest.mark.parametrize("masked", [True, False])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_opcheck(layout, masked):
    x, weight, functional, bias = laid_out(sample(dtype=torch.float32), layout)
    inputs = [tensor.requires_grad_() for tensor in (x, weight, bias)]
    arguments = (*inputs[:2], functional if masked else None, inputs[2])
    torch.library.opcheck(torch.ops.artsy.synapse_currents.default, arguments)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_opcheck_dtypes(dtype):
    torch.library.opcheck(torch.ops.artsy.synapse_currents.default, sample(dtype=dtype))


@pytest.mark.parametrize("sizes", [(0, 2, 4, 5), (3, 2, 4, 0)])
def test_opcheck_empty(sizes):
    torch.library.opcheck(torch.ops.artsy.synapse_currents.default, sample(*sizes))


@pytest.mark.parametrize("needs", [[True, True, False, True], [False, True, False, False]])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_opcheck_backward(layout, needs):
    for functional in (sample()[2], None):
        x, weight, _, bias = sample()
        arguments = laid_out((torch.randn(3, 2, 4).double(), x, weight, functional, bias), layout)
        torch.library.opcheck(torch.ops.artsy.synapse_currents_backward.default, arguments, {"needs": needs})


@pytest.mark.parametrize("masked", [True, False])
def test_compile(masked):
    x, weight, functional, bias = sample()
    functional = functional if masked else None

    def loss(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return op(x, weight, functional, bias).tanh().sum()

    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    for arguments in ((x, weight, bias), (sliced(x), sliced(weight), sliced(bias))):
        inputs = [tensor.requires_grad_() for tensor in arguments]
        actual, expected = compiled(*inputs), loss(*inputs)
        assert_same_bits(actual, expected)
        assert_same_bits(torch.autograd.grad(actual, inputs), torch.autograd.grad(expected, inputs))
