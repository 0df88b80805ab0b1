"""Each primitive of the emulation does what CUDA says of it, in all builds."""

import itertools
from collections.abc import Callable
from fractions import Fraction

import pytest
import torch
from emulation.emulator import BUILDS, IS_SUPPORTED, EmulationError, Emulator
from torch import Tensor

pytestmark = [
    pytest.mark.emulated,
    pytest.mark.skipif(not IS_SUPPORTED, reason="the emulation needs an x86-64 processor"),
]


@pytest.fixture(params=BUILDS)
def primitives(request: pytest.FixtureRequest, emulators: Callable[[str, str], Emulator]) -> Emulator:
    return emulators("primitives", request.param)


def launch(
    primitives: Emulator, name: str, *arguments: object, grid=(1, 1, 1), block=(32, 1, 1), shared: int = 0
) -> None:
    primitives.call(f"launch_{name}", *grid, *block, shared, *arguments)


def test_indices(primitives: Emulator) -> None:
    grid, block = (3, 2, 2), (4, 3, 2)
    where = torch.full((12, 24, 6), -1, dtype=torch.int32)
    launch(primitives, "index", where, grid=grid, block=block)
    axes = [range(n) for n in (*reversed(grid), *reversed(block))]
    expected = [[bx, by, bz, tx, ty, tz] for bz, by, bx, tz, ty, tx in itertools.product(*axes)]
    assert where.view(-1, 6).tolist() == expected


def source_lane(kind: int, lane: int, argument: int, width: int) -> int:
    """The CUDA C++ programming guide, "Warp Shuffle Functions"."""
    start, end = lane // width * width, lane // width * width + width
    source = [start + argument % width, lane - argument, lane + argument, lane ^ argument][kind]
    is_out = source < start if kind == 1 else source >= end
    return lane if is_out else source


@pytest.mark.parametrize("width", [1, 2, 8, 32])
def test_shuffles(primitives: Emulator, width: int) -> None:
    given = torch.randint(-(2**62), 2**62, (64,))
    for kind, argument in itertools.product(range(4), (0, 1, 3, 16, 31)):
        received = torch.empty_like(given)
        launch(primitives, "shuffle", given, received, kind, argument, width, block=(64, 1, 1))
        sources = [32 * warp + source_lane(kind, lane, argument, width) for warp in range(2) for lane in range(32)]
        assert received.tolist() == given[sources].tolist(), (kind, argument)


