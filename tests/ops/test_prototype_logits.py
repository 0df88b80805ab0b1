"""prototype_logits against tables worked by hand, a loop in plain Python, and what every op promises."""

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
    wrong_tensors,
)
from torch import Tensor

from artsy_ext.ops import plan_routes, prototype_logits, reference

DIFFERENTIABLE = ("features", "prototypes", "weight", "base_features", "base_prototypes")
BASES = ("base_features", "base_prototypes")
INF = math.inf
both_reductions = pytest.mark.parametrize("reduce", ["max", "sum"])
both_ops = pytest.mark.parametrize("op", [prototype_logits, reference.prototype_logits], ids=["op", "reference"])


def example(
    mask: Tensor, *, padding: int | None = None, D: int = 6, C: int = 7, dtype: torch.dtype = torch.float64
) -> dict[str, Any]:
    """Random arguments; about half the weights are 0 or less. The padding rows hold NaN."""
    B, S = mask.shape
    routes = plan(mask, padding)
    features = torch.randn(len(routes.sample), D, dtype=dtype)
    features[int(routes.offsets[-1]) :] = torch.nan
    weight = torch.rand(S, C, dtype=dtype) + 0.1
    weight[torch.rand(S, C) < 0.3] = 0
    weight[torch.rand(S, C) < 0.2] = -1
    return {
        "features": features,
        "routes": routes,
        "prototypes": torch.randn(S, C, D, dtype=dtype),
        "weight": weight,
        "base_features": torch.randn(B, D, dtype=dtype),
        "base_prototypes": torch.randn(C, D, dtype=dtype),
        "reduce": "max",
    }


def cosine(x: list[float], y: list[float]) -> float:
    lengths = math.hypot(*x) * math.hypot(*y)
    return sum(a * b for a, b in zip(x, y, strict=True)) / lengths if lengths else 0.0


def loop_logits(mask: Tensor, **arguments: Any) -> Tensor:
    """One sample, one class, one sub-network after the other."""
    features, prototypes, weight = (arguments[name].tolist() for name in ("features", "prototypes", "weight"))
    base_features, base_prototypes = arguments["base_features"], arguments["base_prototypes"]
    pairs = pairs_of(mask)
    B, C = len(mask), arguments["weight"].shape[1]
    result = torch.full((B, C), -INF, dtype=torch.float64)
    for b in range(B):
        for c in range(C):
            terms = [
                weight[s][c] * cosine(features[p], prototypes[s][c])
                for p, (sample, s) in enumerate(pairs)
                if sample == b and weight[s][c] > 0
            ]
            if terms:
                result[b, c] = max(terms) if arguments["reduce"] == "max" else sum(terms)
                if base_features is not None:
                    result[b, c] += cosine(base_features[b].tolist(), base_prototypes[c].tolist())
    return result


# Sample 0 has sub-networks 0 and 1, sample 1 has 1, sample 2 none: pairs (sample 0, 0), (0, 1), (1, 1). Class 3 has no
# sub-network; sub-network 1 has no say on class 0, and a negative weight is no say either.
TABLE_MASK = torch.tensor([[1, 1], [0, 1], [0, 0]], dtype=torch.bool)
TABLE = {
    "features": [[1, 1, 1, 1], [0, 3, 0, 0], [2, -2, 2, 2]],
    "prototypes": [
        [[1, 1, 1, 1], [2, 2, -2, 2], [1, 0, 0, 0], [1, 0, 0, 0]],
        [[0, 5, 0, 0], [1, 1, 1, 1], [0, -1, 0, 0], [1, 0, 0, 0]],
    ],
    "weight": [[2, 1, 0, 0], [-1, 4, 8, 0]],
}
# Cosines of pair 0 to prototypes of 0: class 0: 1, class 1: ½ (1+1−1+1 over 2·2); times the weights: 2, ½.
# Pair 1, sub-network 1: class 1: ½, class 2: −1; weighted 2, −8. Pair 2, sub-network 1: ½, ½; weighted 2, 4.
TABLE_MAX = [[2, 2, -8, -INF], [-INF, 2, 4, -INF], [-INF, -INF, -INF, -INF]]
TABLE_SUM = [[2, 2.5, -8, -INF], [-INF, 2, 4, -INF], [-INF, -INF, -INF, -INF]]
TABLE_BASE = {
    "base_features": [[1, 0, 0, 0], [0, 0, 2, 0], [1, 1, 1, 1]],
    "base_prototypes": [[3, 0, 0, 0], [1, 1, 1, 1], [0, 0, -1, 0], [1, 0, 0, 0]],
}
# Base cosines of sample 0: 1, ½, 0, 1; of sample 1: 0, ½, −1, 0. What has no answer keeps −∞.
TABLE_MAX_BASE = [[3, 2.5, -8, -INF], [-INF, 2.5, 3, -INF], [-INF, -INF, -INF, -INF]]
TABLE_SUM_BASE = [[3, 3, -8, -INF], [-INF, 2.5, 3, -INF], [-INF, -INF, -INF, -INF]]


