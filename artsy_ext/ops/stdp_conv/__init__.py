"""stdp_conv: `stdp` of convolutional synapses. Output positions are samples, groups are sub-networks."""

from collections.abc import Sequence
from math import prod

import torch
import torch.nn.functional as F
from torch import Tensor

from artsy_ext.ops._check import FLOATING, REAL, Check
from artsy_ext.ops.stdp import STDPRule, Traces, stdp


def stdp_conv(
    weight: Tensor,
    pre: Tensor,
    post: Tensor,
    rule: STDPRule,
    *,
    stride: int | Sequence[int] = 1,
    padding: int | Sequence[int] = 0,
    dilation: int | Sequence[int] = 1,
    groups: int = 1,
    traces: Traces | None = None,
    modulation: Tensor | None = None,
    mask: Tensor | None = None,
) -> tuple[Tensor, Traces]:
    """Changes the weights of a convolution by T steps of STDP, laid out as that of conv1d, conv2d and conv3d.

    A weight is shared by all output positions: its update is the sum of theirs, as if each position of each sample were
    a sample of `stdp` whose pre-synaptic neurons are the patch that the kernel sees there. reduction="mean" divides the
    sum by B, not by the number of positions. Padded inputs are neurons that never fire and have no trace; x_target is
    subtracted from them, too.

    Args:
        weight: [C_out, C_in/groups, *kernel] float32 or float64.
        pre: [T, B, C_in, *size]; bool, uint8 or floating (graded, also signed).
        post: [T, B, C_out, *size_out], likewise; size_out is that of the convolution.
        rule: which STDP; its a_plus and a_minus may be tensors [groups].
        stride, padding, dilation: of the convolution, a number or one per spatial dimension.
        groups: of the convolution.
        traces: from an earlier call, None for zero: pre [B, C_in, *size], post [B, C_out, *size_out], the slow ones
            alike, eligibility [B, *weight.shape] (the sum over the positions, which is all that it acts by).
        modulation: [T, B] or [T, B, groups], as weight; None for 1.
        mask: [B, groups] bool, as in `stdp`.

    Returns:
        The new weights and the traces after the last step. The pre trace is 0 at inputs that no patch reaches.
        Differentiable as `stdp`.

    Memory: the patches take prod(kernel)/prod(stride) times the memory of pre, in its dtype, and eligibility [B times
    positions, *weight.shape]. Chunks of time with traces need less.

    Raises:
        TypeError: rule is not an STDPRule, traces are not Traces.
        ValueError: a rank, size, dtype or device disagrees, or traces lack what the rule keeps.
    """
    check = Check("stdp_conv")
    if not isinstance(rule, STDPRule):
        raise TypeError(f"stdp_conv: rule must be an STDPRule, got {type(rule).__name__}")
    if traces is not None and not isinstance(traces, Traces):
        raise TypeError(f"stdp_conv: traces must be Traces or None, got {type(traces).__name__}")
    if weight.dim() < 3:
        check.fail(f"weight must be [C_out, C_in/groups, *kernel], got {list(weight.shape)}")
    spikes = (torch.bool, torch.uint8, *FLOATING)
    check.tensor("weight", weight, "C_out C_in/groups ...", dtypes=REAL)
    check.tensor("pre", pre, "T B C_in ...", dtypes=spikes, like=weight)
    check.tensor("post", post, "T B C_out ...", dtypes=spikes, like=weight)
    T, B, C_in, *size = pre.shape
    if groups < 1 or C_in != groups * weight.shape[1] or weight.shape[0] % groups:
        check.fail(
            f"groups must divide C_out={weight.shape[0]} and C_in={C_in} into {weight.shape[1]} each, got {groups}"
        )
    check.size("groups", groups, "groups")
    geometry = _Geometry(check, weight, size, stride, padding, dilation, groups)
    L = geometry.L
    if list(post.shape[3:]) != geometry.size_out:
        check.fail(f"post must be [T, B, C_out, *size_out] with size_out={geometry.size_out}, got {list(post.shape)}")

    if modulation is not None:
        check.tensor("modulation", modulation, "T B", "T B groups", like=weight)
    if rule.reduction == "mean":
        modulation = weight.new_full((T, B), L) if modulation is None else modulation * L
    if modulation is not None:
        modulation = modulation.repeat_interleave(L, 1)
    if mask is not None:
        check.tensor("mask", mask, "B groups", dtypes=(torch.bool,), like=weight)
        mask = mask.repeat_interleave(L, 0)

    start = None
    if traces is not None:
        shapes = (pre.shape[1:], post.shape[1:], pre.shape[1:], post.shape[1:], (B, *weight.shape))
        for name, trace, shape in zip(Traces._fields, traces, shapes, strict=True):
            if trace is not None and trace.shape != shape:
                check.fail(f"traces.{name} must be {list(shape)}, got {list(trace.shape)}")
        start = geometry.split(traces)
    new, kept = stdp(
        weight.reshape(groups, weight.shape[0] // groups, -1),
        geometry.patches(pre),
        geometry.outputs(post),
        rule,
        traces=start,
        modulation=modulation,
        mask=mask,
    )
    return new.view(weight.shape), geometry.join(kept, B)


class _Geometry:
    """Between a convolution's tensors and those of `stdp`: L positions, S groups of C inputs and J outputs, I = C·K."""

    def __init__(
        self,
        check: Check,
        weight: Tensor,
        size: list[int],
        stride: int | Sequence[int],
        padding: int | Sequence[int],
        dilation: int | Sequence[int],
        groups: int,
    ) -> None:
        kernel = list(weight.shape[2:])
        if len(size) != len(kernel):
            check.fail(f"pre must be [T, B, C_in, *size] with {len(kernel)} sizes as the kernel, got {len(size)}")

        def sizes(name: str, value: int | Sequence[int], least: int) -> list[int]:
            values = list(value) if isinstance(value, Sequence) else [value] * len(kernel)
            if len(values) != len(kernel) or not all(isinstance(v, int) and v >= least for v in values):
                check.fail(f"{name} must be an integer >= {least}, or {len(kernel)} of them, got {value!r}")
            return values

        self.weight_shape, self.size = weight.shape, size
        self.stride, self.padding = sizes("stride", stride, 1), sizes("padding", padding, 0)
        self.dilation = sizes("dilation", dilation, 1)
        self.window = [d * (k - 1) + 1 for d, k in zip(self.dilation, kernel, strict=True)]
        room = zip(size, self.padding, self.window, self.stride, strict=True)
        self.size_out = [(n + 2 * p - w) // s + 1 for n, p, w, s in room]
        if min(self.size_out) < 1 or min(kernel) < 1:
            check.fail(f"pre must be at least as large as the kernel, {self.window} with dilation, got {size}")
        self.L, self.K = prod(self.size_out), prod(kernel)
        self.S, self.J, self.C = groups, weight.shape[0] // groups, weight.shape[1]

    def unfold(self, x: Tensor) -> Tensor:
        """[N, C_in, *size] -> [N, C_in, L, K], a copy only where it has to be."""
        if any(self.padding):
            x = F.pad(x, [p for p in reversed(self.padding) for _ in range(2)])
        for axis, (w, s, d) in enumerate(zip(self.window, self.stride, self.dilation, strict=True)):
            x = x.unfold(2 + axis, w, s)[..., ::d]
        return x.reshape(*x.shape[:2], self.L, self.K)

    def patches(self, x: Tensor) -> Tensor:
        """[..., B, C_in, *size] -> [..., B·L, S, I], or [..., B·L, I] without groups."""
        *lead, B, _ = x.shape[: -len(self.size)]
        x = self.unfold(x.flatten(0, len(lead))).unflatten(1, (self.S, self.C)).permute(0, 3, 1, 2, 4)
        return x.reshape(*lead, B * self.L, *([self.S] if self.S > 1 else []), self.C * self.K)

    def outputs(self, y: Tensor) -> Tensor:
        """[..., B, C_out, *size_out] -> [..., B·L, S, J]."""
        *lead, B, _ = y.shape[: -len(self.size)]
        return y.flatten(len(lead) + 2).transpose(-1, -2).reshape(*lead, B * self.L, self.S, self.J)

    def split(self, traces: Traces) -> Traces:
        """A convolution's traces as those of the positions."""
        x, y, x_slow, y_slow, e = traces
        if e is not None:  # only its sum over the positions acts: the first has it all
            e = e.reshape(-1, 1, self.S, self.J, self.C * self.K)
            e = F.pad(e, [0] * 7 + [self.L - 1]).flatten(0, 1)
        return Traces(
            self.patches(x),
            self.outputs(y),
            None if x_slow is None else self.patches(x_slow),
            None if y_slow is None else self.outputs(y_slow),
            e,
        )

    def join(self, traces: Traces, B: int) -> Traces:
        """The inverse of `split`."""
        x, y, x_slow, y_slow, e = traces
        return Traces(
            self._inputs(x, B),
            self._outputs(y, B),
            None if x_slow is None else self._inputs(x_slow, B),
            None if y_slow is None else self._outputs(y_slow, B),
            None if e is None else e.view(B, self.L, *self.weight_shape).sum(1),
        )

    def _inputs(self, x: Tensor, B: int) -> Tensor:
        """[B·L, S, I] or [B·L, I] -> [B, C_in, *size]: of each input one of its equal copies."""
        count = prod(self.size)
        number = torch.arange(1, count + 1, device=x.device).view(1, 1, *self.size)
        copies = self.unfold(number).flatten()  # which input, from 1, each place of the L patches shows; 0 is padding
        places = torch.arange(self.L * self.K, device=x.device)
        source = places.new_full((count + 1,), -1).scatter_reduce(0, copies, places, "amax")[1:]
        x = x.reshape(B, self.L, self.S * self.C, self.K).transpose(1, 2).flatten(2)
        return torch.where(source >= 0, x[..., source.clamp(min=0)], 0.0).unflatten(-1, self.size)

    def _outputs(self, y: Tensor, B: int) -> Tensor:
        """[B·L, S, J] -> [B, C_out, *size_out]."""
        return y.reshape(B, self.L, self.S * self.J).transpose(1, 2).contiguous().unflatten(-1, self.size_out)
