"""What the files in bench/ops/ register: cases, each with ours, its peers, what is right, and the least it must cost.

`artsy bench` (bench/run.py) and pytest (bench/conftest.py) measure the same cases.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map

OURS = "ours"
PASSES = ("forward", "backward", "both")
"""both is a training step's share: forward with what autograd keeps, then backward."""
Call = Callable[[], Any]


class Cost(NamedTuple):
    """The least that has to be done: bytes, every array once, and arithmetic operations."""

    bytes: int
    operations: int = 0


@dataclass(frozen=True)
class Work:
    """A case, ready to be called."""

    candidates: dict[str, Call]
    """Ours and the peers: what a user would run instead, at its best."""
    check: Callable[[str, Any], None]
    """Of a candidate's name and its result; raises AssertionError where the result is wrong."""
    cost: Cost
    limits: dict[str, Call] = field(default_factory=dict)
    """No peers: calls of as many operations that compute something else."""


Build = Callable[..., Work]


@dataclass(frozen=True)
class Case:
    """build: makes the work, from the pass as `wanted`, `dtype` and the sizes, with fresh random numbers."""

    op: str
    build: Build
    sizes: Mapping[str, Any]
    wanted: str = "forward"
    dtype: torch.dtype = torch.float32
    headline: bool = False
    """Part of `artsy bench --quick`; without --quick beside compiled peers as well."""
    small: Mapping[str, Any] = field(default_factory=dict)
    """Sizes for a run that only asks whether it works."""
    rounds: int = 31

    @property
    def label(self) -> str:
        """The sizes in short: uniform S20 N197."""
        return " ".join(v if isinstance(v, str) else f"{k}{v:g}" for k, v in self.sizes.items())

    @property
    def dtype_name(self) -> str:
        return str(self.dtype).removeprefix("torch.")

    def __str__(self) -> str:
        return "-".join([self.op, *self.label.split(), self.dtype_name, self.wanted])

    def work(self, *, small: bool = False, compiled: bool = False) -> Work:
        """compiled: with the peers that PyTorch compiles, where there are such; each takes seconds to compile."""
        torch.manual_seed(0)
        made = self.build(wanted=self.wanted, dtype=self.dtype, **{**self.sizes, **(self.small if small else {})})
        if compiled:
            torch.compiler.reset()  # else it stops compiling after a few shapes
            return made
        return Work({n: c for n, c in made.candidates.items() if n not in COMPILED}, made.check, made.cost, made.limits)


COMPILED: set[str] = set()
"""Names of candidates that PyTorch compiles."""


def compiled(name: str, function: Callable[..., Any]) -> dict[str, Callable[..., Any]]:
    """The eager peer `name` as a peer that `torch.compile` compiles for the case's shapes."""
    COMPILED.add(f"{name}, compiled")
    ready: list[Callable[..., Any]] = []

    def call(*inputs: Any) -> Any:
        if not ready:  # loading the compiler takes seconds, and most runs do without
            ready.append(torch.compile(function, dynamic=False))
        return ready[0](*inputs)

    return {f"{name}, compiled": call}


def work(
    wanted: str,
    functions: Mapping[str, Callable[..., Any]],
    definition: Callable[..., Any],
    inputs: Sequence[Any],
    *,
    cost: Mapping[str, Cost],
    tolerance: float,
    differentiate: Sequence[int] = (),
) -> Work:
    """The work of functions that are called alike and give alike results.

    functions: ours under OURS, and the peers.
    definition: is given the inputs in double precision; nobody may be further from it than tolerance, in norm.
    differentiate: positions of the inputs whose gradients a backward pass computes.
    cost: of forward and, where that is wanted, backward.
    """
    calls = _calls(wanted, functions, inputs, differentiate)
    exact = _calls(wanted, {"": definition}, [_double(i) for i in inputs], differentiate)[""]()
    paid = cost[wanted] if wanted in cost else Cost(*(sum(parts) for parts in zip(*cost.values(), strict=True)))
    return Work(calls, lambda name, found: assert_close(found, exact, tolerance), paid)


def _calls(
    wanted: str, functions: Mapping[str, Callable[..., Any]], inputs: Sequence[Any], differentiate: Sequence[int]
) -> dict[str, Call]:
    if wanted == "forward":
        return {name: partial(function, *inputs) for name, function in functions.items()}
    leaves = {at: inputs[at].detach().clone().requires_grad_() for at in differentiate}
    inputs, wrt = [leaves.get(at, value) for at, value in enumerate(inputs)], list(leaves.values())
    results = {name: function(*inputs) for name, function in functions.items()}
    first = next(iter(results.values()))
    torch.manual_seed(1)
    arriving = torch.randn(first.shape, dtype=torch.float32).to(first.dtype).masked_fill_(first.isinf(), 0)
    grad = torch.autograd.grad
    if wanted == "backward":
        return {name: partial(grad, y, wrt, arriving, retain_graph=True) for name, y in results.items()}
    return {name: lambda f=f: grad(f(*inputs), wrt, arriving) for name, f in functions.items()}


def _double(value: Any) -> Any:
    return tree_map(lambda v: v.double() if isinstance(v, Tensor) and v.is_floating_point() else v, value)


def assert_close(found: Any, expected: Any, tolerance: float) -> None:
    """Raises AssertionError unless each tensor of found is that of expected, floating ones within tolerance in norm."""
    for a, e in zip(tree_leaves(found), tree_leaves(expected), strict=True):
        assert a.shape == e.shape, f"expected shape {list(e.shape)}, got {list(a.shape)}"
        if not e.is_floating_point():
            assert torch.equal(a, e), f"{int((a != e).sum())} of {e.numel()} elements differ"
            continue
        a, e = a.double(), e.double()
        infinite = e.isinf()
        assert torch.equal(a[infinite], e[infinite]), "where infinity is expected, there are other numbers"
        error, limit = (a - e).masked_fill(infinite, 0).norm(), tolerance * e.masked_fill(infinite, 0).norm()
        assert error <= limit, f"error {error:.3g}, expected at most {limit:.3g}"  # NaN is no less than the limit


def size(*tensors: Any) -> int:
    """Bytes of all tensors in these, dataclasses and tuples of tensors too."""
    return sum(t.numel() * t.element_size() for t in tree_leaves(tensors) if isinstance(t, Tensor))