def table(dtype: torch.dtype, padding: int | None, base: bool = False) -> dict[str, Any]:
    rows = TABLE | {"features": TABLE["features"] + [[torch.nan] * 4] * (padding or 0)} | (TABLE_BASE if base else {})
    arguments: dict[str, Any] = {name: torch.tensor(values, dtype=dtype) for name, values in rows.items()}
    return arguments | {"routes": plan(TABLE_MASK, padding)}


@both_ops
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("padding", [None, 2])
@pytest.mark.parametrize(
    ("reduce", "base", "expected"),
    [
        ("max", False, TABLE_MAX),
        ("sum", False, TABLE_SUM),
        ("max", True, TABLE_MAX_BASE),
        ("sum", True, TABLE_SUM_BASE),
    ],
)
def test_table(op: Any, dtype: torch.dtype, padding: int | None, reduce: str, base: bool, expected: Any) -> None:
    result = op(**table(dtype, padding, base), reduce=reduce)
    assert torch.equal(result, torch.tensor(expected, dtype=dtype))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("reduce", "expected"),
    [
        # The gradient of a weight is the cosine where it has a say, summed over the samples: sub-network 1 has ½ + ½ on
        # class 1 and −1 + ½ on class 2.
        ("sum", [[1, 0.5, 0, 0], [0, 1, -0.5, 0]]),
        # On class 1 of sample 0 sub-network 1 wins (2 over ½): nothing for sub-network 0.
        ("max", [[1, 0, 0, 0], [0, 1, -0.5, 0]]),
    ],
)
def test_table_of_weight_gradients(dtype: torch.dtype, reduce: str, expected: list[list[float]]) -> None:
    arguments = table(dtype, 2, base=True)
    weight, prototypes = arguments["weight"].requires_grad_(), arguments["prototypes"].requires_grad_()
    prototype_logits(**arguments, reduce=reduce).backward(torch.ones(3, 4, dtype=dtype))
    assert torch.equal(weight.grad, torch.tensor(expected, dtype=dtype))
    unused = torch.tensor(expected) == 0
    assert not prototypes.grad[unused].any()


@any_mask
@both_reductions
@pytest.mark.parametrize("padding", [None, 5])
@pytest.mark.parametrize("base", [False, True])
def test_equals_the_loop(mask: Tensor, reduce: str, padding: int | None, base: bool) -> None:
    arguments = example(mask, padding=padding, D=3, C=4) | {"reduce": reduce}
    if not base:
        arguments |= dict.fromkeys(BASES)
    without_routes = {name: value for name, value in arguments.items() if name != "routes"}
    expected = loop_logits(mask, **without_routes)
    torch.testing.assert_close(prototype_logits(**arguments), expected)
    torch.testing.assert_close(reference.prototype_logits(**arguments), expected)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@both_reductions
