"""combine_routes against tables worked by hand, a loop in plain Python, and what every op promises."""

from typing import Any

import pytest
import torch
from properties import assert_only_asked, on
from routing_cases import (
    DTYPES,
    HAND_MASK,
    MASKS,
    any_mask,
    assert_announced_layout,
    assert_near,
    assert_promises,
    assert_refused,
    assert_same_on_every_thread_count,
    cast,
    every_isa,
    gradcheck,
    overflowed,
    pairs_of,
    plan,
    replaced,
    with_gradients,
    wrong_tensors,
)
from torch import Tensor

from artsy_ext.ops import combine_routes, plan_routes, reference

DIFFERENTIABLE = ("y", "weight", "base")


def example(
    mask: Tensor, *, padding: int | None = None, row: tuple[int, ...] = (3, 5), dtype: torch.dtype = torch.float64
) -> dict[str, Any]:
    """Random arguments; the padding rows hold NaN."""
    routes = plan(mask, padding)
    P, used = len(routes.sample), int(routes.offsets[-1])
    y, weight = torch.randn(P, *row, dtype=dtype), torch.randn(P, dtype=dtype)
    y[used:] = weight[used:] = torch.nan
    return {"y": y, "routes": routes, "weight": weight, "base": torch.randn(len(mask), *row, dtype=dtype)}


def loop_combine(mask: Tensor, y: Tensor, weight: Tensor | None, base: Tensor | None) -> Tensor:
    result = torch.zeros(len(mask), *y.shape[1:], dtype=torch.float64)
    for b in range(len(mask)):
        if base is not None:
            result[b] += base[b]
        for p, (sample, _) in enumerate(pairs_of(mask)):
            if sample == b:
                result[b] += y[p] * (1 if weight is None else weight[p])
    return result


# HAND_MASK: sample 0 has pairs 0 and 3, sample 1 none, sample 2 has pairs 1 and 2.
Y = [[1, 2], [3, 4], [5, -6], [7, 0]]
WEIGHT = [1, 2, -1, 3]
BASE = [[10, 0], [20, 1], [30, -1]]
PLAIN = [[8, 2], [0, 0], [8, -2]]  # [1, 2] + [7, 0]; nothing; [3, 4] + [5, −6]
WEIGHTED = [[22, 2], [0, 0], [1, 14]]  # [1, 2] + 3·[7, 0]; nothing; 2·[3, 4] − [5, −6]
WEIGHTED_ON_BASE = [[32, 2], [20, 1], [31, 13]]


def table(dtype: torch.dtype, padding: int | None, names: tuple[str, ...]) -> dict[str, Any]:
    rows = {"y": Y + [[torch.nan] * 2] * (padding or 0), "weight": WEIGHT + [torch.nan] * (padding or 0), "base": BASE}
    arguments: dict[str, Any] = {name: torch.tensor(rows[name], dtype=dtype) for name in names}
    return arguments | {"routes": plan(HAND_MASK, padding)}


@pytest.mark.parametrize("op", [combine_routes, reference.combine_routes], ids=["op", "reference"])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("padding", [None, 2])
def test_table(op: Any, dtype: torch.dtype, padding: int | None, device: str) -> None:
    for names, expected in (
        (("y",), PLAIN),
        (("y", "weight"), WEIGHTED),
        (("y", "weight", "base"), WEIGHTED_ON_BASE),
    ):
        arguments = on(device, table(dtype, padding, names))
        expected = torch.tensor(expected, dtype=dtype, device=device)
        assert torch.equal(op(**arguments), expected)
        # A row may be a number, or have any number of axes.
        number = {n: t[:, 1] if n in ("y", "base") else t for n, t in arguments.items()}
        assert torch.equal(op(**number), expected[:, 1])
        axes = {n: t[:, None, :, None] if n in ("y", "base") else t for n, t in arguments.items()}
        assert torch.equal(op(**axes), expected[:, None, :, None])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("padding", [None, 2])
