"""The definition of stdp, stdp_ and stdp_consolidate."""

import torch
from torch import Tensor

from artsy_ext.ops.consolidate.reference import consolidate
from artsy_ext.ops.stdp.rule import STDPRule, Traces


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
    T, B, S, _ = post.shape
    W = weight.clone()
    pre, post = pre.to(W.dtype), post.to(W.dtype)
    x, y, x_slow, y_slow, e = start(weight, pre, post, rule, traces)
    amplitudes = (rule.a_plus, rule.a_minus)
    a_plus, a_minus = (torch.as_tensor(a, dtype=W.dtype, device=W.device).expand(S)[:, None] for a in amplitudes)
    m = factors(T, B, S, W, modulation, mask)
    f_plus, f_minus = dependence(W, rule)
    decay_eligibility = rule.eligibility or 0.0

    for t in range(T):
        W = (1 - rule.weight_decay) * W
        if rule.evaluate == "step":
            f_plus, f_minus = dependence(W, rule)
        x_read, x = advance(x, pre[t], rule.decay_pre, rule.gain_pre, rule)
        y_read, y = advance(y, post[t], rule.decay_post, rule.gain_post, rule)
        plus, minus = a_plus, a_minus
        if rule.triplet is not None and x_slow is not None and y_slow is not None:
            minus = minus + rule.triplet.a_minus_3 * per_subnetwork(rule.triplet.decay_pre_slow * x_slow)
            plus = plus + rule.triplet.a_plus_3 * rule.triplet.decay_post_slow * y_slow
            x_slow = advance(x_slow, pre[t], rule.triplet.decay_pre_slow, rule.gain_pre, rule)[1]
            y_slow = advance(y_slow, post[t], rule.triplet.decay_post_slow, rule.gain_post, rule)[1]

        post_side = (plus * post[t], y_read)  # [B, S, J] each
        pre_side = (per_subnetwork(x_read) - rule.x_target, minus * per_subnetwork(pre[t]))  # [B, S or 1, I] each
        if e is None:
            ltp, ltd = (
                torch.einsum("bs,bsj,bsi->sji", m[t], j, i.expand(B, S, -1))
                for j, i in zip(post_side, pre_side, strict=True)
            )
            change = f_plus * ltp - f_minus * ltd
        else:
            ltp, ltd = (j[..., :, None] * i[..., None, :] for j, i in zip(post_side, pre_side, strict=True))
            e_before, e = e, decay_eligibility * e + (f_plus * ltp - f_minus * ltd)
            change = torch.einsum("bs,bsji->sji", m[t], e_before if rule.modulation_delay else e)
        W = W + (change / max(B, 1) if rule.reduction == "mean" else change)
        if rule.clamp == "step":
            W = clamp(W, rule)

    if rule.clamp == "end":
        W = clamp(W, rule)
    return W, Traces(x, y, x_slow, y_slow, e)


def start(weight: Tensor, pre: Tensor, post: Tensor, rule: STDPRule, traces: Traces | None) -> Traces:
    """The traces before the first step, copied: no output shares memory with an input."""
    if traces is not None:
        return Traces._make(None if trace is None else trace.clone() for trace in traces)
    x, y = weight.new_zeros(pre.shape[1:]), weight.new_zeros(post.shape[1:])
    x_slow, y_slow = (None, None) if rule.triplet is None else (x.clone(), y.clone())
    e = None if rule.eligibility is None else weight.new_zeros(post.shape[1], *weight.shape)
    return Traces(x, y, x_slow, y_slow, e)


def factors(T: int, B: int, S: int, W: Tensor, modulation: Tensor | None, mask: Tensor | None) -> Tensor:
    """m[t, b, s]: modulation times mask."""
    m = W.new_ones(T, B, S) if modulation is None else modulation
    if m.dim() == 2:
        m = m[..., None].expand(T, B, S)
    return m if mask is None else m * mask


def dependence(W: Tensor, rule: STDPRule) -> tuple[Tensor, Tensor]:
    """f₊(W), f₋(W)."""
    if rule.dependence == "proportional":
        return W, W
    if rule.dependence == "soft":
        return torch.relu(rule.w_max - W) ** rule.exponent, torch.relu(W - rule.w_min) ** rule.exponent
    if rule.dependence == "hard":
        return (rule.w_max > W).to(W.dtype), (rule.w_min < W).to(W.dtype)
    return torch.ones_like(W), torch.ones_like(W)


def clamp(W: Tensor, rule: STDPRule) -> Tensor:
    """Without a gradient at the bounds; that of torch.clamp changed with PyTorch 2.14."""
    return torch.nn.functional.hardtanh(W, rule.w_min, rule.w_max)


def advance(trace: Tensor, spikes: Tensor, decay: float, gain: float, rule: STDPRule) -> tuple[Tensor, Tensor]:
    """One step of a trace: (what the update reads, the new trace)."""
    decayed = decay * trace
    new = decayed + gain * spikes if rule.pairing == "all" else torch.where(spikes != 0, gain, decayed)
    return (new if rule.timing == "inclusive" else decayed), new


def per_subnetwork(pre: Tensor) -> Tensor:
    """[B, I] or [B, S, I] -> [B, 1 or S, I]."""
    return pre if pre.dim() == 3 else pre.unsqueeze(1)


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
    W, traces = stdp(weight, pre, post, rule, traces=traces, modulation=modulation, mask=mask)
    return weight.copy_(W), traces


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
    W, traces = stdp(weight, pre, post, rule, traces=traces, modulation=modulation, mask=mask)
    return W, traces, consolidate(W, functional, on, off)