def test_half_precision_rounds_once(dtype: torch.dtype, reduce: str) -> None:
    # 63 sub-networks that all have a say: a sum kept in the short type would lose digits at each.
    arguments = example(MASKS["all"], D=64, dtype=torch.float32) | {"reduce": reduce}
    arguments["weight"] = arguments["weight"].abs() + 0.5
    short = cast(arguments, dtype)
    result, exact = prototype_logits(**short), prototype_logits(**cast(short, torch.float64))
    assert result.dtype == dtype
    torch.testing.assert_close(result.double(), exact, rtol=0.51 * torch.finfo(dtype).eps, atol=1e-5)


@both_reductions
@pytest.mark.parametrize("dtype", DTYPES)
def test_vectors_of_length_zero_have_cosine_zero(reduce: str, dtype: torch.dtype) -> None:
    arguments = table(dtype, None, base=True)
    for name in ("features", "base_features"):
        arguments[name].zero_()
    answered = torch.tensor(TABLE_MAX) > -INF
    expected = torch.where(answered, 0.0, -INF).to(dtype)
    assert torch.equal(prototype_logits(**arguments, reduce=reduce), expected)


@both_reductions
def test_prototypes_without_a_say_may_hold_anything(reduce: str) -> None:
    # A class that came after a sub-network's task has no prototype there.
    arguments = example(MASKS["uniform"]) | {"reduce": reduce}
    holes = arguments | {"prototypes": arguments["prototypes"].clone()}
    holes["prototypes"][arguments["weight"] <= 0] = torch.nan
    results = []
    for case in (arguments, holes):
        leaves = [case[name].detach().requires_grad_() for name in ("features", "prototypes", "weight")]
        logits = prototype_logits(**(case | dict(zip(("features", "prototypes", "weight"), leaves, strict=True))))
        logits[logits > -INF].sum().backward()
        results.append([logits, *(leaf.grad for leaf in leaves)])
    for first, second in zip(*results, strict=True):
        assert torch.equal(first, second)


# Classes and features below, at and beyond the kernels' vectors, panels and depth.
@every_isa
@both_reductions
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("name", "D", "C"), [("zipf", 5, 3), ("uniform", 64, 64), ("identical", 33, 200), ("all", 300, 70)]
)
def test_every_instruction_set(isa: None, dtype: torch.dtype, name: str, D: int, C: int, reduce: str) -> None:
    arguments = cast(example(MASKS[name], padding=3, D=D, C=C, dtype=torch.float32), dtype) | {"reduce": reduce}
    exact = reference.prototype_logits(**cast(arguments, torch.float64))
    assert_near([prototype_logits(**arguments)], [exact], 16 * torch.finfo(dtype).eps)


@every_isa
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_threads_change_nothing(isa: None, dtype: torch.dtype) -> None:
    arguments = cast(example(MASKS["zipf"], D=130, C=70, dtype=torch.float32), dtype)
    assert_same_on_every_thread_count(lambda: prototype_logits(**arguments))


@pytest.mark.parametrize(
    ("field", "values", "words"),
    [
        ("offsets", [0, 2, 3, 4, 9], "routes.offsets must rise from 0 to at most P=4"),
        ("sample_offsets", [0, 2, 2, 3], "routes.sample_offsets must end at the number of pairs, 4, got 3"),
        ("order", [0, 4, 1, 2], "routes.order must be in [0, 4)"),
    ],
)
def test_routes_that_are_no_plan(field: str, values: list[int], words: str) -> None:
    assert_refused(prototype_logits, replaced(BAD, f"routes.{field}", lambda _: torch.tensor(values)), words)


