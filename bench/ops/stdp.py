"""stdp beside SpikingJelly, BindsNET, Norse and one product in plain PyTorch (bench/peers/stdp.py).

    pytest bench/ops/stdp.py                           # everything
    pytest bench/ops/stdp.py -k "eager and 0.1"        # one peer, one rate of spikes
    pytest bench/ops/stdp.py -k backward               # gradients beside autograd through plain PyTorch
    pytest bench/ops/stdp.py -k scaling                # all threads against one; read the column of wall times

Ours gets its spikes as bool, the peers as float32: each what it is fastest with. Stepwise rules look at the weights at
each step (clamped, or soft bounds).
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from peers.stdp import ADDITIVE, DIFFERENTIABLE, RATE, STEPWISE, Peer
from torch import Tensor

from artsy_ext.ops import STDPRule, reference, stdp


@dataclass(frozen=True)
class Case:
    T: int
    B: int
    S: int
    I: int
    J: int


CASES = {
    "A": Case(T=32, B=64, S=1, I=384, J=64),
    "B": Case(T=100, B=32, S=1, I=784, J=400),
    "C": Case(T=16, B=64, S=10, I=768, J=64),
    "D": Case(T=16, B=64, S=50, I=768, J=64),
    "E": Case(T=250, B=1, S=1, I=784, J=400),
}
# A tensor [B, J, I] per step: seconds per call, and gigabytes at D.
FORMS_ALL_PAIRS = ("spikingjelly", "bindsnet-soft")


SMALL = Case(T=6, B=4, S=2, I=40, J=10)

rates = pytest.mark.parametrize("rate", [0.02, 0.1, 0.3])
cases = pytest.mark.parametrize("name", CASES)


def problem(case: Case, rate: float) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    weight = torch.rand(case.S, case.J, case.I, generator=generator)
    pre = torch.rand(case.T, case.B, case.I, generator=generator) < rate
    post = torch.rand(case.T, case.B, case.S, case.J, generator=generator) < rate
    return weight, pre, post


def assert_right(found: Tensor, weight: Tensor, pre: Tensor, post: Tensor, rule: STDPRule) -> None:
    """Against the definition, in double precision on a few of the columns: it is slow."""
    columns = slice(0, weight.shape[-1], 97)
    expected, _ = reference.stdp(weight[..., columns].double(), pre[..., columns], post, rule)
    torch.testing.assert_close(found.double().view_as(weight)[..., columns], expected, rtol=0, atol=1e-5)


def compare(interleaved: Any, case: Case, rate: float, name: str, peer: Peer) -> None:
    weight, pre, post = problem(case, rate)
    train = peer.build(weight.flatten(0, 1), pre.float(), post.flatten(2).float())
    assert_right(stdp(weight, pre, post, peer.rule)[0], weight, pre, post, peer.rule)
    assert_right(train(), weight, pre, post, peer.rule)
    interleaved(lambda: stdp(weight, pre, post, peer.rule), {name: train}, rounds=peer.rounds)


@rates
@cases
@pytest.mark.parametrize("peer", ADDITIVE)
def test_ratio(interleaved: Any, untimed: bool, name: str, rate: float, threads: int, peer: str) -> None:
    if peer in FORMS_ALL_PAIRS and (name == "D" or rate != 0.1 or threads > 1):
        pytest.skip(f"{peer} takes too long to be measured everywhere")
    compare(interleaved, SMALL if untimed else CASES[name], rate, peer, ADDITIVE[peer])


@cases
@pytest.mark.parametrize("peer", STEPWISE)
def test_ratio_stepwise(interleaved: Any, untimed: bool, name: str, peer: str) -> None:
    if peer in FORMS_ALL_PAIRS and name == "D":
        pytest.skip(f"{peer} takes too long to be measured everywhere")
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    compare(interleaved, SMALL if untimed else CASES[name], 0.1, peer, STEPWISE[peer])
    torch.set_num_threads(before)


# "all": of weight, both amplitudes and both sides' spikes, for surrogate gradients. "amplitudes": without the spikes'.
@pytest.mark.parametrize("asked", ["all", "amplitudes"])
@pytest.mark.parametrize("name", ["A", "B", "C", "D"])
def test_ratio_backward(interleaved: Any, untimed: bool, name: str, asked: str) -> None:
    """The backward pass alone, additive rule, 10 % spikes, one thread."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    case = SMALL if untimed else CASES[name]
    weight, pre, post = problem(case, 0.1)
    arriving = torch.randn(weight.shape, generator=torch.Generator().manual_seed(1))

    def backward(update: Callable[..., Tensor], spikes: tuple[Tensor, Tensor], dtype: torch.dtype) -> Any:
        leaves = [weight.to(dtype), *(torch.full((case.S,), RATE, dtype=dtype) for _ in range(2))]
        if asked == "all":
            spikes = spikes[0].to(dtype), spikes[1].to(dtype)
            leaves += spikes
        leaves = [leaf.clone().requires_grad_() for leaf in leaves]
        new, grad = update(*leaves[:3], *(leaves[3:] or spikes)), arriving.to(dtype)
        return lambda: torch.autograd.grad(new, leaves, grad, retain_graph=True)

    def with_op(op: Any) -> Callable[..., Tensor]:
        rule = ADDITIVE["eager"].rule
        return lambda w, plus, minus, x, y: op(w, x, y, replace(rule, a_plus=plus, a_minus=minus))[0]

    def with_product(product: Any) -> Callable[..., Tensor]:
        # One amplitude for all sub-networks: plain PyTorch has one product then.
        return lambda w, plus, minus, x, y: product(w.flatten(0, 1), x, y.flatten(2), plus[0], minus[0]).view_as(w)

    ours = backward(with_op(stdp), (pre, post), torch.float32)
    spikes = pre.float(), post.float()
    peers = {n: backward(with_product(p), spikes, torch.float32) for n, p in DIFFERENTIABLE.items()}
    expected = backward(with_op(reference.stdp), (pre, post), torch.float64)()
    for found in (ours(), *(peer() for peer in peers.values())):
        for k, (a, e) in enumerate(zip(found, expected, strict=True)):
            a, e = (a.sum(), e.sum()) if k in (1, 2) else (a, e)  # amplitudes
            torch.testing.assert_close(a.double(), e, rtol=1e-3, atol=1e-4 * float(e.abs().max()))
    interleaved(ours, peers, rounds=15)
    torch.set_num_threads(before)


@cases
@pytest.mark.parametrize("rule", ["additive", "clamped"])
def test_scaling(interleaved: Any, untimed: bool, name: str, rule: str) -> None:
    """All threads beside one. CPU time is the work of all of them; the ratio of wall times is the gain."""
    all_threads = torch.get_num_threads()
    if all_threads == 1:
        pytest.skip("one thread")
    weight, pre, post = problem(SMALL if untimed else CASES[name], 0.1)
    which = {"additive": ADDITIVE["bindsnet"], "clamped": STEPWISE["bindsnet-clamped"]}[rule].rule

    def train(threads: int) -> None:
        torch.set_num_threads(threads)
        stdp(weight, pre, post, which)

    interleaved(lambda: train(all_threads), {"1 thread": lambda: train(1)})
    torch.set_num_threads(all_threads)