def test_table_of_gradients(dtype: torch.dtype, padding: int | None, device: str) -> None:
    # For the gradient G = [1, 2], [3, 4], [5, 6] of the samples: y gets weight times the G of its sample, weight the
    # product of y and that G (1+4, 15+24, 25−36, 7+0), base G itself; padding 0.
    expected = {
        "y": [[1, 2], [10, 12], [-5, -6], [3, 6]],
        "weight": [5, 39, -11, 7],
        "base": [[1, 2], [3, 4], [5, 6]],
    }
    arguments = on(device, table(dtype, padding, DIFFERENTIABLE))
    leaves = {name: arguments[name].requires_grad_() for name in DIFFERENTIABLE}
    combine_routes(**arguments).backward(torch.tensor(expected["base"], dtype=dtype, device=device))
    for name, leaf in leaves.items():
        gradient = torch.zeros_like(leaf)
        gradient[: len(expected[name])] = torch.tensor(expected[name], device=device)
        assert torch.equal(leaf.grad, gradient), name


@any_mask
@pytest.mark.parametrize("padding", [None, 5])
@pytest.mark.parametrize("given", [(), ("weight",), ("base",), ("weight", "base")])
def test_equals_the_loop(mask: Tensor, padding: int | None, given: tuple[str, ...], device: str) -> None:
    arguments = example(mask, padding=padding, row=(2,))
    arguments |= {name: None for name in ("weight", "base") if name not in given}
    expected = loop_combine(mask, arguments["y"], arguments["weight"], arguments["base"]).to(device)
    arguments = on(device, arguments)
    torch.testing.assert_close(combine_routes(**arguments), expected)
    torch.testing.assert_close(reference.combine_routes(**arguments), expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("D", [6, 8])  # 8 is read 16 bytes at a time
def test_sums_in_fp32_from_the_lowest_sub_network_and_rounds_once(
    dtype: torch.dtype, weighted: bool, D: int, device: str
) -> None:
    mask = torch.rand(17, 200) < 0.7
    arguments = example(mask, row=(D,), dtype=dtype) | {"base": None}
    if not weighted:
        arguments["weight"] = None
    expected = torch.zeros(17, D)
    for p, (b, _) in enumerate(pairs_of(mask)):
        row = arguments["y"][p].float()
        expected[b] += row if not weighted else row * arguments["weight"][p].float()
    assert torch.equal(combine_routes(**on(device, arguments)), expected.to(device, dtype))


# Rows below, at and beyond the kernels' vectors and what they keep in registers.
@every_isa
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("name", "row"), [("zipf", (1, 5)), ("uniform", (64,)), ("all", (3, 43)), ("one-hot", (16,))])
def test_every_instruction_set(isa: None, dtype: torch.dtype, name: str, row: tuple[int, ...]) -> None:
    arguments = cast(example(MASKS[name], padding=3, row=row, dtype=torch.float32), dtype)
    arguments["y"] = torch.cat([torch.zeros(1, dtype=dtype), arguments["y"].flatten()])[1:].view(arguments["y"].shape)
    exact = with_gradients(reference.combine_routes, cast(arguments, torch.float64), DIFFERENTIABLE)
    assert_near(with_gradients(combine_routes, arguments, DIFFERENTIABLE), exact, 4 * torch.finfo(dtype).eps)


@every_isa
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_threads_change_nothing(isa: None, dtype: torch.dtype) -> None:
    arguments = cast(example(MASKS["zipf"], row=(40, 130), dtype=torch.float32), dtype)
    assert_same_on_every_thread_count(lambda: with_gradients(combine_routes, arguments, DIFFERENTIABLE))


@pytest.mark.parametrize(
    ("field", "values", "words"),
    [
        ("offsets", [0, 2, 3, 4, 9], "routes.offsets must rise from 0 to at most P=4"),
        ("sample_offsets", [0, 3, 2, 4], "routes.sample_offsets must rise from 0 to at most P=4"),
        ("sample_offsets", [0, 2, 2, 3], "routes.sample_offsets must end at the number of pairs, 4, got 3"),
        ("sample", [0, 2, 2, 3], "routes.sample must be in [0, 3)"),
        ("order", [0, -1, 1, 2], "routes.order must be in [0, 4)"),
    ],
)
def test_routes_that_are_no_plan(field: str, values: list[int], words: str) -> None:
    assert_refused(combine_routes, replaced(BAD, f"routes.{field}", lambda _: torch.tensor(values)), words)


