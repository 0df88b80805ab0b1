"""STDP as its users run it today: SpikingJelly, BindsNET and Norse, and a fair version in plain PyTorch.

Every peer gets the spikes and weights in the layout and dtype that it is fastest with, made before the clock starts:
float spikes [T, B, I] and [T, B, J], J the neurons of all sub-networks side by side. What is timed is a call: all T
steps, traces included, from zero traces and a copy of the weights. It returns the weights [J, I].
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor

from artsy_ext.ops import STDPRule

TAU = 20.0
RATE = 1e-3
Train = Callable[[], Tensor]


@dataclass(frozen=True)
class Peer:
    """A peer, the rule of ours that does what it does, and its callable for weights and spikes."""

    rule: STDPRule
    build: Callable[[Tensor, Tensor, Tensor], Train]
    rounds: int = 15


def _decayed(spikes: Tensor, out: Tensor, decay: float, gain: float) -> None:
    """The traces of all steps into out: one operation per step."""
    torch.mul(spikes, gain, out=out)
    for t in range(1, len(spikes)):
        out[t].add_(out[t - 1], alpha=decay)


def eager(weight: Tensor, pre: Tensor, post: Tensor) -> Train:
    """One product over all steps and both terms, K = 2·T·B; its buffers are allocated once."""
    decay = math.exp(-1 / TAU)
    T, B, J = post.shape
    left, right = torch.empty(2, T, B, J), torch.empty(2, T, B, pre.shape[-1])

    def train() -> Tensor:
        left[0], right[1] = post, pre
        _decayed(post, left[1], decay, -RATE)
        _decayed(pre, right[0], decay, RATE)
        return torch.addmm(weight, left.view(-1, J).t(), right.view(-1, pre.shape[-1]))

    return train


def eager_loop(weight: Tensor, pre: Tensor, post: Tensor, a_plus: Tensor, a_minus: Tensor) -> Tensor:
    """For autograd: one product post·Z; Z is made of decayed sums, one operation per step."""
    decay = math.exp(-1 / TAU)

    def decayed(spikes: Tensor) -> Tensor:
        sums = [spikes[0]]
        for spike in spikes[1:]:
            sums.append(spike + decay * sums[-1])
        return torch.stack(sums)

    Z = a_plus * decayed(pre) - a_minus * decayed(pre.flip(0)).flip(0)
    return torch.addmm(weight, post.flatten(0, 1).t(), Z.flatten(0, 1))


def eager_matrix(weight: Tensor, pre: Tensor, post: Tensor, a_plus: Tensor, a_minus: Tensor) -> Tensor:
    """The same with the decayed sums of both directions as one product with a matrix [T, T]."""
    T = len(pre)
    gap = torch.arange(T)[:, None] - torch.arange(T)
    earlier = torch.where(gap >= 0, torch.exp(-gap.clamp(min=0) / TAU), 0.0)
    Z = (a_plus * earlier - a_minus * earlier.t()) @ pre.flatten(1)
    return torch.addmm(weight, post.flatten(0, 1).t(), Z.view(-1, pre.shape[-1]))


def spikingjelly(weight: Tensor, pre: Tensor, post: Tensor) -> Train:
    """Its step function with constant weight factors."""
    learning = pytest.importorskip("spikingjelly.activation_based.functional.learning", reason=_missing("spikingjelly"))
    factor = lambda w: RATE  # noqa: E731

    def train() -> Tensor:
        change = torch.zeros_like(weight)
        trace = torch.zeros_like(pre[0]), torch.zeros_like(post[0])
        for t in range(len(pre)):
            step, trace = learning.stdp_linear_step(
                pre[t], post[t], trace, weight, tau_pre=TAU, tau_post=TAU, f_pre=factor, f_post=factor
            )
            change += step
        return weight + change

    return train


def bindsnet(rule: str, **bounds: float) -> Callable[[Tensor, Tensor, Tensor], Train]:
    """Its connection between two layers that are given their spikes; PostPre takes its fused `addmm_` path."""

    def build(weight: Tensor, pre: Tensor, post: Tensor) -> Train:
        network = pytest.importorskip("bindsnet.network", reason=_missing("bindsnet"))
        learning = pytest.importorskip("bindsnet.learning", reason=_missing("bindsnet"))
        from bindsnet.network.nodes import Input
        from bindsnet.network.topology import Connection

        nodes: Any = {"traces": True, "traces_additive": True, "tc_trace": TAU}
        source, target = Input(n=pre.shape[-1], **nodes), Input(n=post.shape[-1], **nodes)
        transposed = weight.t().contiguous()
        connection = Connection(
            source,
            target,
            w=transposed.clone(),
            update_rule=getattr(learning, rule),
            nu=(RATE, RATE),
            reduction=torch.sum,
            **bounds,
        )
        net = network.Network(dt=1.0, batch_size=pre.shape[1])
        net.add_layer(source, "source")
        net.add_layer(target, "target")
        net.add_connection(connection, "source", "target")

        def train() -> Tensor:
            connection.w.data.copy_(transposed)
            source.reset_state_variables()
            target.reset_state_variables()
            with torch.no_grad():
                for t in range(len(pre)):
                    source.forward(pre[t])
                    target.forward(post[t])
                    connection.update(learning=True)
            return connection.w.data.t()

        return train

    return build


def norse(algorithm: str, hardbound: bool) -> Callable[[Tensor, Tensor, Tensor], Train]:
    """Its step function; time constants of the rule in units of the step."""

    def build(weight: Tensor, pre: Tensor, post: Tensor) -> Train:
        stdp = pytest.importorskip("norse.torch.functional.stdp", reason=_missing("norse"))
        tau_inv = torch.tensor(1 / TAU)
        # Norse scales what a spike adds to its trace by dt/τ.
        parameters = stdp.STDPParameters(
            a_pre=torch.tensor(TAU),
            a_post=torch.tensor(TAU),
            tau_pre_inv=tau_inv,
            tau_post_inv=tau_inv,
            eta_plus=RATE,
            eta_minus=RATE,
            stdp_algorithm=algorithm,
            hardbound=hardbound,
        )

        def train() -> Tensor:
            w, state = weight, stdp.STDPState(torch.zeros_like(pre[0]), torch.zeros_like(post[0]))
            for t in range(len(pre)):
                w, state = stdp.stdp_step_linear(pre[t], post[t], w, state, parameters, dt=1.0)
            return w

        return train

    return build


def _missing(package: str) -> str:
    return f"needs {package}; pip install -e '.[peers]'"


_EXACT = {"decay_pre": math.exp(-1 / TAU), "decay_post": math.exp(-1 / TAU), "a_plus": RATE, "a_minus": RATE}
_EULER = {"decay_pre": 1 - 1 / TAU, "decay_post": 1 - 1 / TAU, "a_plus": RATE, "a_minus": RATE}
_BOUNDS = {"w_min": 0.0, "w_max": 1.0, "clamp": "step"}
_SOFT = {**_BOUNDS, "dependence": "soft", "evaluate": "step"}

ADDITIVE = {
    "eager": Peer(STDPRule(**_EXACT), eager),
    "spikingjelly": Peer(STDPRule(**_EULER), spikingjelly, rounds=3),
    "bindsnet": Peer(STDPRule(**_EXACT), bindsnet("PostPre")),
    "norse": Peer(STDPRule(**_EULER), norse("additive", hardbound=False)),
}
# New weights [J, I] of the first rule above, for autograd to differentiate.
DIFFERENTIABLE = {"eager-loop": eager_loop, "eager-matrix": eager_matrix}
# Rules that look at the weights at each step.
STEPWISE = {
    "bindsnet-clamped": Peer(STDPRule(**_EXACT, **_BOUNDS), bindsnet("PostPre", wmin=0.0, wmax=1.0)),
    "bindsnet-soft": Peer(
        STDPRule(**_EXACT, **_SOFT), bindsnet("WeightDependentPostPre", wmin=0.0, wmax=1.0), rounds=3
    ),
    "norse-clamped": Peer(STDPRule(**_EULER, **_BOUNDS), norse("additive", hardbound=True)),
    "norse-soft": Peer(STDPRule(**_EULER, **_SOFT), norse("multiplicative_relu", hardbound=True)),
}
