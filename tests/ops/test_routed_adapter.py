"""routed_adapter against tables worked by hand, a loop in plain Python, and what every op promises."""

import math
from typing import Any

import pytest
import torch
from properties import assert_only_asked
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
from torch.utils._python_dispatch import TorchDispatchMode

from artsy_ext.ops import plan_routes, reference, routed_adapter

ACTIVATIONS = ("relu", "gelu", "gelu_tanh")
DIFFERENTIABLE = ("x", "down", "down_bias", "up", "up_bias", "base")


def example(
    mask: Tensor, *, padding: int | None = None, N: int | None = 3, D: int = 5, R: int = 2, dtype: Any = torch.float64
) -> dict[str, Any]:
    """Random arguments; N=None is the form without tokens. The padding rows hold NaN."""
    routes = plan(mask, padding)
    P, S, used = len(routes.sample), mask.shape[1], int(routes.offsets[-1])
    shapes = {
        "x": (P, D) if N is None else (P, N, D),
        "down": (S, R, D),
        "down_bias": (S, R),
        "up": (S, D, R),
        "up_bias": (S, D),
    }
    arguments: dict[str, Any] = {name: torch.randn(shape, dtype=dtype) for name, shape in shapes.items()}
    arguments["base"] = torch.randn_like(arguments["x"])
    arguments["x"][used:] = arguments["base"][used:] = torch.nan
    return arguments | {"routes": routes, "scale": 0.3, "activation": "relu"}


def activate(v: float, activation: str) -> float:
    if activation == "relu":
        return max(v, 0.0)
    if activation == "gelu":
        return v * 0.5 * (1 + math.erf(v / math.sqrt(2)))
    return v * 0.5 * (1 + math.tanh(math.sqrt(2 / math.pi) * (v + 0.044715 * v**3)))


def loop_adapter(mask: Tensor, x: Tensor, base: Tensor | None, scale: float, activation: str, **weights: Any) -> Tensor:
    """One row, one token, one feature after the other."""
    down, down_bias, up, up_bias = (weights[name].tolist() for name in ("down", "down_bias", "up", "up_bias"))
    P, D = x.shape[0], x.shape[-1]
    tokens = x.reshape(P, -1, D) if x.numel() else x.new_zeros(P, 0, D)
    result = torch.zeros_like(tokens)
    for p, (_, s) in enumerate(pairs_of(mask)):
        for n, token in enumerate(tokens[p].tolist()):
            hidden = [
                activate(sum(w * v for w, v in zip(row, token, strict=True)) + bias, activation)
                for row, bias in zip(down[s], down_bias[s], strict=True)
            ]
            for d in range(D):
                y = sum(w * v for w, v in zip(up[s][d], hidden, strict=True)) + up_bias[s][d]
                result[p, n, d] = scale * y + (0 if base is None else base.reshape(tokens.shape)[p, n, d])
    return result.reshape(x.shape)


# Sample 0 has sub-networks 0 and 1, sample 1 has 1: pairs (sample 0, 0), (0, 1), (1, 1).
TABLE_MASK = torch.tensor([[1, 1], [0, 1]], dtype=torch.bool)
TABLE = {
    "x": [[1, 2], [3, -1], [-2, 1]],
    "down": [[[1, 1]], [[2, -1]]],
    "down_bias": [[-1], [1]],
    "up": [[[1], [-2]], [[3], [1]]],
    "up_bias": [[1, 0], [0, -1]],
}
# Row 0, sub-network 0: hidden 1+2−1 = 2, [2, −4] + [1, 0].
# Row 1, sub-network 1: hidden 6+1+1 = 8, [24, 8] + [0, −1].
# Row 2, sub-network 1: hidden −4−1+1 = −4, which relu stops: [0, −1].
TABLE_RESULT = [[3, -4], [24, 7], [0, -1]]
# base=x, scale=2: x + 2 · the above.
TABLE_RESIDUAL = [[7, -6], [51, 13], [-2, -1]]


