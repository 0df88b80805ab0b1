"""STDP a second time, number by number, and random problems, small ones and of any size.

`scalar_stdp` follows the equations in the docstring of `artsy_ext.ops.stdp` with Python's floats and loops and shares
no code with the package.
"""

import math
from dataclasses import dataclass, replace
from itertools import product
from typing import Any

import torch
from hypothesis import strategies as st
from properties import tensors
from torch import Tensor

from artsy_ext.ops import STDPRule, Traces, Triplet


def scalar_stdp(
    weight: Tensor,
    pre: Tensor,
    post: Tensor,
    rule: STDPRule,
    *,
    traces: Traces | None = None,
    modulation: Tensor | None = None,
    mask: Tensor | None = None,
) -> tuple[Tensor, Traces]:
    T, B, S, J = post.shape
    I = weight.shape[2]
    shared = pre.dim() == 3
    triplet = rule.triplet or Triplet(0, 0, 0, 0)

    def keyed(tensor: Tensor | None, *sizes: int) -> dict[tuple[int, ...], float]:
        keys = list(product(*map(range, sizes)))
        return dict(zip(keys, [0.0] * len(keys) if tensor is None else map(float, tensor.flatten()), strict=True))

    def amplitude(a: Any, s: int) -> float:
        return float(a[s]) if isinstance(a, Tensor) else a

    def per_subnetwork(trace: Tensor | None) -> Tensor | None:
        return trace[:, None].expand(B, S, I) if trace is not None and shared else trace

    def f(w: float) -> tuple[float, float]:
        match rule.dependence:
            case "proportional":
                return w, w
            case "soft":
                return max(rule.w_max - w, 0) ** rule.exponent, max(w - rule.w_min, 0) ** rule.exponent
            case "hard":
                return float(w < rule.w_max), float(w > rule.w_min)
        return 1.0, 1.0

    def step(trace: dict, key: tuple, spike: float, decay: float, gain: float) -> tuple[float, float]:
        """(the decayed trace, the trace with this step's spike)"""
        decayed = decay * trace[key]
        if rule.pairing == "nearest":
            trace[key] = gain if spike else decayed
        else:
            trace[key] = decayed + gain * spike
        return decayed, trace[key]

    def m(t: int, b: int, s: int) -> float:
        factor = 1.0
        if modulation is not None:
            factor = float(modulation[t, b] if modulation.dim() == 2 else modulation[t, b, s])
        return factor * (1.0 if mask is None else float(mask[b, s]))

    pre_ = keyed(pre if not shared else pre[:, :, None].expand(T, B, S, I), T, B, S, I)
    post_ = keyed(post, T, B, S, J)
    given: Any = traces or (None,) * 5
    x, x_slow = (keyed(per_subnetwork(given[k]), B, S, I) for k in (0, 2))
    y, y_slow = (keyed(given[k], B, S, J) for k in (1, 3))
    e = keyed(given[4], B, S, J, I)
    W = keyed(weight, S, J, I)
    f_call = {synapse: f(w) for synapse, w in W.items()}

    for t in range(T):
        read_x, read_y, read_x_slow, read_y_slow = {}, {}, {}, {}
        inclusive = rule.timing == "inclusive"
        for key in x:
            spike = pre_[(t, *key)]
            read_x[key] = step(x, key, spike, rule.decay_pre, rule.gain_pre)[inclusive]
            read_x_slow[key] = step(x_slow, key, spike, triplet.decay_pre_slow, rule.gain_pre)[0]
        for key in y:
            spike = post_[(t, *key)]
            read_y[key] = step(y, key, spike, rule.decay_post, rule.gain_post)[inclusive]
            read_y_slow[key] = step(y_slow, key, spike, triplet.decay_post_slow, rule.gain_post)[0]
        for s, j, i in W:
            w = (1 - rule.weight_decay) * W[s, j, i]
            f_plus, f_minus = f(w) if rule.evaluate == "step" else f_call[s, j, i]
            change = 0.0
            for b in range(B):
                a_plus = amplitude(rule.a_plus, s) + triplet.a_plus_3 * read_y_slow[b, s, j]
                a_minus = amplitude(rule.a_minus, s) + triplet.a_minus_3 * read_x_slow[b, s, i]
                pair = a_plus * f_plus * post_[t, b, s, j] * (read_x[b, s, i] - rule.x_target)
                pair -= a_minus * f_minus * pre_[t, b, s, i] * read_y[b, s, j]
                if rule.eligibility is not None:
                    before = e[b, s, j, i]
                    e[b, s, j, i] = rule.eligibility * before + pair
                    pair = before if rule.modulation_delay else e[b, s, j, i]
                change += m(t, b, s) * pair
            w += change / B if rule.reduction == "mean" else change
            if rule.clamp == "step":
                w = min(max(w, rule.w_min), rule.w_max)
            W[s, j, i] = w
    if rule.clamp == "end":
        W = {synapse: min(max(w, rule.w_min), rule.w_max) for synapse, w in W.items()}

    def tensor(numbers: dict, *sizes: int) -> Tensor:
        return torch.tensor(list(numbers.values()), dtype=torch.float64).view(sizes)

    def pre_trace(numbers: dict) -> Tensor:
        trace = tensor(numbers, B, S, I)
        return trace[:, 0] if shared else trace

    has_slow, has_eligibility = rule.triplet is not None, rule.eligibility is not None
    return tensor(W, S, J, I), Traces(
        pre_trace(x),
        tensor(y, B, S, J),
        pre_trace(x_slow) if has_slow else None,
        tensor(y_slow, B, S, J) if has_slow else None,
        tensor(e, B, S, J, I) if has_eligibility else None,
    )