@pytest.mark.parametrize("row", [(0,), (3, 0), ()])
@pytest.mark.parametrize("name", ["uniform", "silent", "0x4", "4x0", "0x0"])
@pytest.mark.parametrize("padding", [None, 2])
def test_empty(row: tuple[int, ...], name: str, padding: int | None, device: str) -> None:
    arguments = example(MASKS[name], padding=padding, row=row)
    expected = loop_combine(MASKS[name], arguments["y"], arguments["weight"], arguments["base"]).to(device)
    arguments = on(device, arguments)
    leaves = [arguments[name].requires_grad_() for name in DIFFERENTIABLE]
    result = combine_routes(**arguments)
    torch.testing.assert_close(result, expected)
    result.sum().backward()
    for leaf in leaves:
        assert leaf.grad.shape == leaf.shape
        assert leaf.grad.isfinite().all()
    assert torch.equal(arguments["base"].grad, torch.ones_like(arguments["base"]))


def test_overflow_is_nan(device: str) -> None:
    arguments = example(HAND_MASK)
    arguments |= {"routes": overflowed(HAND_MASK), "y": arguments["y"][:-1], "weight": arguments["weight"][:-1]}
    arguments = on(device, arguments)
    leaves = [arguments[name].requires_grad_() for name in DIFFERENTIABLE]
    for op in (combine_routes, reference.combine_routes):
        result = op(**arguments)
        assert result.isnan().all()
        for gradient in torch.autograd.grad(result.sum(), leaves):
            assert (gradient == 0).all()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("D", [1, 7, 8, 16, 24, 264])
@pytest.mark.parametrize("start", [0, 1])
def test_every_row_length(dtype: torch.dtype, D: int, start: int, device: str) -> None:
    # A GPU reads 16 bytes at a time where rows are multiples of them and begin at one: not behind a first element.
    mask = torch.rand(9, 5) < 0.5
    arguments = on(device, example(mask, row=(D,), dtype=dtype, padding=2))
    for name in ("y", "base"):
        tensor = arguments[name]
        room = tensor.new_empty(start + tensor.numel())
        arguments[name] = room[start:].view(tensor.shape).copy_(tensor).requires_grad_()
        assert arguments[name].is_contiguous()
    arguments["weight"].requires_grad_()
    grad = torch.randn(9, D, dtype=dtype).to(device)
    results = []
    for op in (combine_routes, reference.combine_routes):
        result = op(**arguments)
        results.append([result, *torch.autograd.grad(result, [arguments[name] for name in DIFFERENTIABLE], grad)])
    for ours, expected in zip(*results, strict=True):
        torch.testing.assert_close(ours, expected)


@any_mask
def test_promises(mask: Tensor, device: str) -> None:
    for dtype in (torch.float32, torch.bfloat16):
        arguments = on(device, example(mask, dtype=dtype))
        assert_promises(combine_routes, arguments)
        assert_promises(combine_routes, arguments | {"weight": None})
        assert_promises(combine_routes, arguments | {"base": None})


@pytest.mark.parametrize("wanted", [*DIFFERENTIABLE, DIFFERENTIABLE])
@pytest.mark.parametrize("padding", [None, 2])
def test_gradcheck(wanted: Any, padding: int | None, device: str) -> None:
    arguments = on(device, example(HAND_MASK, padding=padding, row=(2,)))
    used = int(arguments["routes"].offsets[-1])
    arguments["y"][used:] = arguments["weight"][used:] = 1  # gradcheck does not compare NaN
    gradcheck(combine_routes, arguments, [wanted] if isinstance(wanted, str) else wanted)


@pytest.mark.parametrize("asked", [[0], *([i] for i in range(7, 9)), [0, *range(7, 9)]])
def test_only_the_wanted_gradients_are_computed(asked: list[int], device: str) -> None:
    # Behind the first argument come the six tensors of the plan.
    arguments = flat(on(device, example(HAND_MASK)))
    assert_only_asked("combine_routes", torch.ops.artsy.combine_routes, arguments, asked)