def table(dtype: torch.dtype, padding: int | None = None) -> dict[str, Any]:
    arguments: dict[str, Any] = {name: torch.tensor(values, dtype=dtype) for name, values in TABLE.items()}
    arguments["x"] = torch.cat([arguments["x"], torch.full((padding or 0, 2), torch.nan, dtype=dtype)])
    return arguments | {"routes": plan(TABLE_MASK, padding)}


@pytest.mark.parametrize("op", [routed_adapter, reference.routed_adapter], ids=["op", "reference"])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("padding", [None, 2])
def test_table(op: Any, dtype: torch.dtype, padding: int | None) -> None:
    arguments = table(dtype, padding)
    zeros = [[0, 0]] * (padding or 0)
    assert torch.equal(op(**arguments), torch.tensor(TABLE_RESULT + zeros, dtype=dtype))
    # One token per row is the same.
    tokens = arguments | {"x": arguments["x"][:, None]}
    assert torch.equal(op(**tokens), torch.tensor(TABLE_RESULT + zeros, dtype=dtype)[:, None])
    residual = op(**arguments, base=arguments["x"], scale=2.0)
    assert torch.equal(residual, torch.tensor(TABLE_RESIDUAL + zeros, dtype=dtype))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("padding", [None, 2])
def test_table_of_gradients(dtype: torch.dtype, padding: int | None) -> None:
    # For the gradient G = [1, 0], [0, 1], [1, 1] of the rows, scale 1; row 2 is stopped by relu.
    # up_bias: the sums of G by sub-network; up: G times hidden (2, 8, 0).
    # Hidden: row 0: 1·1 + (−2)·0 = 1, row 1: 3·0 + 1·1 = 1, row 2: 0. down_bias: their sums; down: times x.
    # x: down_s times the hidden's gradient. base: G.
    expected = {
        "up_bias": [[1, 0], [1, 2]],
        "up": [[[2], [0]], [[0], [8]]],
        "down_bias": [[1], [1]],
        "down": [[[1, 2]], [[3, -1]]],
        "x": [[1, 1], [2, -1], [0, 0]],
        "base": [[1, 0], [0, 1], [1, 1]],
    }
    arguments = table(dtype, padding)
    arguments["base"] = torch.full_like(arguments["x"], torch.nan)
    arguments["base"][:3] = 0
    leaves = {name: arguments[name].requires_grad_() for name in DIFFERENTIABLE}
    rows = torch.full_like(arguments["x"], torch.nan)  # a gradient of padding rows means nothing either
    rows[:3] = torch.tensor(expected["base"])
    routed_adapter(**arguments).backward(rows)
    for name, leaf in leaves.items():
        gradient = torch.zeros_like(leaf)
        gradient[: len(expected[name])] = torch.tensor(expected[name])
        assert torch.equal(leaf.grad, gradient), name


def test_residual_gradient_is_the_sum_of_both() -> None:
    # base=x: one leaf in two arguments, G + the table's gradient of x.
    arguments = table(torch.float32)
    x = arguments["x"].requires_grad_()
    routed_adapter(**arguments, base=x).backward(torch.tensor([[1.0, 0], [0, 1], [1, 1]]))
    assert torch.equal(x.grad, torch.tensor([[2.0, 1], [2, 0], [1, 1]]))