@pytest.mark.parametrize("sizes", [{"D": 0}, {"C": 0}, {"D": 3, "C": 2}])
@pytest.mark.parametrize("name", ["uniform", "silent", "0x4", "4x0", "0x0"])
@pytest.mark.parametrize("padding", [None, 2])
@both_reductions
def test_empty(sizes: dict[str, int], name: str, padding: int | None, reduce: str) -> None:
    arguments = example(MASKS[name], padding=padding, **sizes) | {"reduce": reduce}
    expected = loop_logits(MASKS[name], **{n: value for n, value in arguments.items() if n != "routes"})
    leaves = [arguments[n].requires_grad_() for n in DIFFERENTIABLE]
    result = prototype_logits(**arguments)
    torch.testing.assert_close(result, expected)
    result[result > -INF].sum().backward()
    for leaf in leaves:
        assert leaf.grad.shape == leaf.shape
        assert leaf.grad.isfinite().all()


def test_overflow_is_nan() -> None:
    arguments = example(HAND_MASK)
    arguments |= {"routes": overflowed(HAND_MASK), "features": arguments["features"][:-1]}
    for op in (prototype_logits, reference.prototype_logits):
        assert op(**arguments).isnan().all()


@any_mask
@both_reductions
def test_promises(mask: Tensor, reduce: str) -> None:
    arguments = example(mask, dtype=torch.float32) | {"reduce": reduce}
    assert_promises(prototype_logits, arguments)
    assert_promises(prototype_logits, arguments | dict.fromkeys(BASES))


@both_reductions
@pytest.mark.parametrize("padding", [None, 2])
@pytest.mark.parametrize("wanted", [*DIFFERENTIABLE, DIFFERENTIABLE])
def test_gradcheck(reduce: str, padding: int | None, wanted: Any) -> None:
    arguments = example(HAND_MASK, padding=padding, D=3, C=3) | {"reduce": reduce}
    arguments["features"].nan_to_num_(1)  # gradcheck does not compare NaN
    # A weight of 0 is on the edge of having a say: no numerical gradient there.
    arguments["weight"] = torch.where(arguments["weight"] > 0, arguments["weight"], -1)
    gradcheck(prototype_logits, arguments, [wanted] if isinstance(wanted, str) else wanted)


@both_reductions
def test_padding_has_no_gradient(reduce: str) -> None:
    arguments = example(HAND_MASK, padding=2) | {"reduce": reduce}
    leaves = [arguments[name].requires_grad_() for name in DIFFERENTIABLE]
    logits = prototype_logits(**arguments)
    logits[logits > -INF].sum().backward()
    assert not leaves[0].grad[-2:].any()
    exact = example(HAND_MASK) | {name: arguments[name].detach().requires_grad_() for name in DIFFERENTIABLE}
    exact |= {"features": arguments["features"][:-2].detach().requires_grad_(), "reduce": reduce}
    logits = prototype_logits(**exact)
    logits[logits > -INF].sum().backward()
    assert torch.equal(leaves[0].grad[:-2], exact["features"].grad)
    for leaf, name in zip(leaves[1:], DIFFERENTIABLE[1:], strict=True):
        assert torch.equal(leaf.grad, exact[name].grad)


@pytest.mark.parametrize("asked", [[0], *([i] for i in range(7, 11)), [0, *range(7, 11)]])
def test_only_the_wanted_gradients_are_computed(asked: list[int]) -> None:
    # Behind the first argument come the six tensors of the plan.
    assert_only_asked("prototype_logits", torch.ops.artsy.prototype_logits, flat(example(HAND_MASK)), asked)


def test_autocast_follows() -> None:
    arguments = example(HAND_MASK, dtype=torch.float32)
    prototypes = arguments["prototypes"].requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        result = prototype_logits(**arguments)
        mixed = prototype_logits(**(arguments | {"features": arguments["features"].bfloat16()}))
        double = prototype_logits(**cast(arguments, torch.float64))
    assert result.dtype == torch.bfloat16
    assert torch.equal(result, prototype_logits(**cast(arguments, torch.bfloat16)))
    assert torch.equal(mixed, result)
    assert double.dtype == torch.float64
    result[result > -INF].sum().backward()
    assert prototypes.grad.dtype == torch.float32
    assert prototypes.grad.abs().sum() > 0


BAD = example(HAND_MASK, dtype=torch.float32)


