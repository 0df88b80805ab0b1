"""stdp beside SpikingJelly, BindsNET, Norse and one product in plain PyTorch (bench/peers/stdp.py).

    pytest bench/ops/stdp.py                           # everything
    pytest bench/ops/stdp.py -k "additive and rate0.1" # one kind of rule, one rate of spikes
    pytest bench/ops/stdp.py -k backward               # gradients beside autograd through plain PyTorch

Ours gets its spikes as bool, the peers as float32: each what it is fastest with. A rule has the peers that compute it:
additive (traces decay exactly or in Euler's form, which costs the same), clamped or soft (the rule looks at the
weights at each step). Peers that form all pairs, a tensor [B, J, I] at each step, are left out where they take seconds.
"""

from collections.abc import Callable
from dataclasses import replace
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor

from artsy_ext.ops import STDPRule, consolidate, reference, stdp, stdp_, stdp_consolidate
from bench.case import OURS, Case, Cost, Work, assert_close, compiled, size
from bench.peers.stdp import DIFFERENTIABLE, RATE, RULES, Peer

SHAPES = {
    "A": {"T": 32, "B": 64, "S": 1, "I": 384, "J": 64},
    "B": {"T": 100, "B": 32, "S": 1, "I": 784, "J": 400},
    "C": {"T": 16, "B": 64, "S": 10, "I": 768, "J": 64},
    "D": {"T": 16, "B": 64, "S": 50, "I": 768, "J": 64},
    "E": {"T": 250, "B": 1, "S": 1, "I": 784, "J": 400},
}
SMALL = {"T": 6, "B": 4, "S": 2, "I": 40, "J": 10}
ON, OFF = 0.6, 0.3


def problem(shape: str, T: int, B: int, S: int, I: int, J: int, rate: float) -> tuple[Tensor, Tensor, Tensor]:
    return torch.rand(S, J, I), torch.rand(T, B, I) < rate, torch.rand(T, B, S, J) < rate


def floor(weight: Tensor, pre: Tensor, post: Tensor) -> Cost:
    """Arrays once; as many additions as the sparse product of post with the traces has, or as the dense one."""
    additions = min(int(post.sum()) * pre.shape[-1], post.numel() * pre.shape[-1])
    return Cost(2 * size(weight) + size(pre, post), additions + 4 * pre.numel())


def columns_agree(weight: Tensor, pre: Tensor, post: Tensor, rule: STDPRule) -> Callable[[Tensor], None]:
    """Compares new weights with the definition, in double precision on a few of the columns: it is slow."""
    columns = slice(0, weight.shape[-1], 97)
    expected, _ = reference.stdp(weight[..., columns].double(), pre[..., columns], post, rule)

    def check(found: Tensor) -> None:
        torch.testing.assert_close(found.double().view_as(weight)[..., columns], expected, rtol=0, atol=1e-5)

    return check


def usable(peer: Peer, sizes: dict[str, Any], rate: float) -> bool:
    if peer.package is not None and find_spec(peer.package) is None:
        return False
    # A tensor [B, J, I] per step: seconds per call, and gigabytes at D.
    return not peer.forms_all_pairs or (rate == 0.1 and sizes["S"] * sizes["B"] < 1000)


def forward(wanted: str, dtype: torch.dtype, rule: str, rate: float, **sizes: Any) -> Work:
    weight, pre, post = problem(**sizes, rate=rate)
    ours, peers = RULES[rule]
    calls = {OURS: lambda: stdp(weight, pre, post, ours)[0]}
    checks = {OURS: columns_agree(weight, pre, post, ours)}
    for name, peer in peers.items():
        if usable(peer, sizes, rate):
            calls[name] = peer.build(weight.flatten(0, 1), pre.float(), post.flatten(2).float())
            same = peer.rule == ours
            checks[name] = checks[OURS] if same else columns_agree(weight, pre, post, peer.rule)
    return Work(calls, lambda name, found: checks[name](found), floor(weight, pre, post))


def in_place(wanted: str, dtype: torch.dtype, rate: float, **sizes: Any) -> Work:
    weight, pre, post = problem(**sizes, rate=rate)
    rule, peers = RULES["additive"]
    own = weight.clone()
    calls = {
        OURS: lambda: stdp_(own, pre, post, rule)[0],
        "eager": peers["eager"].build(weight.flatten(0, 1), pre.float(), post.flatten(2).float()),
    }
    agree = columns_agree(weight, pre, post, rule)

    def check(name: str, found: Tensor) -> None:
        agree(found)
        own.copy_(weight)

    return Work(calls, check, floor(weight, pre, post))


