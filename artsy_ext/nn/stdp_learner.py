"""STDPLearner: STDP for two modules of a model, in the place of SpikingJelly's class of that name."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from artsy_ext.ops import STDPRule, Traces, stdp_, stdp_conv


def _identity(weight: Tensor) -> Tensor:
    return weight


class STDPLearner(nn.Module):
    """Watches a synapse and the neurons behind it, and turns the spikes it saw into a change of the weights.

    Takes the place of `spikingjelly.activation_based.learning.STDPLearner` (SpikingJelly 2.0): the same arguments, the
    same `step`, `reset`, `enable`, `disable` and `close`, the same numbers to 1e-5. All recorded steps go through one
    call of `stdp_` or `stdp_conv` (two where f_pre and f_post are different functions). Besides, a convolution may have
    dilation and groups. It works with any modules that pass on [T, B, …] or [B, …]; SpikingJelly is not needed.

    Args:
        step_mode: "m": what passes has a time axis, [T, B, …]. "s": a step at a time, [B, …].
        synapse: Linear, Conv1d or Conv2d (or a subclass) whose input is the pre-synaptic spikes; float32 or float64.
        sn: module whose output is the post-synaptic spikes.
        tau_pre, tau_post: time constants of the traces in steps, >= 1; they decay by 1 − 1/τ.
        f_pre, f_post: factors of depression and potentiation as functions of the weights, the weights themselves by
            default. Anything that broadcasts with them.

    Attributes:
        traces: `Traces` after the last `step`, of the padded input in a convolution; None at first and after `reset`.

    Raises:
        TypeError: synapse is of another kind.
        ValueError: step_mode is unknown, or a time constant is out of range.
    """

    def __init__(
        self,
        step_mode: Literal["s", "m"],
        synapse: nn.Linear | nn.Conv1d | nn.Conv2d,
        sn: nn.Module,
        tau_pre: float,
        tau_post: float,
        f_pre: Callable[[Tensor], Any] = _identity,
        f_post: Callable[[Tensor], Any] = _identity,
    ) -> None:
        super().__init__()
        if step_mode not in ("s", "m"):
            raise ValueError(f"STDPLearner: step_mode must be 's' or 'm', got {step_mode!r}")
        if not isinstance(synapse, (nn.Linear, nn.Conv1d, nn.Conv2d)):
            raise TypeError(f"STDPLearner: synapse must be Linear, Conv1d or Conv2d, got {type(synapse).__name__}")
        # f multiplies what the additive rule gives: within a call the weights stand still.
        self.rule = STDPRule.spikingjelly("m", tau_pre, tau_post, dependence="none")
        self.step_mode, self.synapse = step_mode, synapse
        self.f_pre, self.f_post = f_pre, f_post
        self.traces: Traces | None = None
        self._pre: list[Tensor] = []
        self._post: list[Tensor] = []
        self._recording = True
        self._hooks = [
            synapse.register_forward_pre_hook(lambda _, inputs: self._record(self._pre, inputs[0])),
            sn.register_forward_hook(lambda _, inputs, output: self._record(self._post, output)),
        ]

    @torch.no_grad()
    def step(self, on_grad: bool = True, scale: float = 1.0) -> Tensor | None:
        """Turns what was recorded since the last call into a change of the weights, summed over batch and time.

        The weights themselves are left to an optimizer. Traces go on from call to call.

        Args:
            on_grad: subtract the change from `synapse.weight.grad`, or else return it.
            scale: factor of the change.

        Returns:
            The change, as the weight, where on_grad is False; None where it is True or nothing was recorded.

        Raises:
            RuntimeError: the learner is closed, or input and output were not recorded equally often.
            ValueError: shapes do not fit each other, or, without `reset`, those of the calls before.
        """
        if not self._hooks:
            raise RuntimeError("STDPLearner: closed; make a new one to go on")
        if len(self._pre) != len(self._post):
            raise RuntimeError(
                f"STDPLearner: synapse and sn must have run equally often, got {len(self._pre)} and {len(self._post)}"
            )
        if not self._pre:
            return None
        join = torch.cat if self.step_mode == "m" else torch.stack
        change = self._change(join(self._pre), join(self._post)) * scale
        self._forget()
        if not on_grad:
            return change
        weight = self.synapse.weight
        weight.grad = -change if weight.grad is None else weight.grad - change
        return None

    def reset(self) -> None:
        """Forgets traces and records; the weights stay."""
        self.traces = None
        self._forget()

    def enable(self) -> None:
        """Records again."""
        self._recording = True

    def disable(self) -> None:
        """Records nothing until `enable`."""
        self._recording = False

    def close(self) -> None:
        """Takes the hooks away, for good."""
        for hook in self._hooks:
            hook.remove()
        self._hooks = []
        self.reset()

    def _record(self, records: list[Tensor], spikes: Tensor) -> None:
        if self._recording:
            records.append(spikes.detach())

    def _forget(self) -> None:
        self._pre.clear()
        self._post.clear()

    def _change(self, pre: Tensor, post: Tensor) -> Tensor:
        """[T, B, …] spikes -> the change of the weights, and the new traces."""
        weight = self.synapse.weight.detach()
        if self.f_pre is self.f_post:
            change, traces = self._additive(pre, post, self.rule)
            change = self.f_post(weight) * change
        else:
            ltp, traces = self._additive(pre, post, replace(self.rule, a_minus=0.0))
            ltd, _ = self._additive(pre, post, replace(self.rule, a_plus=0.0))
            change = self.f_post(weight) * ltp + self.f_pre(weight) * ltd
        self.traces = traces
        return change

    def _additive(self, pre: Tensor, post: Tensor, rule: STDPRule) -> tuple[Tensor, Traces]:
        zero = torch.zeros_like(self.synapse.weight)
        if isinstance(self.synapse, nn.Linear):
            return zero, stdp_(zero[None], pre, post.unsqueeze(2), rule, traces=self.traces)[1]
        conv = self.synapse
        mode = "constant" if conv.padding_mode == "zeros" else conv.padding_mode
        padded = F.pad(pre.flatten(0, 1), conv._reversed_padding_repeated_twice, mode).unflatten(0, pre.shape[:2])
        geometry: dict[str, Any] = {"stride": conv.stride, "dilation": conv.dilation, "groups": conv.groups}
        return stdp_conv(zero, padded, post, rule, traces=self.traces, **geometry)
