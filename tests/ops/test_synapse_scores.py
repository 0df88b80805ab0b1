"""synapse_scores: S two-layer gates at once."""

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

op = ops.synapse_scores


def sample(B: int = 3, S: int = 2, R: int = 4, D: int = 5, dtype: torch.dtype = torch.float64) -> tuple[Tensor, ...]:
    shapes = ((B, D), (S, R, D), (S, R), (S, R), (S,))
    return tuple(torch.randn(shape, dtype=dtype) for shape in shapes)


@pytest.mark.parametrize("dtype", FLOATING)
def test_table(dtype, triton_device):
    def tensor(values: list) -> Tensor:
        return torch.tensor(values, dtype=dtype, device=triton_device)

    features = tensor([[1, 2], [-1, 3], [0, 0]])
    down = tensor([[[1, 1], [2, -1]], [[0, 1], [-3, 1]]])
    down_bias = tensor([[1, -2], [-2, 1]])
    up = tensor([[2, 3], [-1, 4]])
    up_bias = tensor([10, -5])
    # s=0: h = relu(f0+f1+1, 2·f0−f1−2), score 2·h0 + 3·h1 + 10
    #   (1, 2): relu(4, −2) = (4, 0) → 18;  (−1, 3): relu(3, −7) = (3, 0) → 16;  (0, 0): relu(1, −2) = (1, 0) → 12
    # s=1: h = relu(f1−2, −3·f0+f1+1), score −h0 + 4·h1 − 5
    #   (1, 2): relu(0, 0) → −5;  (−1, 3): relu(1, 7) → −1+28−5 = 22;  (0, 0): relu(−2, 1) → 4−5 = −1
    expected = tensor([[18, -5], [16, 22], [12, -1]])
    assert_same_bits(op(features, down, down_bias, up, up_bias), expected)


# Sizes below, at and beyond the kernels' vectors, panels, tiles of rows and depth.
@every_isa
@pytest.mark.parametrize("dtype", FLOATING)
@pytest.mark.parametrize("sizes", [(1, 3, 7, 5), (24, 1, 64, 64), (63, 2, 33, 300), (7, 5, 130, 17)])
def test_every_instruction_set(isa: None, dtype: torch.dtype, sizes: tuple[int, ...]) -> None:
    arguments = tuple(t.to(dtype) if t.is_floating_point() else t for t in sample(*sizes, dtype=torch.float32))
    exact = reference.synapse_scores(*(t.double() if t.is_floating_point() else t for t in arguments))
    assert_near([op(*arguments)], [exact], 8 * torch.finfo(dtype).eps)


@every_isa
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_threads_change_nothing(isa: None, dtype: torch.dtype) -> None:
    arguments = sample(63, 5, 70, 130, dtype=dtype)
    assert_same_on_every_thread_count(lambda: op(*arguments))


# Sizes below, at and beyond the GPU kernels' tiles: of samples, sub-networks, hidden units and features.
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("sizes", [(1, 3, 7, 5), (16, 2, 32, 64), (70, 3, 33, 70), (3, 1, 65, 130)])
def test_values_and_gradients(sizes: tuple[int, ...], dtype: torch.dtype, triton_device: str) -> None:
    # Eighths: no rounding takes a hidden value to the other side of 0.
    short = [(tensor * 8).round().div(8).to(dtype).requires_grad_() for tensor in on(triton_device, sample(*sizes))]
    exact = [tensor.detach().double().requires_grad_() for tensor in short]
    results = []
    for inputs, of in ((short, op), (exact, reference.synapse_scores)):
        scores = of(*inputs)
        ways = torch.randn(scores.shape, generator=torch.Generator().manual_seed(7)).to(dtype).to(scores)
        results.append([scores.detach(), *torch.autograd.grad(scores, inputs, ways)])
    assert_near(*results, 8 * torch.finfo(dtype).eps)


@pytest.mark.parametrize(("dtype", "count"), [(torch.bfloat16, 1024), (torch.float16, 4096)])
def test_sums_in_float32(dtype, count, triton_device):
    """A sum of ones in these dtypes would stop at 256 and 2048; over D, then over R."""
    one, zero = on(triton_device, (torch.ones(1, dtype=dtype), torch.zeros(1, dtype=dtype)))
    over_d = op(one.expand(1, count), one.expand(1, 1, count), zero[None], one[None], zero)
    over_r = op(one[None], one.expand(1, count, 1), zero.expand(1, count), one.expand(1, count), zero)
    assert (over_d.item(), over_r.item()) == (count, count)


def test_gradcheck():
    torch.autograd.gradcheck(op, [tensor.requires_grad_() for tensor in sample()])


