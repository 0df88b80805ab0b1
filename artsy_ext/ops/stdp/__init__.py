"""stdp, stdp_ and stdp_consolidate: spike-timing-dependent plasticity over many sub-networks."""

from functools import partial
from typing import Any

import torch
from torch import Tensor

from artsy_ext.ops._check import FLOATING, REAL, Check
from artsy_ext.ops._register import Arguments, call, register
from artsy_ext.ops.consolidate import check_state
from artsy_ext.ops.stdp import reference
from artsy_ext.ops.stdp.rule import STDPRule, Traces, Triplet

__all__ = ["STDPRule", "Traces", "Triplet", "stdp", "stdp_", "stdp_consolidate"]


def stdp(
    weight: Tensor,
    pre: Tensor,
    post: Tensor,
    rule: STDPRule,
    *,
    traces: Traces | None = None,
    modulation: Tensor | None = None,
    mask: Tensor | None = None,
) -> tuple[Tensor, Traces]:
    """Changes the weights of S sub-networks by T steps of STDP. At each step, in this order:

        W   ← (1 − weight_decay) · W
        x_t = decay_pre  · x_{t−1} + gain_pre  · pre_t       nearest: gain_pre where pre_t ≠ 0, else decay_pre · x_{t−1}
        y_t = decay_post · y_{t−1} + gain_post · post_t
        W   ← W + reduce_b m_t · (a_plus · f₊(W) · post_t · (x_t − x_target) − a_minus · f₋(W) · pre_t · y_t)

    with m = modulation · mask. "exclusive" timing reads decay · x_{t−1} and decay · y_{t−1}. With an eligibility trace
    e_t = eligibility · e_{t−1} + (…), and the last line is W ← W + reduce_b m_t · e_t, or m_t · e_{t−1} with
    modulation_delay=1. The pair rule is Song, Miller & Abbott (Nat. Neurosci. 2000), in the trace form of Morrison,
    Diesmann & Gerstner (Biol. Cybern. 2008).

    Args:
        weight: [S, J, I] float32 or float64.
        pre: [T, B, I], shared by all sub-networks, or [T, B, S, I]; bool, uint8 or floating (graded, also signed).
        post: [T, B, S, J]; bool, uint8 or floating.
        rule: which STDP; its a_plus and a_minus may be tensors [S] as weight.
        traces: from an earlier call, None for zero.
        modulation: [T, B] or [T, B, S] factor of the update (reward), as weight; None for 1.
        mask: [B, S] bool, False where a sample does not train a sub-network; acts on the update, not on the traces.

    Returns:
        The new weights [S, J, I] and the traces after the last step. Differentiable once, in weight, floating pre and
        post, a_plus, a_minus, modulation and traces. Where the rule is not smooth, the gradient is 0 through a weight
        that is clamped or lies on a bound of the clamp, through f at and beyond a soft bound, through [W < w_max] and
        [W > w_min], and through the choice [spike ≠ 0] of "nearest". The gradient keeps the arguments and computes
        the rest anew: memory O(T·B·S·(I + J)) and a few times the weights (with an eligibility trace, of [B, S, J, I]),
        never O(T·J·I). Numbers that are not finite do not spread exactly as in the definition.

    Raises:
        TypeError: rule is not an STDPRule, traces are not Traces.
        ValueError: a rank, size, dtype or device disagrees, or traces lack what the rule keeps.
    """
    flat = _flatten("stdp", weight, pre, post, rule, traces, modulation, mask)
    results = call(torch.ops.artsy.stdp, weight, *flat, **rule.flatten())
    return results[0], _traces(results[1:], rule)


def stdp_(
    weight: Tensor,
    pre: Tensor,
    post: Tensor,
    rule: STDPRule,
    *,
    traces: Traces | None = None,
    modulation: Tensor | None = None,
    mask: Tensor | None = None,
) -> tuple[Tensor, Traces]:
    """`stdp` on the weights in place, without gradients: changes and returns `weight`.

    Raises, besides what `stdp` raises:
        ValueError: weight requires grad while gradients are recorded; the change could not be differentiated.
    """
    if torch.is_grad_enabled() and weight.requires_grad:
        raise ValueError("stdp_: weight must not require grad, got requires_grad=True; use stdp, or torch.no_grad()")
    flat = _flatten("stdp_", weight, pre, post, rule, traces, modulation, mask)
    results = call(torch.ops.artsy.stdp_, weight, *flat, **rule.flatten())
    return weight, _traces(results, rule)


def stdp_consolidate(
    weight: Tensor,
    functional: Tensor,
    pre: Tensor,
    post: Tensor,
    rule: STDPRule,
    on: float,
    off: float,
    *,
    traces: Traces | None = None,
    modulation: Tensor | None = None,
    mask: Tensor | None = None,
) -> tuple[Tensor, Traces, Tensor]:
    """`stdp`, then `consolidate` of the new weights.

    Args:
        functional: [S, J, I] bool, which synapses transmit so far.
        on, off: 0 ≤ off ≤ on, thresholds of |weight|.
        The others as for `stdp`.

    Returns:
        The new weights, the traces, and the new functional [S, J, I] bool.

    Raises:
        As `stdp` and `consolidate`.
    """
    flat = _flatten("stdp_consolidate", weight, pre, post, rule, traces, modulation, mask)
    results = call(torch.ops.artsy.stdp_consolidate, weight, functional, *flat, on=on, off=off, **rule.flatten())
    return results[0], _traces(results[1:6], rule), results[6]