@any_mask
@pytest.mark.parametrize("padding", [None, 5])
@pytest.mark.parametrize("N", [None, 2])
def test_equals_the_loop(mask: Tensor, padding: int | None, N: int | None) -> None:
    arguments = example(mask, padding=padding, N=N)
    weights = {name: value for name, value in arguments.items() if name != "routes"}
    torch.testing.assert_close(routed_adapter(**arguments), loop_adapter(mask, **weights))


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("base", ["absent", "x", "base"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_activations_and_bases_equal_the_loop(activation: str, base: str, dtype: torch.dtype) -> None:
    mask = MASKS["uniform"]
    arguments = example(mask, dtype=dtype) | {"activation": activation, "scale": -1.7}
    arguments["base"] = None if base == "absent" else arguments[base]
    weights = {name: value for name, value in arguments.items() if name != "routes"}
    torch.testing.assert_close(routed_adapter(**arguments), loop_adapter(mask, **weights))
    torch.testing.assert_close(routed_adapter(**arguments), reference.routed_adapter(**arguments))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_stays_near_double(dtype: torch.dtype) -> None:
    # 512 products: summed in the short type itself, the error would be 4 to 8 roundings of the largest value.
    arguments = example(MASKS["zipf"], N=2, D=512, R=3, dtype=torch.float32) | {"scale": 1.0, "base": None}
    short = cast(arguments, dtype)
    result, exact = routed_adapter(**short), routed_adapter(**cast(short, torch.float64))
    assert result.dtype == dtype
    assert (result.double() - exact).abs().max() < 1.5 * torch.finfo(dtype).eps * exact.abs().max()


# The sizes are below, at and beyond the kernels' vectors, blocks of rows and columns, and tiles.
@every_isa
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("name", "activation", "N", "D", "R"),
    [
        ("uniform", "gelu", 1, 7, 3),
        ("63x1", "relu", 3, 64, 64),
        ("one-hot", "relu", 2, 100, 18),
        ("zipf", "gelu_tanh", 1, 33, 130),
        ("identical", "gelu", 1, 530, 16),
    ],
)
def test_every_instruction_set(
    isa: None, dtype: torch.dtype, name: str, activation: str, N: int, D: int, R: int
) -> None:
    arguments = example(MASKS[name], padding=3, N=N, D=D, R=R, dtype=torch.float32) | {"activation": activation}
    for weights in ("x", "down", "up"):  # contiguous, but on no boundary of a vector
        values = arguments[weights] / (1 if weights == "x" else arguments[weights].shape[-1] ** 0.5)
        arguments[weights] = torch.cat([torch.zeros(1), values.flatten()])[1:].view(values.shape)
    arguments = cast(arguments, dtype)
    exact = with_gradients(reference.routed_adapter, cast(arguments, torch.float64), DIFFERENTIABLE)
    # The short types may round the hidden values, as a product of two layers has them.
    roundings = 2 if dtype.itemsize == 2 else 16
    assert_near(with_gradients(routed_adapter, arguments, DIFFERENTIABLE), exact, roundings * torch.finfo(dtype).eps)


@every_isa
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("D", "R"), [(64, 64), (100, 18), (7, 3)])
def test_residual_on_every_instruction_set(isa: None, dtype: torch.dtype, D: int, R: int) -> None:
    arguments = cast(example(MASKS["zipf"], padding=3, N=2, D=D, R=R, dtype=torch.float32), dtype)

    def residual(op: Any) -> Any:
        return lambda x, base, **others: op(x, base=x, **others)

    names = ("x", "down", "up")
    exact = with_gradients(residual(reference.routed_adapter), cast(arguments, torch.float64), names)
    roundings = 2 if dtype.itemsize == 2 else 16
    assert_near(with_gradients(residual(routed_adapter), arguments, names), exact, roundings * torch.finfo(dtype).eps)