def test_autocast_follows() -> None:
    arguments = example(HAND_MASK, dtype=torch.float32)
    y = arguments["y"].requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        result = combine_routes(**arguments)
        mixed = combine_routes(**(arguments | {"y": y.bfloat16()}))
        double = combine_routes(**cast(arguments, torch.float64))
    assert result.dtype == torch.bfloat16
    assert torch.equal(result, combine_routes(**cast(arguments, torch.bfloat16)))
    assert torch.equal(mixed, result)
    assert double.dtype == torch.float64
    result.sum().backward()
    assert y.grad.dtype == torch.float32
    assert y.grad.abs().sum() > 0


BAD = example(HAND_MASK, dtype=torch.float32)


@pytest.mark.parametrize(
    ("name", "change", "words"),
    # y may have any rank of at least 1; a rank of its own shows at base.
    [case for case in wrong_tensors(BAD, first="y") if case.id != "rank of y"],
)
def test_wrong_tensor(name: str, change: Any, words: str) -> None:
    assert_refused(combine_routes, replaced(BAD, name, change), words)


@pytest.mark.parametrize(
    ("name", "change", "words"),
    [
        ("y", lambda t: t[0, 0, 0], ("y must be [P, ...]", "got []")),
        ("y", lambda t: t[1:], ("routes.sample must be [P] with P=3", "got [4]")),
        ("y", lambda t: t[..., None], ("base must be [B, ...] with the row shape of y, [3, 5, 1]", "got [3, 3, 5]")),
        ("weight", lambda t: t[1:], ("weight must be [P] with P=4", "got [3]")),
        ("base", lambda t: t[1:], ("base must be [B, ...] with B=3", "got [2, 3, 5]")),
        ("base", lambda t: t[:, 1:], ("base must be [B, ...] with the row shape of y, [3, 5]", "got [3, 2, 5]")),
        ("routes", lambda _: plan_routes(HAND_MASK[1:]), ("routes.sample must be [P] with P=4", "got [2]")),
        # Another batch with as many pairs.
        ("routes", lambda _: plan_routes(HAND_MASK[[0, 2]]), ("base must be [B, ...] with B=2", "got [3, 3, 5]")),
        ("routes.order", lambda t: t[1:], ("routes.order must be [P] with P=4", "got [3]")),
        ("routes.sample_offsets", lambda t: t[1:], ("B=2", "got [3, 3, 5]")),
    ],
)
def test_disagreeing(name: str, change: Any, words: tuple[str, ...]) -> None:
    assert_refused(combine_routes, replaced(BAD, name, change), *words)


def flat(arguments: dict[str, Any]) -> tuple[Any, ...]:
    return (arguments["y"], *arguments["routes"], arguments["weight"], arguments["base"])


@pytest.mark.parametrize(("padding", "given"), [(None, ()), (2, ("weight", "base"))])
def test_opcheck_combine_routes(padding: int | None, given: tuple[str, ...], device: str) -> None:
    arguments = on(device, example(HAND_MASK, padding=padding, dtype=torch.float32))
    for name in ("weight", "base"):
        arguments[name] = arguments[name].requires_grad_() if name in given else None
    arguments["y"] = arguments["y"].transpose(1, 2).contiguous().transpose(1, 2).requires_grad_()
    torch.library.opcheck(torch.ops.artsy.combine_routes.default, flat(arguments))


@pytest.mark.parametrize("needs", [[True] + [False] * 6 + [True] * 2, [False] * 7 + [True, False]])
def test_opcheck_combine_routes_backward(needs: list[bool], device: str) -> None:
    arguments = on(device, example(HAND_MASK, padding=2, dtype=torch.float32))
    backward = torch.ops.artsy.combine_routes_backward.default
    torch.library.opcheck(backward, (torch.ones_like(arguments["base"]), *flat(arguments)), {"needs": needs})


@pytest.mark.parametrize("padding", [None, 2])
def test_layout_is_as_announced(padding: int | None, device: str) -> None:
    arguments = on(device, example(HAND_MASK, padding=padding))
    assert_announced_layout(torch.ops.artsy.combine_routes, flat(arguments))
    needs = [True] + [False] * 6 + [True] * 2
    gradient = torch.ones_like(arguments["base"])
    assert_announced_layout(torch.ops.artsy.combine_routes_backward, (gradient, *flat(arguments)), needs=needs)
