"""What the tests of the routed ops share: masks of every kind of routing, plans, and arguments gone wrong."""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import properties
import pytest
import torch
from torch import Tensor
from torch._subclasses import FakeTensorMode

from artsy_ext.ops import Routes, plan_routes

DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
EMPTY_MASKS = ((0, 4), (4, 0), (0, 0))

# None: what a kernel chooses by itself.
every_isa = pytest.mark.parametrize("isa", [None, *filter(properties.supported, properties.ISAS)], indirect=True)

# The mask of all hand-made tables: sample 0 has sub-networks 0 and 2, sample 1 none, sample 2 has 0 and 1.
HAND_MASK = torch.tensor([[1, 0, 1, 0], [0, 0, 0, 0], [1, 1, 0, 0]], dtype=torch.bool)


def _masks() -> Iterator[tuple[str, Tensor]]:
    generator = torch.Generator().manual_seed(5)
    uniform = torch.rand(63, 9, generator=generator)
    popularity = 1 / torch.arange(1, 14)
    yield "uniform", uniform < 0.25
    yield "zipf", torch.rand(63, 13, generator=generator) < popularity
    yield "identical", (torch.arange(6) == 4).expand(63, 6)
    yield "one-hot", torch.nn.functional.one_hot(torch.randint(17, (63,), generator=generator), 17).bool()
    yield "silent", torch.zeros(63, 7, dtype=torch.bool)
    yield "all", torch.ones(7, 63, dtype=torch.bool)
    for B, S in ((1, 1), (1, 63), (63, 1), *EMPTY_MASKS):
        yield f"{B}x{S}", torch.ones(B, S, dtype=torch.bool)


MASKS = dict(_masks())
any_mask = pytest.mark.parametrize("mask", MASKS.values(), ids=MASKS.keys())


def pairs_of(mask: Tensor) -> list[tuple[int, int]]:
    """The functional (sample, sub-network) pairs, sorted by sub-network, then sample."""
    B, S = mask.shape
    rows = mask.tolist()
    return [(b, s) for s in range(S) for b in range(B) if rows[b][s]]


def plan(mask: Tensor, padding: int | None) -> Routes:
    """Without a capacity (None), or with room for `padding` more pairs."""
    return plan_routes(mask, capacity=None if padding is None else len(pairs_of(mask)) + padding)


def overflowed(mask: Tensor) -> Routes:
    """What a GPU plans where the capacity is one pair too small."""
    routes = plan_routes(mask)
    return routes._replace(
        sample=routes.sample[:-1],
        subnetwork=routes.subnetwork[:-1],
        order=routes.order[routes.order < len(routes.order) - 1],
        overflow=torch.tensor(True),
    )


def assert_promises(op: Callable[..., Any], arguments: dict[str, Any]) -> None:
    """Pure, the same bits twice, and the same from any layout of memory."""
    properties.assert_pure(op, **arguments)
    properties.assert_any_layout(op, **arguments)


def replaced(arguments: dict[str, Any], name: str, change: Callable[[Any], Any]) -> dict[str, Any]:
    """The arguments with one changed; "routes.order" reaches into the plan."""
    name, _, field = name.partition(".")
    value = arguments[name]
    return arguments | {name: value._replace(**{field: change(getattr(value, field))}) if field else change(value)}


def assert_refused(op: Callable[..., Any], arguments: dict[str, Any], *words: str) -> None:
    """One line that names the op and holds the words: the argument, what was expected, what came."""
    for word in words:
        properties.assert_refused(op.__name__, word, lambda: op(**arguments))


def cast(arguments: dict[str, Any], dtype: torch.dtype) -> dict[str, Any]:
    """Every floating tensor in another type; the plan as it is."""
    floating = {n: v for n, v in arguments.items() if isinstance(v, Tensor) and v.is_floating_point()}
    return arguments | {name: value.to(dtype) for name, value in floating.items()}