def _flatten(
    op: str,
    weight: Tensor,
    pre: Tensor,
    post: Tensor,
    rule: STDPRule,
    traces: Traces | None,
    modulation: Tensor | None,
    mask: Tensor | None,
) -> tuple[Tensor | None, ...]:
    if not isinstance(rule, STDPRule):
        raise TypeError(f"{op}: rule must be an STDPRule, got {type(rule).__name__}")
    if traces is not None and not isinstance(traces, Traces):
        raise TypeError(f"{op}: traces must be Traces or None, got {type(traces).__name__}")
    dtype = torch.promote_types(weight.dtype, torch.float32)  # autocast would find them rounded to a lower weight's
    amplitudes = (
        a if isinstance(a, Tensor) else weight.new_full(weight.shape[:1], a, dtype=dtype)
        for a in (rule.a_plus, rule.a_minus)
    )
    return (pre, post, *amplitudes, *(traces or (None,) * 5), modulation, mask)


def _traces(kept: list[Tensor], rule: STDPRule) -> Traces:
    x, y, x_slow, y_slow, e = kept
    if rule.triplet is None:
        return Traces(x, y, eligibility=None if rule.eligibility is None else e)
    return Traces(x, y, x_slow, y_slow, None if rule.eligibility is None else e)


def _arguments(
    op: str,
    weight: Tensor,
    pre: Tensor,
    post: Tensor,
    a_plus: Tensor,
    a_minus: Tensor,
    trace_pre: Tensor | None = None,
    trace_post: Tensor | None = None,
    trace_pre_slow: Tensor | None = None,
    trace_post_slow: Tensor | None = None,
    trace_eligibility: Tensor | None = None,
    modulation: Tensor | None = None,
    mask: Tensor | None = None,
    **flat: Any,
) -> Arguments:
    check = Check(op)
    spikes = (torch.bool, torch.uint8, *FLOATING)
    check.tensor("weight", weight, "S J I", dtypes=REAL)
    check.tensor("pre", pre, "T B I", "T B S I", dtypes=spikes, like=weight)
    check.tensor("post", post, "T B S J", dtypes=spikes, like=weight)
    check.tensor("a_plus", a_plus, "S", like=weight)
    check.tensor("a_minus", a_minus, "S", like=weight)
    rule = STDPRule.unflatten(a_plus, a_minus, **flat)

    given = Traces(trace_pre, trace_post, trace_pre_slow, trace_post_slow, trace_eligibility)  # type: ignore[arg-type]
    pre_shape = "B I" if pre.dim() == 3 else "B S I"
    keeps_slow, keeps_eligibility = rule.triplet is not None, rule.eligibility is not None
    shapes = (pre_shape, "B S J", pre_shape, "B S J", "B S J I")
    traces = None
    if any(trace is not None for trace in given):
        kept: list[Tensor | None] = []
        for name, trace, shape, keep in zip(
            Traces._fields, given, shapes, (True, True, keeps_slow, keeps_slow, keeps_eligibility), strict=True
        ):
            if keep and trace is None:
                check.fail(f"traces.{name} must be given as the rule keeps it, got None")
            if keep and trace is not None:
                check.tensor(f"traces.{name}", trace, shape, like=weight)
            kept.append(trace if keep else None)
        traces = Traces(*kept)  # type: ignore[arg-type]
    if modulation is not None:
        check.tensor("modulation", modulation, "T B", "T B S", like=weight)
    if mask is not None:
        check.tensor("mask", mask, "B S", dtypes=(torch.bool,), like=weight)
    return (weight, pre, post, rule), {"traces": traces, "modulation": modulation, "mask": mask}


def _results(weight: Tensor, traces: Traces) -> tuple[Tensor, ...]:
    """As the schema has it: a trace that is not kept is empty."""
    return (weight, *(weight.new_empty(0) if trace is None else trace for trace in traces))


def _stdp(*args: Any, **kwargs: Any) -> tuple[Tensor, ...]:
    return _results(*reference.stdp(*args, **kwargs))


def _stdp_in_place(*args: Any, **kwargs: Any) -> tuple[Tensor, ...]:
    return _results(*reference.stdp_(*args, **kwargs))[1:]


def _fake(weight: Tensor, pre: Tensor, post: Tensor, rule: STDPRule, **_: Any) -> tuple[Tensor, ...]:
    return _results(torch.empty_like(weight), reference.start(weight, pre, post, rule, None))


def _fake_in_place(*args: Any, **kwargs: Any) -> tuple[Tensor, ...]:
    return _fake(*args, **kwargs)[1:]


def _consolidate_arguments(
    weight: Tensor, functional: Tensor, *flat: Any, on: float, off: float, **rule: Any
) -> Arguments:
    (_, pre, post, stdp_rule), keywords = _arguments("stdp_consolidate", weight, *flat, **rule)
    check = Check("stdp_consolidate")
    check.tensor("weight", weight, "S J I")
    check_state(check, weight, functional, on, off)
    return (weight, functional, pre, post, stdp_rule, on, off), keywords


def _stdp_consolidate(*args: Any, **kwargs: Any) -> tuple[Tensor, ...]:
    weight, traces, functional = reference.stdp_consolidate(*args, **kwargs)
    return (*_results(weight, traces), functional)


def _fake_consolidate(
    weight: Tensor, functional: Tensor, pre: Tensor, post: Tensor, rule: STDPRule, *_: Any, **keywords: Any
) -> tuple[Tensor, ...]:
    return (*_fake(weight, pre, post, rule, **keywords), torch.empty_like(functional))


register("stdp", partial(_arguments, "stdp"), _stdp, _fake, differentiable=True, autocast="float32")
register("stdp_", partial(_arguments, "stdp_"), _stdp_in_place, _fake_in_place, autocast="float32")
register(
    "stdp_consolidate",
    _consolidate_arguments,
    _stdp_consolidate,
    _fake_consolidate,
    differentiable=True,
    autocast="float32",
)
