"""Plots STDP windows: how much one pair of spikes changes a weight, over the time between them.

python docs/examples/stdp_window.py [stdp_window.png]
"""

import sys
from dataclasses import replace

import torch
from torch import Tensor

from artsy_ext.ops import STDPRule, stdp

DT = 1.0  # ms
TAU_PRE, TAU_POST = 20.0, 30.0  # ms
PAIR = STDPRule.from_time_constants(TAU_PRE, TAU_POST, DT, a_plus=0.010, a_minus=0.006, timing="exclusive")
SOFT = replace(PAIR, dependence="soft", w_min=0.0, w_max=1.0)


def window(rule: STDPRule, lags: Tensor, weight: float = 0.5) -> Tensor:
    """Δw of a synapse whose post-synaptic neuron fires `lags` steps after the pre-synaptic one: [n] int64 -> [n].

    Every lag is a sub-network of one synapse, so that one call has them all.
    """
    n, reach = len(lags), int(lags.abs().max())
    pre = torch.zeros(2 * reach + 1, 1, n, 1, dtype=torch.bool)
    post = torch.zeros_like(pre)
    pre[reach] = True
    post[reach + lags, 0, torch.arange(n)] = True
    before = torch.full((n, 1, 1), weight, dtype=torch.float64)
    return (stdp(before, pre, post, rule)[0] - before).flatten()


def analytic(rule: STDPRule, lags: Tensor, weight: float = 0.5) -> Tensor:
    """a_plus · f₊ · exp(−Δt/τ_pre) after the pre-synaptic spike, −a_minus · f₋ · exp(Δt/τ_post) before it."""
    f_plus, f_minus = (rule.w_max - weight, weight - rule.w_min) if rule.dependence == "soft" else (1.0, 1.0)
    t = lags * DT
    potentiation = rule.a_plus * f_plus * torch.exp(-t / TAU_PRE)
    depression = -rule.a_minus * f_minus * torch.exp(t / TAU_POST)
    return torch.where(t > 0, potentiation, torch.where(t < 0, depression, 0.0))


def main(path: str = "stdp_window.png") -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3.4), layout="constrained")
    left, right = figure.subplots(1, 2, sharey=True)
    lags = torch.arange(-100, 101)
    left.plot(lags * DT, analytic(PAIR, lags), color="0.7", linewidth=4, label="analytic")
    left.plot(lags * DT, window(PAIR, lags), ".", markersize=2, color="black", label="stdp")
    left.set_title("pair rule")
    for weight in (0.1, 0.5, 0.9):
        right.plot(lags * DT, window(SOFT, lags, weight), label=f"w = {weight}")
    right.set_title("soft bounds in [0, 1]")
    for axes in (left, right):
        axes.axhline(0, color="0.85", zorder=0)
        axes.set_xlabel("Δt = t_post − t_pre (ms)")
        axes.legend(frameon=False)
    left.set_ylabel("Δw")
    figure.savefig(path, dpi=120)


if __name__ == "__main__":
    main(*sys.argv[1:])