@pytest.mark.parametrize(("name", "change", "words"), wrong_tensors(BAD, first="features"))
def test_wrong_tensor(name: str, change: Any, words: str) -> None:
    assert_refused(prototype_logits, replaced(BAD, name, change), words)


@pytest.mark.parametrize(
    ("name", "change", "words"),
    [
        ("features", lambda t: t[1:], ("routes.sample must be [P] with P=3", "got [4]")),
        ("features", lambda t: t[:, 1:], ("prototypes must be [S, C, D] with D=5", "got [4, 7, 6]")),
        ("prototypes", lambda t: t[1:], ("prototypes must be [S, C, D] with S=4", "got [3, 7, 6]")),
        ("weight", lambda t: t[:, 1:], ("weight must be [S, C] with C=7", "got [4, 6]")),
        ("base_features", lambda t: t[1:], ("base_features must be [B, D] with B=3", "got [2, 6]")),
        ("base_prototypes", lambda t: t[1:], ("base_prototypes must be [C, D] with C=7", "got [6, 6]")),
        ("base_features", lambda _: None, ("base_features is missing",)),
        ("base_prototypes", lambda _: None, ("base_prototypes is missing",)),
        ("routes", lambda _: plan_routes(HAND_MASK[1:]), ("routes.sample must be [P] with P=4", "got [2]")),
        # Another batch, or fewer sub-networks, with as many pairs.
        ("routes", lambda _: plan_routes(HAND_MASK[[0, 2]]), ("base_features must be [B, D] with B=2", "got [3, 6]")),
        ("routes", lambda _: plan_routes(HAND_MASK[:, :3]), ("prototypes must be [S, C, D] with S=3", "[4, 7, 6]")),
        ("routes.order", lambda t: t[1:], ("routes.order must be [P] with P=4", "got [3]")),
        ("reduce", lambda _: "mean", ("reduce must be one of 'max', 'sum'", "got 'mean'")),
    ],
)
def test_disagreeing(name: str, change: Any, words: tuple[str, ...]) -> None:
    assert_refused(prototype_logits, replaced(BAD, name, change), *words)


def flat(arguments: dict[str, Any]) -> tuple[Any, ...]:
    others = (arguments[name] for name in ("prototypes", "weight", *BASES))
    return (arguments["features"], *arguments["routes"], *others)


@pytest.mark.parametrize(("padding", "base", "reduce"), [(None, False, "max"), (2, True, "sum")])
def test_opcheck_prototype_logits(padding: int | None, base: bool, reduce: str) -> None:
    arguments = example(HAND_MASK, padding=padding, dtype=torch.float32)
    if not base:
        arguments |= dict.fromkeys(BASES)
        arguments["features"] = arguments["features"].t().contiguous().t()
    for name in DIFFERENTIABLE:
        if arguments[name] is not None:
            arguments[name].requires_grad_()
    torch.library.opcheck(torch.ops.artsy.prototype_logits.default, flat(arguments), {"reduce": reduce})


@pytest.mark.parametrize("needs", [[True] + [False] * 6 + [True] * 4, [False] * 7 + [True, False, True, False]])
def test_opcheck_prototype_logits_backward(needs: list[bool]) -> None:
    arguments = example(HAND_MASK, padding=2, dtype=torch.float32)
    backward = torch.ops.artsy.prototype_logits_backward.default
    torch.library.opcheck(backward, (torch.ones(3, 7), *flat(arguments)), {"needs": needs})


@pytest.mark.parametrize("padding", [None, 2])
def test_layout_is_as_announced(padding: int | None) -> None:
    arguments = example(HAND_MASK, padding=padding)
    assert_announced_layout(torch.ops.artsy.prototype_logits, flat(arguments))
    needs = [True] + [False] * 6 + [True] * 4
    gradient = torch.ones(3, 7, dtype=torch.float64)
    assert_announced_layout(torch.ops.artsy.prototype_logits_backward, (gradient, *flat(arguments)), needs=needs)