@dataclass
class Problem:
    """The arguments of stdp; hypothesis prints the plainest ones it finds on which the two disagree."""

    weight: Tensor
    pre: Tensor
    post: Tensor
    rule: STDPRule
    keywords: dict[str, Any]

    def to(self, dtype: torch.dtype, device: str) -> "Problem":
        """Weights and everything that goes with them in dtype; spikes keep theirs."""

        def move(value: Any) -> Any:
            if isinstance(value, Traces):
                return Traces._make(map(move, value))
            if isinstance(value, Tensor):
                return value.to(device, dtype if value.is_floating_point() else value.dtype)
            return value

        keywords = {name: move(value) for name, value in self.keywords.items()}
        rule = replace(self.rule, a_plus=move(self.rule.a_plus), a_minus=move(self.rule.a_minus))
        return Problem(move(self.weight), self.pre.to(device), self.post.to(device), rule, keywords)


# Few binary digits: sums are exact for the most part, so that a weight meets its bound in both versions or in neither.
UNIT = st.sampled_from([0.0, 0.25, 0.5, 0.75, 1.0])
SIGNED = st.sampled_from([1.0, -0.5, 0.0, 0.25, 2.0])
BOUNDS = st.sampled_from([(-1.0, 1.0), (0.0, 0.5), (-0.25, 2.0)])
NO_BOUNDS = st.just((-math.inf, math.inf))


@st.composite
def problems(draw: st.DrawFn) -> Problem:
    """Any rule on any kind of spikes; sizes from 1 (the batch a power of two, so that its mean is exact)."""
    T, B = draw(st.integers(1, 4)), draw(st.sampled_from([1, 2, 4]))
    S, J, I = draw(st.integers(1, 2)), draw(st.integers(1, 2)), draw(st.integers(1, 3))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**16)))

    def quarters(*shape: int) -> Tensor:
        return torch.randint(-4, 5, shape, generator=generator, dtype=torch.float64) / 4

    def spikes(*shape: int) -> Tensor:
        kind = draw(st.sampled_from(["bool", "uint8", "float"]))
        if kind == "float":
            return quarters(*shape).to(draw(st.sampled_from([torch.float32, torch.float64, torch.bfloat16])))
        return torch.randint(0, 2 if kind == "bool" else 3, shape, generator=generator).to(getattr(torch, kind))

    def optional(*forms: tuple[int, ...]) -> Tensor | None:
        shape = draw(st.sampled_from([None, *forms]))
        return None if shape is None else quarters(*shape)

    dependence = draw(st.sampled_from(["none", "proportional", "soft", "hard"]))
    w_min, w_max = draw(BOUNDS if dependence == "soft" else st.one_of(NO_BOUNDS, BOUNDS))
    slow = draw(st.booleans())
    eligibility = draw(st.sampled_from([None, 0.0, 0.5, 1.0]))
    per_subnetwork = [quarters(S), quarters(S)] if draw(st.booleans()) else [draw(SIGNED), draw(SIGNED)]
    rule = STDPRule(
        decay_pre=draw(UNIT),
        decay_post=draw(UNIT),
        gain_pre=draw(SIGNED),
        gain_post=draw(SIGNED),
        a_plus=per_subnetwork[0],
        a_minus=per_subnetwork[1],
        x_target=draw(st.sampled_from([0.0, 0.5])),
        pairing=draw(st.sampled_from(["all", "nearest"])),
        timing=draw(st.sampled_from(["inclusive", "exclusive"])),
        dependence=dependence,
        exponent=draw(st.sampled_from([1.0, 2.0, 0.5, 0.0])),
        evaluate=draw(st.sampled_from(["call", "step"])),
        w_min=w_min,
        w_max=w_max,
        clamp=draw(st.sampled_from(["never", "end", "step"])),
        reduction=draw(st.sampled_from(["sum", "mean"])),
        weight_decay=draw(st.sampled_from([0.0, 0.25])),
        eligibility=eligibility,
        modulation_delay=draw(st.sampled_from([0, 1])),
        triplet=Triplet(draw(UNIT), draw(UNIT), draw(SIGNED), draw(SIGNED)) if slow else None,
    )
    pre_shape = draw(st.sampled_from([(B, I), (B, S, I)]))
    traces = None
    if draw(st.booleans()):
        fast = (quarters(*pre_shape), quarters(B, S, J))
        slow_traces = (quarters(*pre_shape), quarters(B, S, J)) if slow else (None, None)
        traces = Traces(*fast, *slow_traces, None if eligibility is None else quarters(B, S, J, I))
    keywords = {
        "traces": traces,
        "modulation": optional((T, B), (T, B, S)),
        "mask": torch.rand(B, S, generator=generator) < 0.5 if draw(st.booleans()) else None,
    }
    return Problem(quarters(S, J, I), spikes(T, *pre_shape), spikes(T, B, S, J), rule, keywords)