@pytest.mark.parametrize("mask", [0x0000FFFF, 0x80000001, 0x55555555])
def test_votes(primitives: Emulator, mask: int) -> None:
    for given in (torch.randint(-1, 2, (64,)), torch.zeros(64), torch.full((64,), 7)):
        values = given.int()
        ballots, answers = torch.empty(64, dtype=torch.int32), torch.empty(64, 3, dtype=torch.int32)
        launch(primitives, "vote", values, mask, ballots, answers, block=(64, 1, 1))
        for i, value in enumerate(values.tolist()):
            group = [k for k in range(32) if (mask >> k & 1) == (mask >> i % 32 & 1)]
            votes = {k: values[i // 32 * 32 + k].item() for k in group}
            assert ballots[i].item() & 0xFFFFFFFF == sum(1 << k for k in group if votes[k])
            match = sum(1 << k for k in group if votes[k] == value)
            assert [a & 0xFFFFFFFF for a in answers[i].tolist()] == [any(votes.values()), all(votes.values()), match]


@pytest.mark.parametrize("block", [(96, 1, 1), (5, 4, 3), (1, 1, 1)])
def test_barriers_that_count(primitives: Emulator, block: tuple[int, int, int]) -> None:
    n = block[0] * block[1] * block[2]
    for given in (torch.zeros(n), torch.full((n,), 2), torch.arange(n) % 2):
        values, answers = given.int(), torch.empty(n, 3, dtype=torch.int32)
        launch(primitives, "barrier", values, answers, block=block)
        true = int((values != 0).sum())
        assert answers.unique(dim=0).tolist() == [[true, int(true == n), int(true > 0)]]


def test_atomics(primitives: Emulator) -> None:
    total, extremes = torch.tensor([5], dtype=torch.int32), torch.zeros(2, dtype=torch.int32)
    wide, product = torch.tensor([2**40]), torch.tensor([1])
    floating, double = torch.tensor([1.0]), torch.tensor([1.0], dtype=torch.float64)
    launch(primitives, "atomic", total, wide, floating, double, extremes, product, grid=(3, 1, 1))
    assert total.item() == 5 + sum(range(96))
    assert wide.item() == 2**40 + 96 * 2**32
    assert (floating.item(), double.item()) == (1 + 48, 1 + 24)
    assert extremes.tolist() == [-95, 95]
    assert product.item() & (2**64 - 1) == 3**96 % 2**64


def test_shared_memory_is_poisoned_for_each_block(emulators: Callable[[str, str], Emulator]) -> None:
    floats, integers, dynamic = torch.zeros(96), torch.zeros(96, dtype=torch.int32), torch.zeros(96).double()
    for kind in ("plain", "thread"):
        launch(emulators("primitives", kind), "fresh", floats, integers, dynamic, grid=(3, 1, 1), shared=32 * 8)
        assert floats.isnan().all()
        assert (integers == 2**31 - 1).all()
        assert dynamic.isnan().all()
    with pytest.raises(EmulationError, match="read of shared memory that no thread has written"):
        launch(emulators("primitives", "address"), "fresh", floats, integers, dynamic, shared=32 * 8)


def every_16_bits(dtype: torch.dtype) -> Tensor:
    return torch.arange(-(2**15), 2**15).to(torch.int16).view(dtype)


def assert_same_numbers(actual: Tensor, expected: Tensor) -> None:
    """Bit for bit, −0 is not 0; any NaN is NaN."""
    integer = torch.int32 if actual.dtype == torch.float32 else torch.int16
    same = actual.view(integer) == expected.view(integer)
    assert (same | (actual.isnan() & expected.isnan())).all()


def test_widening_of_all_16_bit_numbers(primitives: Emulator) -> None:
    halves, bfloat16s = every_16_bits(torch.float16), every_16_bits(torch.bfloat16)
    results = torch.empty(2, 2**16)
    launch(primitives, "widen", halves, bfloat16s, results, 2**16, grid=(4, 1, 1), block=(64, 1, 1))
    assert_same_numbers(results, torch.stack([halves.float(), bfloat16s.float()]))


def test_rounding_to_16_bits(primitives: Emulator) -> None:
    # All numbers of both formats, the numbers half way between two of them and their neighbours, and random bits.
    exact = torch.cat([every_16_bits(torch.float16).float(), every_16_bits(torch.bfloat16).float()])
    half_way = torch.cat([(x[1:].double() + x[:-1].double()) / 2 for x in exact.split(2**15)]).float()
    bits = torch.cat([exact, half_way]).view(torch.int32)
    random = torch.randint(-(2**31), 2**31, (2**16,)).int()
    x = torch.cat([bits, bits + 1, bits - 1, random]).view(torch.float32)[:: 1 if primitives.kind == "plain" else 17]
    x = x.contiguous()
    n = len(x)
    as_half, as_bfloat16 = torch.empty(n, dtype=torch.float16), torch.empty(n, dtype=torch.bfloat16)
    launch(primitives, "round", x, as_half, as_bfloat16, n, grid=(4, 1, 1), block=(64, 1, 1))
    assert_same_numbers(as_half, x.half())
    assert_same_numbers(as_bfloat16, x.bfloat16())


@pytest.mark.parametrize(("name", "dtype"), [("half", torch.float16), ("bfloat16", torch.bfloat16)])
def test_16_bit_arithmetic(primitives: Emulator, name: str, dtype: torch.dtype) -> None:
    n = 2**11
    a, b, c = (torch.randint(-(2**15), 2**15, (n,)).to(torch.int16).view(dtype) for _ in range(3))
    results = torch.empty(5, n, dtype=dtype)
    launch(primitives, name, a, b, c, results, n, grid=(n // 256, 1, 1), block=(256, 1, 1))
    assert_same_numbers(results[:4], torch.stack([a + b, a - b, a * b, a / b]))
    finite = torch.stack([a, b, c]).isfinite().all(0).nonzero().flatten()[:300]
    for i in finite.tolist():
        exact = Fraction(a[i].item()) * Fraction(b[i].item()) + Fraction(c[i].item())
        near = results[4, i].item()
        if results[4, i].isfinite():
            bits = results[4, i].view(torch.int16)
            neighbours = torch.stack([bits - 1, bits + 1]).view(dtype)
            for other in neighbours[neighbours.isfinite()].tolist():
                assert abs(Fraction(near) - exact) <= abs(Fraction(other) - exact)


@pytest.mark.parametrize(("name", "dtype", "last"), [("half", torch.float16, -11), ("bfloat16", torch.bfloat16, -8)])
def test_fma_rounds_once(emulators: Callable[[str, str], Emulator], name: str, dtype: torch.dtype, last: int) -> None:
    # (1 + 2^k)·1 is half way between two numbers where 2^k is the first bit that does not fit; c, far below, decides.
    big, tiny = 1 + 2.0 ** (last + 1), 2.0 ** (-24 if dtype == torch.float16 else -120)
    a = torch.tensor([big] * 3, dtype=dtype)
    b = torch.tensor([1 + 2.0 ** (last + 1)] * 3, dtype=dtype)
    exact = Fraction(big) * Fraction(big)
    for c in (tiny, -tiny):
        results = torch.empty(5, 3, dtype=dtype)
        cs = torch.tensor([c] * 3, dtype=dtype)
        launch(emulators("primitives", "plain"), name, a, b, cs, results, 3)
        bits = results[4, 0].view(torch.int16)
        distance = [abs(Fraction((bits + k).view(dtype).item()) - exact - Fraction(cs[0].item())) for k in (-1, 0, 1)]
        assert distance[1] == min(distance)


def fragments(matrix: Tensor, place: Callable[[int, int], tuple[int, int]], count: int) -> Tensor:
    """[32, count]: what each lane holds of a matrix."""
    return torch.stack([torch.stack([matrix[place(lane, i)] for i in range(count)]) for lane in range(32)])


# The index formulas of the PTX ISA, "Matrix Fragments for mma.m16n8k16 with floating point type": row and column of
# element i of lane l, with groupID = l >> 2 and threadID_in_group = l % 4.
def place_in_a(lane: int, i: int) -> tuple[int, int]:
    row = (lane >> 2) if 0 <= i < 2 or 4 <= i < 6 else (lane >> 2) + 8
    column = (lane % 4) * 2 + (i & 1) if i < 4 else (lane % 4) * 2 + (i & 1) + 8
    return row, column


def place_in_b(lane: int, i: int) -> tuple[int, int]:
    row = (lane % 4) * 2 + (i & 1) if i < 2 else (lane % 4) * 2 + (i & 1) + 8
    return row, lane >> 2


def place_in_c(lane: int, i: int) -> tuple[int, int]:
    return (lane >> 2) if i < 2 else (lane >> 2) + 8, (lane % 4) * 2 + (i & 1)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_mma_has_the_layout_of_the_ptx_isa(primitives: Emulator, dtype: torch.dtype) -> None:
    a, b = torch.randn(16, 16).to(dtype), torch.randn(16, 8).to(dtype)
    c = torch.randn(16, 8)
    of_c = fragments(c, place_in_c, 4).contiguous()
    launch(
        primitives, "fragments", fragments(a, place_in_a, 8), fragments(b, place_in_b, 4), of_c, dtype == torch.float16
    )
    torch.testing.assert_close(of_c, fragments(a.float() @ b.float() + c, place_in_c, 4))


def test_cp_async_is_seen_after_its_wait(emulators: Callable[[str, str], Emulator]) -> None:
    source = torch.arange(64.0)
    second = torch.cat([source[32:56], torch.zeros(8)])  # the last two of its copies are told to zero
    seen = torch.empty(3, 2, 32)
    for kind in ("plain", "thread"):
        launch(emulators("primitives", kind), "copy", source, seen)
        assert seen[0].isnan().all()
        assert torch.equal(seen[1, 0], source[:32])
        assert seen[1, 1].isnan().all()
        assert torch.equal(seen[2], torch.stack([source[:32], second]))
    with pytest.raises(EmulationError, match=r"use-after-poison[\s\S]*primitives\.cuh"):
        launch(emulators("primitives", "address"), "copy", source, seen)


@pytest.mark.parametrize(
    ("grid", "block", "shared", "words"),
    [
        ((1, 65536, 1), (32, 1, 1), 0, "a grid has"),
        ((1, 1, 65536), (32, 1, 1), 0, "a grid has"),
        ((2**31, 1, 1), (32, 1, 1), 0, "a grid has"),
        ((0, 1, 1), (32, 1, 1), 0, "a grid has"),
        ((2**32 + 1, 1, 1), (32, 1, 1), 0, "a grid has"),
        ((1, 1, 1), (1025, 1, 1), 0, "a block has"),
        ((1, 1, 1), (32, 32, 2), 0, "a block has"),
        ((1, 1, 1), (1, 1, 65), 0, "a block has"),
        ((1, 1, 1), (32, 1, 1), 163 * 1024 + 1, "bytes of shared memory"),
    ],
)
def test_limits_of_a_launch(
    emulators: Callable[[str, str], Emulator], grid: object, block: object, shared: int, words: str
) -> None:
    with pytest.raises(EmulationError, match=words):
        launch(emulators("primitives", "plain"), "index", None, grid=grid, block=block, shared=shared)


def test_shared_memory_of_a_block_is_limited(emulators: Callable[[str, str], Emulator]) -> None:
    results = torch.empty(32), torch.empty(32, dtype=torch.int32), torch.empty(32).double()
    with pytest.raises(EmulationError, match="at most 163 KiB of shared memory"):
        launch(emulators("primitives", "plain"), "fresh", *results, shared=163 * 1024)


def test_wrong_use_is_named_with_its_line(emulators: Callable[[str, str], Emulator]) -> None:
    primitives = emulators("primitives", "plain")
    values, answers = torch.zeros(40, dtype=torch.int32), torch.empty(40, 3, dtype=torch.int32)
    with pytest.raises(EmulationError, match=r"primitives\.cuh:\d+: .*partial warp does not have"):
        launch(primitives, "vote", values, 2**32 - 1, values.clone(), answers, block=(40, 1, 1))
    given = torch.zeros(32, dtype=torch.int64)
    with pytest.raises(EmulationError, match=r"primitives\.cuh:\d+: .*width is not"):
        launch(primitives, "shuffle", given, given.clone(), 0, 1, 3)
    with pytest.raises(EmulationError, match=r"primitives\.cuh:\d+: .*cp\.async between addresses that are not"):
        launch(primitives, "copy", torch.zeros(65)[1:], torch.empty(3, 2, 32))
    with pytest.raises(EmulationError, match=r"segmentation fault"):
        launch(primitives, "index", None)
