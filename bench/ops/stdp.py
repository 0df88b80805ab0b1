"""stdp beside SpikingJelly, BindsNET, Norse and one product in plain PyTorch (bench/peers/stdp.py).

    pytest bench/ops/stdp.py                           # everything
    pytest bench/ops/stdp.py -k "eager and 0.1"        # one peer, one rate of spikes
    pytest bench/ops/stdp.py -k scaling                # all threads against one; read the column of wall times

Ours gets its spikes as bool, the peers as float32: each what it is fastest with. Stepwise rules look at the weights at
each step (clamped, or soft bounds).
"""

from dataclasses import dataclass
from typing import Any

import pytest
import torch
from peers.stdp import ADDITIVE, STEPWISE, Peer
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
