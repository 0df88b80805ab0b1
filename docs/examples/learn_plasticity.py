"""Learns how plastic a small network is: its a_plus and a_minus, by gradient descent through whole lifetimes of STDP.

python docs/examples/learn_plasticity.py

A lifetime: K patterns come one after the other, each with the output that belongs to it. A pattern's inputs fire in
volleys, its outputs a step later, and two steps after these a distractor: the inputs of another pattern. The synapses
start at 0 and change by STDP alone. Then the network sees each pattern again and has to recall its output. What
precedes an output explains it, what follows does not; the rule does not know, for both amplitudes start at 0. The
gradient of the recall's error, through all steps of STDP, tells it.
"""

from dataclasses import replace

import torch
from torch import Tensor

from artsy_ext.ops import STDPRule, stdp

PATTERNS, INPUTS, OUTPUTS = 4, 40, 10  # K, I, J
VOLLEYS, PERIOD = 6, 5  # per pattern; steps from one to the next
RULE = STDPRule.from_time_constants(tau_pre=3.0, tau_post=3.0, timing="exclusive", reduction="mean")


def lifetimes(count: int, seed: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Patterns [S, K, I] and outputs [S, K, J], 0 or 1, and the spikes of the lifetimes, [T, 1, S, I] and [T, 1, S, J].

    Every lifetime is a sub-network with patterns of its own. One spike in five is missing.
    """
    generator = torch.Generator().manual_seed(seed)

    def fires(neurons: Tensor) -> Tensor:
        return neurons * (torch.rand(neurons.shape, generator=generator) < 0.8)

    group = torch.rand(count, INPUTS, generator=generator).argsort(-1) % PATTERNS  # each input in one pattern
    pattern = torch.nn.functional.one_hot(group, PATTERNS).mT.double()
    output = (torch.rand(count, PATTERNS, OUTPUTS, generator=generator) < 0.5).double()
    pre = torch.zeros(PATTERNS, VOLLEYS, PERIOD, count, INPUTS, dtype=torch.float64)
    post = torch.zeros(PATTERNS, VOLLEYS, PERIOD, count, OUTPUTS, dtype=torch.float64)
    for k in range(PATTERNS):
        for volley in range(VOLLEYS):
            other = (k + torch.randint(1, PATTERNS, (count,), generator=generator)) % PATTERNS
            pre[k, volley, 0] = fires(pattern[:, k])
            post[k, volley, 1] = fires(output[:, k])
            pre[k, volley, 3] = fires(pattern[torch.arange(count), other])
    return pattern, output, pre.flatten(0, 2)[:, None].bool(), post.flatten(0, 2)[:, None].bool()


def recall_error(amplitudes: Tensor, count: int, seed: int) -> Tensor:
    """amplitudes [2], a_plus and a_minus -> mean squared error of what `count` lifetimes recall."""
    pattern, output, pre, post = lifetimes(count, seed)
    a_plus, a_minus = amplitudes[:, None].expand(2, count)
    rule = replace(RULE, a_plus=a_plus, a_minus=a_minus)
    weight, _ = stdp(amplitudes.new_zeros(count, OUTPUTS, INPUTS), pre, post, rule)
    recalled = pattern.to(weight) @ weight.mT / (INPUTS // PATTERNS)
    return (recalled - output.to(weight)).square().mean()


def learn() -> tuple[list[float], Tensor]:
    """The loss of each iteration, and a_plus and a_minus after the last."""
    amplitudes = torch.zeros(2, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.Adam([amplitudes], lr=0.03)
    losses = []
    print("iteration    loss   a_plus  a_minus")
    for iteration in range(81):
        loss = recall_error(amplitudes, 16, iteration)
        losses.append(loss.item())
        if iteration % 20 == 0:
            print(f"{iteration:9} {loss:7.4f}  {amplitudes[0]:7.4f}  {amplitudes[1]:7.4f}")
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return losses, amplitudes.detach()


if __name__ == "__main__":
    learn()