@pytest.mark.parametrize("asked", [[0], [1], [2], [3], [4], [1, 2, 3, 4], [0, 3]])
def test_only_the_gradients_asked_for(asked, triton_device):
    assert_only_asked("synapse_scores", op, on(triton_device, sample(dtype=torch.float32)), asked)


def test_a_hidden_unit_at_rest_has_no_gradient(triton_device):
    """relu at exactly 0 has PyTorch's sub-gradient 0."""
    features = torch.zeros(1, 1, requires_grad=True, device=triton_device)
    ones, zeros = on(triton_device, (torch.ones(1, 1), torch.zeros(1, 1)))
    assert torch.autograd.grad(op(features, ones[None], zeros, ones, zeros[0]), features)[0].item() == 0


@pytest.mark.parametrize("empty", range(4))
def test_empty(empty, triton_device):
    sizes = [3, 2, 4, 5]
    sizes[empty] = 0
    inputs = [tensor.requires_grad_() for tensor in on(triton_device, sample(*sizes, dtype=torch.float32))]
    _, _, down_bias, up, up_bias = inputs
    scores = op(*inputs)
    # Without features the biases go on through relu; without hidden units only the last bias is left.
    expected = up_bias.expand(sizes[0], -1) if empty == 2 else ((down_bias.relu() * up).sum(1) + up_bias).expand(3, -1)
    if empty >= 2:
        torch.testing.assert_close(scores, expected)
    assert scores.shape == (*sizes[:2],)
    gradients = torch.autograd.grad(scores.sum(), inputs)
    assert torch.equal(gradients[4], torch.full_like(up_bias, sizes[0]))


def test_pure_and_any_layout(triton_device):
    arguments = on(triton_device, sample(dtype=torch.float32))
    assert_pure(op, *arguments)
    assert_any_layout(op, *arguments)


def test_autocast_follows():
    inputs = [tensor.requires_grad_() for tensor in sample(dtype=torch.float32)]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        scores = op(*inputs)
    assert_same_bits(scores, op(*(tensor.bfloat16() for tensor in inputs)))
    assert all(gradient.dtype == torch.float32 for gradient in torch.autograd.grad(scores.sum(), inputs))


NAMES = ("features", "down", "down_bias", "up", "up_bias")


@pytest.mark.parametrize(
    ("argument", "change"),
    [
        ("features", torch.zeros(5)),
        ("features", torch.zeros(3, 5, dtype=torch.int64)),
        ("down", torch.zeros(4, 5)),
        ("down", torch.zeros(2, 4, 6)),
        ("down", torch.zeros(2, 4, 5, dtype=torch.float64)),
        ("down_bias", torch.zeros(2, 5)),
        ("down_bias", torch.zeros(4)),
        ("up", torch.zeros(2, 4, 1)),
        ("up", torch.zeros(3, 4)),
        ("up_bias", torch.zeros(2, 1)),
        ("up_bias", torch.zeros(3)),
        *((name, "meta") for name in NAMES[1:]),
    ],
)
def test_bad_input(argument, change):
    arguments = dict(zip(NAMES, sample(dtype=torch.float32), strict=True))
    arguments[argument] = arguments[argument].to("meta") if isinstance(change, str) else change
    assert_refused("synapse_scores", argument, lambda: op(**arguments))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_opcheck(layout):
    arguments = [tensor.requires_grad_() for tensor in laid_out(sample(dtype=torch.float32), layout)]
    torch.library.opcheck(torch.ops.artsy.synapse_scores.default, arguments)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_opcheck_dtypes(dtype):
    torch.library.opcheck(torch.ops.artsy.synapse_scores.default, sample(dtype=dtype))


@pytest.mark.parametrize("sizes", [(0, 2, 4, 5), (3, 2, 4, 0), (3, 2, 0, 5)])
def test_opcheck_empty(sizes):
    torch.library.opcheck(torch.ops.artsy.synapse_scores.default, sample(*sizes))


@pytest.mark.parametrize("needs", [[True] * 5, [False, True, False, True, False]])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_opcheck_backward(layout, needs):
    arguments = laid_out((torch.randn(3, 2).double(), *sample()), layout)
    torch.library.opcheck(torch.ops.artsy.synapse_scores_backward.default, arguments, {"needs": needs})


def test_compile():
    def loss(*inputs: Tensor) -> Tensor:
        return op(*inputs).tanh().sum()

    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    arguments = sample()
    for inputs in (arguments, tuple(map(sliced, arguments))):
        inputs = [tensor.requires_grad_() for tensor in inputs]
        actual, expected = compiled(*inputs), loss(*inputs)
        assert_same_bits(actual, expected)
        assert_same_bits(torch.autograd.grad(actual, inputs), torch.autograd.grad(expected, inputs))
