"""consolidate: hysteresis between two thresholds of |weight|."""

import math

import pytest
import torch
from properties import LAYOUTS, REAL, assert_any_layout, assert_pure, assert_refused, laid_out, sliced
from torch import Tensor

from artsy_ext import ops

WEIGHTS = [-3, -2, -1.5, -1, -0.5, 0, 0.5, 1, 1.5, 2, 3]
NAN, INF = math.nan, math.inf


def row(values: list, dtype: torch.dtype, device: str = "cpu") -> Tensor:
    return torch.tensor(values, dtype=dtype, device=device).view(1, 1, -1)


@pytest.mark.parametrize("dtype", REAL)
@pytest.mark.parametrize(
    ("weights", "on", "off", "silent_become", "functional_become"),
    [
        # |w| >= 2 becomes functional, |w| < 1 silent; 1 and 1.5 stay as they were, 1 itself is not below off.
        (WEIGHTS, 2, 1, [1, 1, 0, 0, 0, 0, 0, 0, 0, 1, 1], [1, 1, 1, 1, 0, 0, 0, 1, 1, 1, 1]),
        # Without a band between them the state so far does not count.
        (WEIGHTS, 1, 1, [1, 1, 1, 1, 0, 0, 0, 1, 1, 1, 1], [1, 1, 1, 1, 0, 0, 0, 1, 1, 1, 1]),
        # off = 0: nothing is below it, what is functional stays so, also at weight 0.
        (WEIGHTS, 2, 0, [1, 1, 0, 0, 0, 0, 0, 0, 0, 1, 1], [1] * 11),
        # on = 0: |w| >= 0 everywhere.
        (WEIGHTS, 0, 0, [1] * 11, [1] * 11),
        # on out of reach: nothing new becomes functional.
        ([-INF, -5, 0, 5, INF], INF, 1, [1, 0, 0, 0, 1], [1, 1, 0, 1, 1]),
        # A NaN transmits nothing useful: silent.
        ([NAN, 2, NAN], 1, 0, [0, 1, 0], [0, 1, 0]),
        # Thresholds are read in the weights' precision: 0.1 as float32 is not below 0.1.
        ([0.1, -0.1], 0.1, 0.1, [1, 1], [1, 1]),
    ],
)
def test_table(
    weights: list,
    on: float,
    off: float,
    silent_become: list,
    functional_become: list,
    dtype: torch.dtype,
    device: str,
) -> None:
    weight = row(weights, dtype, device)
    for before, after in ((False, silent_become), (True, functional_become)):
        state = torch.full_like(weight, before, dtype=torch.bool)
        assert torch.equal(ops.consolidate(weight, state, on, off), row(after, torch.bool, device))


@pytest.mark.parametrize("shape", [(2, 3, 4), (1, 3, 43), (2, 2, 130)])
def test_every_synapse_has_its_own_state(shape: tuple[int, ...], device: str) -> None:
    weight = torch.full(shape, 1.5, device=device)
    state = torch.rand(shape, device=device) < 0.5
    assert torch.equal(ops.consolidate(weight, state, 2, 1), state)


def test_silent_until_on_then_functional_until_off():
    state = row([False], torch.bool)
    seen = []
    for weight in (0.9, 1.5, 2.0, 1.5, 1.0, 0.9, 1.5):
        state = ops.consolidate(row([weight], torch.float32), state, 2, 1)
        seen.append(state.item())
    assert seen == [False, False, True, True, True, False, False]


@pytest.mark.parametrize("shape", [(0, 3, 4), (2, 0, 4), (2, 3, 0)])
def test_empty(shape: tuple[int, ...], device: str) -> None:
    weight, state = torch.zeros(shape, device=device), torch.zeros(shape, dtype=torch.bool, device=device)
    result = ops.consolidate(weight, state, 1, 0)
    assert (result.shape, result.dtype) == (shape, torch.bool)


def test_pure_and_any_layout(device: str) -> None:
    arguments = (torch.randn(3, 5, 7, device=device), torch.rand(3, 5, 7, device=device) < 0.5, 1.0, 0.5)
    assert_pure(ops.consolidate, *arguments)
    assert_any_layout(ops.consolidate, *arguments)


def test_no_gradient():
    assert not ops.consolidate(torch.ones(1, 1, 1, requires_grad=True), row([True], torch.bool), 1, 0).requires_grad


def test_autocast_stays_in_float32():
    """1.001 is 1 in bfloat16, which would not be below an `off` of 1.0005."""
    weight, state = row([1.001], torch.float32), row([True], torch.bool)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert ops.consolidate(weight, state, 2, 1.0005).item()
        assert ops.consolidate(weight.bfloat16(), state, 2, 1).item()


@pytest.mark.parametrize(
    ("argument", "change"),
    [
        ("weight", {"weight": torch.zeros(2, 3)}),
        ("weight", {"weight": torch.zeros(2, 3, 4, dtype=torch.bfloat16)}),
        ("weight", {"weight": torch.zeros(2, 3, 4, dtype=torch.int64)}),
        ("functional", {"functional": torch.ones(2, 3, 4)}),
        ("functional", {"functional": torch.ones(2, 3, 5, dtype=torch.bool)}),
        ("functional", {"functional": torch.ones(2, 3, dtype=torch.bool)}),
        ("functional", {"functional": torch.ones(2, 3, 4, dtype=torch.bool, device="meta")}),
        ("off", {"off": 1.5}),
        ("off", {"off": -0.5}),
        ("off", {"off": NAN}),
        ("on", {"on": NAN}),
    ],
)
def test_bad_input(argument, change):
    good = {"weight": torch.zeros(2, 3, 4), "functional": torch.ones(2, 3, 4, dtype=torch.bool), "on": 1.0, "off": 0.5}
    assert_refused("consolidate", argument, lambda: ops.consolidate(**{**good, **change}))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_opcheck(layout):
    arguments = (torch.randn(2, 3, 4), torch.rand(2, 3, 4) < 0.5, 1.0, 0.5)
    torch.library.opcheck(torch.ops.artsy.consolidate.default, laid_out(arguments, layout))


def test_opcheck_empty():
    torch.library.opcheck(
        torch.ops.artsy.consolidate.default, (torch.zeros(0, 3, 4), torch.zeros(0, 3, 4, dtype=torch.bool), 1.0, 0.5)
    )


def test_compile():
    weight, state = torch.randn(2, 3, 4), torch.rand(2, 3, 4) < 0.5
    compiled = torch.compile(ops.consolidate, fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(weight, state, 1.0, 0.5), ops.consolidate(weight, state, 1.0, 0.5))
    assert torch.equal(compiled(sliced(weight), sliced(state), 1.0, 0.5), ops.consolidate(weight, state, 1.0, 0.5))
