"""encode_spikes: the generator's published vectors, rates, chunks, latencies and the straight-through gradient."""

import math

import pytest
import torch
from properties import (
    FLOATING,
    LAYOUTS,
    assert_any_layout,
    assert_pure,
    assert_refused,
    assert_same_bits,
    laid_out,
    sliced,
)
from torch import Tensor

from artsy_ext import ops
from artsy_ext.ops import reference
from artsy_ext.ops.encode_spikes.reference import philox

ALL = 0xFFFFFFFF


def philox_of_integers(counter: tuple[int, ...], key: tuple[int, int]) -> tuple[int, ...]:
    """Philox-4x32-10 as in Salmon et al., SC 2011, in Python's integers."""
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(10):
        (hi0, lo0), (hi1, lo1) = divmod(0xD2511F53 * c0, 1 << 32), divmod(0xCD9E8D57 * c2, 1 << 32)
        c0, c1, c2, c3 = hi1 ^ c1 ^ k0, lo1, hi0 ^ c3 ^ k1, lo0
        k0, k1 = (k0 + 0x9E3779B9) & ALL, (k1 + 0xBB67AE85) & ALL
    return c0, c1, c2, c3


# Random123, tests/kat_vectors, philox4x32 10.
KNOWN_ANSWERS = [
    ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
    ((ALL, ALL, ALL, ALL), (ALL, ALL), (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
    (
        (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
        (0xA4093822, 0x299F31D0),
        (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
    ),
]


@pytest.mark.parametrize(("counter", "key", "words"), KNOWN_ANSWERS)
def test_philox_known_answers(counter, key, words):
    assert philox_of_integers(counter, key) == words
    assert tuple(word.item() for word in philox(tuple(map(torch.tensor, counter)), key)) == words


def thresholds(index: int, steps: int, seed: int) -> list[float]:
    """The numbers in [0, 1) below which element `index` spikes: 24 bits of word t mod 4 of counter (index, t div 4)."""
    words = []
    for block in range(math.ceil(steps / 4)):
        counter = (index & ALL, (index >> 32) & ALL, block, 0)
        words += philox_of_integers(counter, (seed & ALL, (seed >> 32) & ALL))
    return [(word >> 8) / 2**24 for word in words[:steps]]


@pytest.mark.parametrize("steps", [1, 4, 7])
@pytest.mark.parametrize(
    ("seed", "offset"), [(0, 0), (1, 2**32 - 1), (2**32, 2**32), (2**63 - 1, 2**40 + 5), (-1, 2**32 - 2)]
)
def test_bits_of_the_generator(steps: int, seed: int, offset: int, device: str) -> None:
    """A spike where x is above its number, none where x is at it: every one of the 24 bits is pinned down."""
    count = 4
    number = torch.tensor([thresholds(offset + i, steps, seed) for i in range(count)], device=device).T
    for t in range(steps):
        at, above = number[t], number[t] + 2.0**-24
        assert not ops.encode_spikes(at, steps, seed=seed, offset=offset)[t].any()
        assert ops.encode_spikes(above, steps, seed=seed, offset=offset)[t].all()


@pytest.mark.parametrize("rate", [0.03, 0.5])
def test_rates(rate):
    """Within four standard deviations of 10^6 draws, also element by element over time and step by step."""
    steps, elements = 50, 20_000
    spikes = ops.encode_spikes(torch.full((elements,), rate), steps, seed=5).double()
    deviation = math.sqrt(rate * (1 - rate))
    assert abs(spikes.mean() - rate) < 4 * deviation / math.sqrt(steps * elements)
    assert ((spikes.mean(1) - rate).abs() < 5 * deviation / math.sqrt(elements)).all()
    # No correlation from one step, or one element, to the next.
    centred = spikes - rate
    for a, b in ((centred[1:], centred[:-1]), (centred[:, 1:], centred[:, :-1])):
        assert abs((a * b).mean()) < 4 * deviation**2 / math.sqrt(a.numel())


def test_chunks_equal_the_whole():
    x = torch.rand(30, 7)
    whole = ops.encode_spikes(x, 6, seed=3, offset=11)
    chunks = [ops.encode_spikes(x[a:b], 6, seed=3, offset=11 + 7 * a) for a, b in ((0, 13), (13, 14), (14, 30))]
    assert torch.equal(torch.cat(chunks, 1), whole)


def test_fewer_steps_are_the_beginning_of_more():
    x = torch.rand(50)
    assert torch.equal(ops.encode_spikes(x, 3), ops.encode_spikes(x, 9)[:3])


def test_seeds_and_far_offsets_differ():
    x = torch.full((1000,), 0.5)
    trains = [
        ops.encode_spikes(x, 4, seed=s, offset=o) for s, o in ((0, 0), (1, 0), (2**32, 0), (0, 2**32), (0, 2**33))
    ]
    for i, a in enumerate(trains):
        assert all(0.4 < (a == b).float().mean() < 0.6 for b in trains[:i])


@pytest.mark.parametrize("dtype", FLOATING)
def test_certain_values(dtype):
    """0 never spikes, 1 always does; smaller counts as 0, larger as 1."""
    x = torch.tensor([0, -0.0, -1, 1, 2], dtype=dtype).repeat(2000)
    spikes = ops.encode_spikes(x, 10)
    assert torch.equal(spikes, torch.tensor([0, 0, 0, 1, 1], dtype=torch.bool).repeat(2000).expand(10, -1))


@pytest.mark.parametrize("code", ["rate", "latency"])
def test_infinite_values_count_as_0_and_1(code):
    x = torch.tensor([-math.inf, math.inf])
    for dtype in (torch.bool, torch.float32):
        spikes = ops.encode_spikes(x, 3, code=code, dtype=dtype)
        assert torch.equal(spikes, ops.encode_spikes(torch.tensor([0.0, 1.0]), 3, code=code, dtype=dtype))


@pytest.mark.parametrize("code", ["rate", "latency"])
@pytest.mark.parametrize("dtype", [torch.bool, torch.uint8, *FLOATING])
@pytest.mark.parametrize("size", [41, 516])  # some GPU kernels take four neighbours at once
def test_every_dtype_has_the_same_spikes(code: str, dtype: torch.dtype, size: int, device: str) -> None:
    x = torch.rand(size)
    spikes = ops.encode_spikes(x.to(device), 5, code=code, dtype=dtype)
    assert spikes.dtype == dtype
    assert torch.equal(spikes.bool().cpu(), reference.encode_spikes(x, 5, code=code))
    assert set(spikes.unique().tolist()) == {0, 1}


@pytest.mark.parametrize("dtype", FLOATING)
@pytest.mark.parametrize(
    ("steps", "x", "step"),
    [
        # ⌊(1 − x)·4 + ½⌋: x = 1 at once, 0.75 at 1, 0.5 at 2, 0.25 at 3, almost 0 at 4.
        (5, [1, 0.75, 0.5, 0.25, 2**-20], [0, 1, 2, 3, 4]),
        # Half way goes to the later step: (1 − 7/8)·4 + ½ = 1, so 2 and 4 for 5/8 and 1/8; 57/64 is ⌊15/16⌋ = 0.
        (5, [0.875, 0.625, 0.125, 0.890625], [1, 2, 4, 0]),
        # (1 − ½)·1 + ½ = 1; 33/64: ⌊63/64⌋ = 0.
        (2, [1, 0.5, 0.515625, 0.25], [0, 1, 0, 1]),
        # One step holds every spike.
        (1, [1, 0.5, 2**-20], [0, 0, 0]),
        # No spike at 0 or below; more than 1 counts as 1.
        (3, [0, -0.0, -1, 2], [None, None, None, 0]),
    ],
)
def test_latency_table(steps: int, x: list, step: list, dtype: torch.dtype, device: str) -> None:
    expected = torch.zeros(steps, len(x), dtype=torch.bool, device=device)
    for i, t in enumerate(step):
        if t is not None:
            expected[t, i] = True
    assert torch.equal(ops.encode_spikes(torch.tensor(x, dtype=dtype, device=device), steps, code="latency"), expected)


@pytest.mark.parametrize("dtype", FLOATING)
def test_straight_through_gradient(dtype):
    """Every spike counts as its probability: the gradient of x is that of its spikes, summed over time."""
    x = torch.rand(3, 4, dtype=dtype, requires_grad=True)
    spikes = ops.encode_spikes(x, 5, dtype=dtype)
    weights = torch.randint(-4, 5, spikes.shape).to(dtype)
    (gradient,) = torch.autograd.grad(spikes, x, weights)
    assert gradient.dtype == dtype
    assert torch.equal(gradient, weights.sum(0))


def test_gradient_crosses_dtypes():
    x = torch.rand(3, dtype=torch.float64, requires_grad=True)
    (gradient,) = torch.autograd.grad(ops.encode_spikes(x, 5, dtype=torch.float32).sum(), x)
    assert torch.equal(gradient, torch.full_like(x, 5))


@pytest.mark.parametrize("dtype", [torch.bool, torch.uint8])
def test_no_gradient_through_integers(dtype):
    assert not ops.encode_spikes(torch.rand(3, requires_grad=True), 5, dtype=dtype).requires_grad


def test_no_gradient_through_latency():
    x = torch.rand(3, requires_grad=True)
    spikes = ops.encode_spikes(x, 5, code="latency", dtype=torch.float32)
    if spikes.requires_grad:
        assert torch.equal(*torch.autograd.grad(spikes.sum(), x), torch.zeros(3))


@pytest.mark.parametrize("code", ["rate", "latency"])
@pytest.mark.parametrize("dtype", [torch.bool, torch.float32])
@pytest.mark.parametrize(("steps", "shape"), [(0, (3,)), (0, ()), (5, (0,)), (5, (3, 0, 2)), (5, ())])
def test_empty_and_scalar(code: str, dtype: torch.dtype, steps: int, shape: tuple[int, ...], device: str) -> None:
    x = torch.rand(shape, device=device, requires_grad=True)
    spikes = ops.encode_spikes(x, steps, code=code, dtype=dtype)
    assert (spikes.shape, spikes.dtype) == ((steps, *shape), dtype)
    if spikes.requires_grad:
        expected = torch.full(shape, steps * float(code == "rate"), device=device)
        assert torch.equal(*torch.autograd.grad(spikes.sum(), x), expected)


def test_layout_counts_elements_not_addresses(device: str) -> None:
    x = torch.rand(5, 6, device=device)
    for layout in LAYOUTS:
        assert torch.equal(ops.encode_spikes(laid_out(x, layout), 4), ops.encode_spikes(x, 4))


@pytest.mark.parametrize("code", ["rate", "latency"])
@pytest.mark.parametrize("dtype", [torch.bool, torch.float32])
def test_pure_and_any_layout(code, dtype):
    assert_pure(ops.encode_spikes, torch.rand(5, 6), 4, code=code, dtype=dtype)
    assert_any_layout(ops.encode_spikes, torch.rand(5, 6), 4, code=code, dtype=dtype)


def test_autocast_changes_nothing():
    x = torch.rand(1000)
    for dtype in (torch.bool, torch.float32):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            inside = ops.encode_spikes(x, 4, dtype=dtype)
        assert_same_bits(inside, ops.encode_spikes(x, 4, dtype=dtype))


@pytest.mark.parametrize(
    ("argument", "change"),
    [
        ("x", {"x": torch.ones(3, dtype=torch.int64)}),
        ("x", {"x": torch.ones(3, dtype=torch.bool)}),
        ("steps", {"steps": -1}),
        ("offset", {"offset": -1}),
        ("code", {"code": "burst"}),
        ("dtype", {"dtype": torch.int32}),
        ("dtype", {"dtype": torch.complex64}),
    ],
)
def test_bad_input(argument, change):
    assert_refused("encode_spikes", argument, lambda: ops.encode_spikes(**{"x": torch.rand(3), "steps": 4, **change}))


SAMPLES = {
    "rate": (torch.rand(3, 4), 5, {}),
    "rate-float": (torch.rand(3, 4), 5, {"seed": 3, "offset": 2**33, "dtype": torch.float32}),
    "latency": (torch.rand(3, 4).double(), 3, {"code": "latency", "dtype": torch.float16}),
    "empty": (torch.rand(3, 0), 5, {"dtype": torch.float32}),
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("sample", SAMPLES)
def test_opcheck(sample, layout):
    x, steps, keywords = SAMPLES[sample]
    x = laid_out(x, layout).requires_grad_("dtype" in keywords)
    torch.library.opcheck(torch.ops.artsy.encode_spikes.default, (x, steps), keywords)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("needs", [[True, False], [False, False]])
def test_opcheck_backward(needs, layout):
    grad, x = laid_out((torch.rand(5, 3, 4), torch.rand(3, 4)), layout)
    torch.library.opcheck(
        torch.ops.artsy.encode_spikes_backward.default, (grad, x, 5), {"dtype": torch.float32, "needs": needs}
    )


@pytest.mark.parametrize("code", ["rate", "latency"])
def test_compile(code):
    def encode(x: Tensor) -> tuple[Tensor, Tensor]:
        spikes = ops.encode_spikes(x, 5, code=code, seed=7, offset=3, dtype=torch.float32)
        return spikes, (spikes * x).sum()

    compiled = torch.compile(encode, fullgraph=True, backend="aot_eager")
    x = torch.rand(3, 4, requires_grad=True)
    for value in (x, sliced(x.detach()).requires_grad_()):
        (spikes, loss), (expected, expected_loss) = compiled(value), encode(x)
        assert torch.equal(spikes, expected)
        assert torch.equal(*torch.autograd.grad(loss, value), *torch.autograd.grad(expected_loss, x))


def test_compiled_once_for_all_seeds():
    # A learner draws a new seed for every batch.
    programs = 0

    def count(graph: torch.fx.GraphModule, _: list[Tensor]) -> torch.fx.GraphModule:
        nonlocal programs
        programs += 1
        return graph

    compiled = torch.compile(lambda x, seed: ops.encode_spikes(x, 4, seed=seed), fullgraph=True, backend=count)
    x = torch.rand(5)
    for seed in range(10, 30):
        assert torch.equal(compiled(x, seed), ops.encode_spikes(x, 4, seed=seed))
    assert programs <= 2