def wrong_tensors(arguments: dict[str, Any], first: str) -> list[Any]:
    """Every tensor argument with the wrong rank, dtype and device, as parameters (name, change, words).

    `first` decides device and dtype for the others, so one of them is named where its own is wrong.
    """
    names, cases = [], []
    for name, value in arguments.items():
        if isinstance(value, Routes):
            names += [(f"routes.{field}", tensor) for field, tensor in value._asdict().items()]
        elif isinstance(value, Tensor):
            names.append((name, value))
    for name, tensor in names:
        number = torch.float64 if tensor.is_floating_point() else torch.int32
        cases.append((f"rank of {name}", name, lambda t: t[..., None, None], f"{name} must be "))
        if name != first:
            cases.append((f"dtype of {name}", name, lambda t, d=number: t.to(d), f"{name} must be "))
            cases.append((f"device of {name}", name, lambda t: t.to("meta"), f"{name} must be on cpu"))
    cases.append((f"device of {first}", first, lambda t: t.to("meta"), "must be on meta"))
    cases.append((f"dtype of {first}", first, lambda t: t.to(torch.int64), f"{first} must be float32"))
    return [pytest.param(*case, id=label) for label, *case in cases]


def assert_announced_layout(op: Any, arguments: Sequence[Any], **keywords: Any) -> None:
    """Results lie in memory as the fake implementation says: inductor's programs address them by its strides."""
    for layout in properties.LAYOUTS:
        given = properties.laid_out(list(arguments), layout)
        with FakeTensorMode() as mode:
            fake = op(*(mode.from_tensor(a) if isinstance(a, Tensor) else a for a in given), **keywords)
        for found, announced in zip(properties.tensors(op(*given, **keywords)), properties.tensors(fake), strict=True):
            assert (found.shape, found.stride(), found.dtype) == (announced.shape, announced.stride(), announced.dtype)


def with_gradients(op: Callable[..., Tensor], arguments: dict[str, Any], names: Sequence[str]) -> list[Tensor]:
    """The result, and the gradients of the named arguments for a gradient of random numbers, the same at each call."""
    leaves = {name: arguments[name].detach().requires_grad_() for name in names}
    result = op(**(arguments | leaves))
    ways = torch.randn(result.shape, generator=torch.Generator().manual_seed(7)).to(result.dtype)
    return [result.detach(), *torch.autograd.grad(result, list(leaves.values()), ways.masked_fill(result.isinf(), 0))]


def assert_near(found: Sequence[Tensor], exact: Sequence[Tensor], roundings: float) -> None:
    """Within so many roundings of the largest value; computed in fp64, `exact` has no errors of its own."""
    for ours, expected in zip(found, exact, strict=True):
        assert torch.equal(ours.isinf(), expected.isinf())
        ours, expected = ours.double().nan_to_num(neginf=0), expected.nan_to_num(neginf=0)
        error, largest = (ours - expected).abs(), expected.abs().amax() if expected.numel() else torch.tensor(0.0)
        assert (error <= roundings * largest).all(), f"{error.max()} of {largest}"


def assert_same_on_every_thread_count(call: Callable[[], Any]) -> None:
    """The same bits from one thread and from several, and where several Python threads call at once."""
    expected = call()
    torch.set_num_threads(2)
    try:
        for _ in range(3):
            properties.assert_same_bits(call(), expected)
    finally:
        torch.set_num_threads(1)
    with ThreadPoolExecutor(4) as pool:
        for found in pool.map(lambda _: call(), range(8)):
            properties.assert_same_bits(found, expected)


def gradcheck(op: Callable[..., Tensor], arguments: dict[str, Any], names: Sequence[str]) -> None:
    """torch.autograd.gradcheck in the named arguments; −inf (no answer) has no numerical gradient and counts as 0."""
    leaves = [arguments[name].detach().clone().requires_grad_() for name in names]
    assert torch.autograd.gradcheck(
        lambda *values: op(**(arguments | dict(zip(names, values, strict=True)))).nan_to_num(neginf=0), leaves
    )