# One vector and a part, several tiles and a part, blocks of post-synaptic neurons, batches over and under the number
# from which events are added, several chunks of time.
SIZES = [
    (6, 3, 2, 5, 7),
    (5, 12, 2, 17, 33),
    (9, 20, 1, 70, 70),
    (4, 70, 3, 9, 130),
    (300, 2, 2, 3, 19),
    (40, 16, 2, 66, 17),
    (7, 1, 3, 33, 81),
]


def random_rule(generator: torch.Generator, S: int, dtype: torch.dtype) -> STDPRule:
    def number(low: float, high: float) -> float:
        return low + (high - low) * torch.rand((), generator=generator).item()

    def choice(*options: Any) -> Any:
        return options[int(torch.randint(len(options), (), generator=generator))]

    def amplitude() -> float | Tensor:
        return choice(number(-0.1, 0.1), torch.rand(S, generator=generator, dtype=dtype) / 10)

    dependence = choice("none", "none", "proportional", "soft", "hard")
    w_min, w_max = choice((-math.inf, math.inf), (-0.3, 0.4)) if dependence != "soft" else (-0.6, 0.7)
    return STDPRule(
        decay_pre=choice(0.0, number(0, 1), 1.0),
        decay_post=choice(0.0, number(0, 1), 1.0),
        gain_pre=number(-1, 1),
        gain_post=choice(0.0, number(-1, 1)),
        a_plus=amplitude(),
        a_minus=amplitude(),
        x_target=choice(0.0, number(-1, 1)),
        pairing=choice("all", "all", "nearest"),
        timing=choice("inclusive", "exclusive"),
        dependence=dependence,
        exponent=choice(0.0, 1.0, 2.0, 1.3),
        evaluate=choice("call", "step"),
        w_min=w_min,
        w_max=w_max,
        clamp=choice("never", "end", "step"),
        reduction=choice("sum", "mean"),
        weight_decay=choice(0.0, 0.05, 1.0),
        eligibility=choice(None, None, None, 0.0, number(0, 1)),
        modulation_delay=choice(0, 1),
        triplet=choice(None, None, Triplet(number(0, 1), number(0, 1), number(-0.1, 0.1), number(-0.1, 0.1))),
    )


def random_problem(seed: int, sizes: tuple[int, int, int, int, int], rate: float, dtype: torch.dtype) -> Problem:
    """Sizes are T, B, S, J, I."""
    T, B, S, J, I = sizes
    generator = torch.Generator().manual_seed(seed)
    rule = random_rule(generator, S, dtype)

    def choice(*options: Any) -> Any:
        return options[int(torch.randint(len(options), (), generator=generator))]

    def spikes(*shape: int) -> Tensor:
        fired = torch.rand(shape, generator=generator) < rate
        kind = choice(torch.bool, torch.bool, torch.uint8, dtype, "graded")
        if kind == "graded":
            return fired * torch.randn(shape, generator=generator).to(choice(torch.bfloat16, torch.float64))
        return fired.to(kind)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=dtype)

    pre_shape = choice((B, I), (B, S, I))
    slow, eligible = rule.triplet is not None, rule.eligibility is not None
    traces = Traces(
        normal(*pre_shape),
        normal(B, S, J),
        normal(*pre_shape) if slow else None,
        normal(B, S, J) if slow else None,
        normal(B, S, J, I) / 10 if eligible else None,
    )
    modulation = choice(None, normal(T, B), normal(T, B, S))
    mask = torch.rand(B, S, generator=generator) < 0.7
    keywords = {"traces": choice(None, traces), "modulation": modulation, "mask": choice(None, mask)}
    return Problem(normal(S, J, I) / 3, spikes(T, *pre_shape), spikes(T, B, S, J), rule, keywords)


def assert_close(actual: Any, expected: Any) -> None:
    """Sums in another order: relative to the largest number of each tensor."""
    for a, b in zip(tensors(actual), tensors(expected), strict=True):
        scale = max(1.0, b.abs().max().item()) if b.numel() else 1.0
        tolerance = scale * (1e-11 if b.dtype == torch.float64 else 2e-5)
        torch.testing.assert_close(a, b, rtol=0, atol=tolerance)


def jumps(rule: STDPRule) -> bool:
    """A weight at a bound may be taken for one beyond it in single precision."""
    return rule.dependence == "hard" and rule.evaluate == "step"


def run(op: Any, problem: Problem, **changed: Any) -> Any:
    return op(problem.weight, problem.pre, problem.post, problem.rule, **{**problem.keywords, **changed})