def with_consolidation(wanted: str, dtype: torch.dtype, rate: float, **sizes: Any) -> Work:
    """Beside stdp, then consolidate: one pass over the weights less."""
    weight, pre, post = problem(**sizes, rate=rate)
    functional = torch.rand_like(weight) < 0.5
    rule, peers = RULES["additive"]
    eager = peers["eager"].build(weight.flatten(0, 1), pre.float(), post.flatten(2).float())

    def strong(new: Tensor) -> tuple[Tensor, Tensor]:
        strength = new.view_as(weight).abs()
        return new, torch.where(functional, strength >= OFF, strength >= ON)

    def two_calls() -> tuple[Tensor, Tensor]:
        new = stdp(weight, pre, post, rule)[0]
        return new, consolidate(new, functional, ON, OFF)

    agree = columns_agree(weight, pre, post, rule)

    def check(name: str, found: tuple[Tensor, Tensor]) -> None:
        agree(found[0])
        assert_close(found[1], strong(found[0])[1], 0)

    cost = floor(weight, pre, post)
    return Work(
        {
            OURS: lambda: stdp_consolidate(weight, functional, pre, post, rule, ON, OFF)[::2],
            "eager": lambda: strong(eager()),
            "stdp, consolidate": two_calls,
        },
        check,
        Cost(cost.bytes + 2 * size(functional), cost.operations + 2 * weight.numel()),
    )


def gradients(wanted: str, dtype: torch.dtype, of: str, rate: float, **sizes: Any) -> Work:
    """of="all": of weight, both amplitudes and both sides' spikes, for surrogate gradients; else without spikes."""
    weight, pre, post = problem(**sizes, rate=rate)
    S = len(weight)
    arriving = torch.randn(weight.shape)
    leaf_of = lambda t: t.clone().requires_grad_()  # noqa: E731

    def called(update: Callable[..., Tensor], spikes: tuple[Tensor, Tensor], dtype: torch.dtype) -> Callable[[], Any]:
        leaves = [weight.to(dtype), *(torch.full((S,), RATE, dtype=dtype) for _ in range(2))]
        if of == "all":
            spikes = spikes[0].to(dtype), spikes[1].to(dtype)
            leaves += spikes
        leaves = [leaf_of(leaf) for leaf in leaves]
        grad = arriving.to(dtype)
        if wanted == "both":
            return lambda: torch.autograd.grad(update(*leaves[:3], *(leaves[3:] or spikes)), leaves, grad)
        new = update(*leaves[:3], *(leaves[3:] or spikes))
        return lambda: torch.autograd.grad(new, leaves, grad, retain_graph=True)

    def with_op(op: Any) -> Callable[..., Tensor]:
        rule = RULES["additive"][0]
        return lambda w, plus, minus, x, y: op(w, x, y, replace(rule, a_plus=plus, a_minus=minus))[0]

    def with_product(product: Any) -> Callable[..., Tensor]:
        # One amplitude for all sub-networks: plain PyTorch has one product then.
        return lambda w, plus, minus, x, y: product(w.flatten(0, 1), x, y.flatten(2), plus[0], minus[0]).view_as(w)

    as_float = pre.float(), post.float()
    peers = {**DIFFERENTIABLE, **compiled("eager matrix", DIFFERENTIABLE["eager matrix"])}
    calls = {name: called(with_product(product), as_float, dtype) for name, product in peers.items()}
    expected = called(with_op(reference.stdp), (pre, post), torch.float64)()

    def check(name: str, found: tuple[Tensor, ...]) -> None:
        # Amplitudes: summed, since PyTorch's one product has one for all.
        sums = [[g.sum() if k in (1, 2) else g for k, g in enumerate(tensors)] for tensors in (found, expected)]
        assert_close(*sums, 1e-3)

    forward, products = floor(weight, pre, post), post.numel() * pre.shape[-1]
    spikes = 4 * (pre.numel() + post.numel()) if of == "all" else 0
    backward = Cost(2 * size(weight) + size(pre, post) + spikes, 4 * products if of == "all" else 2 * products)
    if wanted == "both":
        backward = Cost(*(sum(parts) for parts in zip(forward, backward, strict=True)))
    return Work({OURS: called(with_op(stdp), (pre, post), dtype), **calls}, check, backward)


def cases() -> list[Case]:
    found = []
    for shape, sizes in SHAPES.items():
        named = {"shape": shape, **sizes}
        for rule in RULES:
            for rate in (0.02, 0.1, 0.3) if rule == "additive" else (0.1,):
                headline = (shape, rule) in (("A", "clamped"), ("A", "soft"), ("C", "additive"))
                given = {"rule": rule, "rate": rate, **named}
                found.append(Case("stdp", forward, given, headline=headline, small=SMALL, rounds=15))
        if shape != "E":
            for of in ("all", "amplitudes"):
                for wanted in ("backward", "both"):
                    given = {"of": of, "rate": 0.1, **named}
                    headline = (shape, of) == ("A", "all")
                    found.append(Case("stdp", gradients, given, wanted, headline=headline, small=SMALL, rounds=15))
        for op, build in (("stdp_", in_place), ("stdp_consolidate", with_consolidation)):
            given = {"rate": 0.1, **named}
            found.append(Case(op, build, given, headline=shape == "C", small=SMALL, rounds=15))
    return found


CASES = cases()