def test_unknown_instruction_set(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ARTSY_CPU_ISA", "avx1024")
    with pytest.raises(ValueError, match=r"ARTSY_CPU_ISA must be portable, avx2 or avx512, got 'avx1024'"):
        routed_adapter(**example(HAND_MASK))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_what_is_too_large_for_the_caches(dtype: torch.dtype) -> None:
    # From 8 MiB on the kernels write past the caches.
    D = (8 << 20) // (3 * 300 * dtype.itemsize) // 64 * 64 + 64
    arguments = cast(example(TABLE_MASK, N=300, D=D, R=2, dtype=torch.float32), dtype)
    exact = with_gradients(reference.routed_adapter, cast(arguments, torch.float64), ("x",))
    assert_near(with_gradients(routed_adapter, arguments, ("x",)), exact, 2e-5 if dtype == torch.float32 else 1e-2)


@every_isa
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", ["zipf", "identical"])
def test_threads_change_nothing(isa: None, dtype: torch.dtype, name: str) -> None:
    arguments = cast(example(MASKS[name], N=7, D=130, R=20, dtype=torch.float32), dtype)
    assert_same_on_every_thread_count(lambda: with_gradients(routed_adapter, arguments, DIFFERENTIABLE))


@pytest.mark.parametrize("offsets", [[0, 2, 3, 4, 9], [0, 3, 2, 4, 4], [1, 2, 3, 4, 4], [0, -7, 3, 4, 4]])
def test_routes_that_are_no_plan(offsets: list[int]) -> None:
    arguments = replaced(BAD, "routes.offsets", lambda _: torch.tensor(offsets))
    assert_refused(routed_adapter, arguments, "routes.offsets must rise from 0 to at most P=4")


@pytest.mark.parametrize("sizes", [{"N": 0}, {"D": 0}, {"R": 0}, {"N": None, "D": 0}, {"N": None, "R": 0}])
@pytest.mark.parametrize("name", ["uniform", "silent", "0x4", "4x0", "0x0"])
@pytest.mark.parametrize("padding", [None, 2])
def test_empty(sizes: dict[str, Any], name: str, padding: int | None) -> None:
    mask = MASKS[name]
    arguments = example(mask, padding=padding, **sizes)
    weights = {name: value for name, value in arguments.items() if name != "routes"}
    leaves = {name: arguments[name].requires_grad_() for name in DIFFERENTIABLE}
    result = routed_adapter(**arguments)
    torch.testing.assert_close(result, loop_adapter(mask, **weights).detach())
    result.sum().backward()
    for leaf in leaves.values():
        assert leaf.grad.isfinite().all()
    # With R = 0 nothing passes but the bias: its gradient is scale times the tokens of the sub-network's rows.
    tokens = 1 if sizes.get("N", 3) is None else sizes.get("N", 3)
    counts = mask.sum(0)[:, None].double() * tokens * arguments["scale"]
    torch.testing.assert_close(leaves["up_bias"].grad, counts.expand_as(leaves["up_bias"]))


def test_overflow_is_nan() -> None:
    arguments = example(HAND_MASK)
    full, routes = arguments["routes"], overflowed(HAND_MASK)
    assert len(routes.sample) == len(full.sample) - 1
    arguments |= {"routes": routes, "x": arguments["x"][:-1], "base": arguments["base"][:-1]}
    for op in (routed_adapter, reference.routed_adapter):
        assert op(**arguments).isnan().all()


@any_mask
def test_promises(mask: Tensor) -> None:
    arguments = example(mask, dtype=torch.float32)
    assert_promises(routed_adapter, arguments)
    assert_promises(routed_adapter, arguments | {"base": arguments["x"]})
    assert_promises(routed_adapter, arguments | {"base": None})


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("wanted", [*DIFFERENTIABLE, DIFFERENTIABLE])
def test_gradcheck(activation: str, wanted: Any) -> None:
    arguments = example(HAND_MASK, N=2, D=3) | {"activation": activation}
    gradcheck(routed_adapter, arguments, [wanted] if isinstance(wanted, str) else wanted)


def test_gradcheck_residual_with_padding() -> None:
    arguments = example(HAND_MASK, N=None)
    x = arguments["x"].requires_grad_()
    arguments["routes"] = plan(HAND_MASK, 2)

    def call(x: Tensor, up: Tensor) -> Tensor:
        x = torch.cat([x, x.new_full((2, 5), torch.nan)])
        return routed_adapter(**(arguments | {"x": x, "up": up, "base": x}))

    assert torch.autograd.gradcheck(call, (x, arguments["up"].requires_grad_()))


@pytest.mark.parametrize("asked", [[0], *([i] for i in range(7, 12)), [0, *range(7, 12)]])
def test_only_the_wanted_gradients_are_computed(asked: list[int]) -> None:
    # Behind the first argument come the six tensors of the plan.
    assert_only_asked("routed_adapter", torch.ops.artsy.routed_adapter, flat(example(HAND_MASK)), asked)


def test_autocast_follows() -> None:
    arguments = example(HAND_MASK, dtype=torch.float32)
    down = arguments["down"].requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        result = routed_adapter(**arguments)
        # What comes from an autocast matmul beside weights that stayed in fp32.
        mixed = routed_adapter(**(arguments | {"x": arguments["x"].bfloat16()}))
        double = routed_adapter(**cast(arguments, torch.float64))
    assert result.dtype == torch.bfloat16
    assert torch.equal(result, routed_adapter(**cast(arguments, torch.bfloat16)))
    assert torch.equal(mixed, result)
    assert double.dtype == torch.float64
    result.sum().backward()
    assert down.grad.dtype == torch.float32
    assert down.grad.abs().sum() > 0


BAD = example(HAND_MASK, dtype=torch.float32)


@pytest.mark.parametrize(("name", "change", "words"), wrong_tensors(BAD, first="x"))
def test_wrong_tensor(name: str, change: Any, words: str) -> None:
    assert_refused(routed_adapter, replaced(BAD, name, change), words)


@pytest.mark.parametrize(
    ("name", "change", "words"),
    [
        ("x", lambda t: t[1:], ("routes.sample", "P=3", "got [4]")),
        ("x", lambda t: t[..., 1:], ("down must be [S, R, D] with D=4", "got [4, 2, 5]")),
        ("base", lambda t: t[1:], ("base must be [P, N, D] with P=4", "got [3, 3, 5]")),
        ("base", lambda t: t[:, 0], ("base must be [P, N, D]", "got [4, 5]")),
        ("down", lambda t: t[1:], ("down must be [S, R, D] with S=4", "got [3, 2, 5]")),
        ("down_bias", lambda t: t[:, 1:], ("down_bias must be [S, R] with R=2", "got [4, 1]")),
        ("up", lambda t: t.transpose(1, 2), ("up must be [S, D, R] with D=5", "got [4, 2, 5]")),
        ("up_bias", lambda t: t[:, 1:], ("up_bias must be [S, D] with D=5", "got [4, 4]")),
        ("routes", lambda _: plan_routes(HAND_MASK[1:]), ("routes.sample must be [P] with P=4", "got [2]")),
        ("routes", lambda _: plan_routes(HAND_MASK[:, :3]), ("down must be [S, R, D] with S=3", "got [4, 2, 5]")),
        ("routes.order", lambda t: t[1:], ("routes.order must be [P] with P=4", "got [3]")),
        ("routes.offsets", lambda t: t[1:], ("S=3",)),
        ("activation", lambda _: "silu", ("activation must be one of 'relu', 'gelu', 'gelu_tanh'", "got 'silu'")),
    ],
)
def test_disagreeing(name: str, change: Any, words: tuple[str, ...]) -> None:
    assert_refused(routed_adapter, replaced(BAD, name, change), *words)


def flat(arguments: dict[str, Any]) -> tuple[Any, ...]:
    weights = (arguments[name] for name in ("down", "down_bias", "up", "up_bias", "base"))
    return (arguments["x"], *arguments["routes"], *weights)


@pytest.mark.parametrize(
    ("padding", "N", "keywords"),
    [(None, None, {"residual": True}), (2, 3, {"scale": 0.5, "activation": "gelu"})],
)
def test_opcheck_routed_adapter(padding: int | None, N: int | None, keywords: dict[str, Any]) -> None:
    arguments = example(HAND_MASK, padding=padding, N=N, dtype=torch.float32)
    if padding is None:
        arguments["x"] = arguments["x"].t().contiguous().t()
        arguments["base"] = None
    for name in ("x", "down", "up_bias"):
        arguments[name].requires_grad_()
    op = torch.ops.artsy.routed_adapter.default
    torch.library.opcheck(op, flat(arguments), keywords)


def test_opcheck_routed_adapter_without_gradients() -> None:
    torch.library.opcheck(torch.ops.artsy.routed_adapter.default, flat(example(HAND_MASK)), {"save_hidden": False})


@pytest.mark.parametrize("needs", [[True] + [False] * 6 + [True] * 5, [False] * 10 + [True, False]])
def test_opcheck_routed_adapter_backward(needs: list[bool]) -> None:
    arguments = example(HAND_MASK, padding=2, dtype=torch.float32)
    backward = torch.ops.artsy.routed_adapter_backward.default
    x, *others = flat(arguments)
    _, hidden = torch.ops.artsy.routed_adapter(x, *others)
    torch.library.opcheck(backward, (torch.ones_like(x), hidden, x, *others), {"needs": needs})


@pytest.mark.parametrize("padding", [None, 2])
def test_layout_is_as_announced(padding: int | None) -> None:
    arguments = example(HAND_MASK, padding=padding)
    x, *others = flat(arguments)
    for save_hidden in (False, True):
        assert_announced_layout(torch.ops.artsy.routed_adapter, (x, *others), save_hidden=save_hidden)
    _, hidden = torch.ops.artsy.routed_adapter(x, *others)
    needs = [True] + [False] * 6 + [True] * 5
    backward = torch.ops.artsy.routed_adapter_backward
    assert_announced_layout(backward, (torch.ones_like(x), hidden, x, *others), needs=needs)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("N", [None, 3])
def test_what_is_saved(dtype: torch.dtype, N: int | None) -> None:
    """The hidden values before activation, only for a gradient, and not in a type that would round them."""
    arguments = cast(example(HAND_MASK, padding=2, N=N), dtype)
    x, used = arguments["x"], int(arguments["routes"].offsets[-1])
    _, none = torch.ops.artsy.routed_adapter(*flat(arguments), save_hidden=False)
    assert none.numel() == 0
    _, hidden = torch.ops.artsy.routed_adapter(*flat(arguments))
    of = arguments["routes"].subnetwork[:used]
    exact = torch.einsum("p...d,prd->p...r", x[:used].double(), arguments["down"][of].double())
    exact += arguments["down_bias"][of].double().view(used, *[1] * (x.dim() - 2), -1)
    assert hidden.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    assert (hidden[used:] == 0).all()
    torch.testing.assert_close(hidden[:used].double(), exact, rtol=0, atol=1e-5)


def test_nothing_is_saved_without_a_gradient() -> None:
    arguments = example(HAND_MASK)
    arguments["up"].requires_grad_()
    saved: list[int] = []

    class Saved(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            result = func(*args, **(kwargs or {}))
            saved.append(result[1].numel())
            return result

    with Saved():
        routed_adapter(**arguments)
        with torch.no_grad():
            routed_adapter(**arguments)
    assert saved == [arguments["x"].shape[:-1].numel() * 2, 0]


def test_the_gradient_needs_what_was_saved() -> None:
    arguments = replaced(BAD, "x", lambda x: x.clone().requires_grad_())
    y, _ = torch.ops.artsy.routed_adapter(*flat(arguments), save_hidden=False)
    with pytest.raises((ValueError, RuntimeError), match=r"routed_adapter: hidden must be \[P, N, R\], got \[0\]"):
        y.sum().backward()


def test_base_and_residual_are_one_or_the_other() -> None:
    with pytest.raises(ValueError, match="routed_adapter: base must be None with residual"):
        torch.ops.artsy.routed_adapter(*flat(BAD), residual=True)
