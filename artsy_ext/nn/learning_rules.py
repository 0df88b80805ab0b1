"""PostPre, WeightDependentPostPre and DiehlAndCook: update rules of a BindsNET network's connections.

Each takes the place of the class of its name in `bindsnet.learning` (BindsNET 0.3.4), with the same arguments and the
same numbers to 1e-5: where `Connection(…, update_rule=PostPre)` stands, only the import changes. BindsNET itself is not
imported here.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, Literal

import torch
from torch import Tensor

from artsy_ext.ops import STDPRule, Traces, stdp_, stdp_conv

_DENSE = ("Connection", "LocalConnection")
_CONVOLUTIONS = ("Conv1dConnection", "Conv2dConnection")


class _LearningRule:
    """An update rule as BindsNET calls it: at each step one `stdp_`, or one `stdp_conv` in a convolution.

    The traces it reads are the layers' own, so that whatever BindsNET does with them (a time constant for each layer,
    additive or not, reset, clamped spikes) holds.

    Args:
        connection: whose weights change: Connection, LocalConnection, Conv1dConnection or Conv2dConnection; its wmin
            and wmax are numbers.
        nu: learning rate of both or of (pre-synaptic spike, post-synaptic spike), numbers; None for 0.
        reduction: over the batch: None or torch.sum; or torch.mean.
        weight_decay: per step.
        **kwargs: the connection's other options.

    Raises:
        TypeError: the connection is of another kind.
        ValueError: an option is not one of these, or a layer that is read records no traces.
    """

    dense_only = False
    layers_read: tuple[str, ...] = ("source", "target")

    def __init__(
        self,
        connection: Any,
        nu: float | Sequence[float] | None = None,
        reduction: Callable[..., Tensor] | None = None,
        weight_decay: float = 0.0,
        **kwargs: Any,
    ) -> None:
        name = type(self).__name__
        kinds = {kind.__name__ for kind in type(connection).__mro__}
        self.dense = not kinds.isdisjoint(_DENSE)
        known = _DENSE if self.dense_only else (*_DENSE, *_CONVOLUTIONS)
        if kinds.isdisjoint(known):
            raise TypeError(f"{name}: connection must be one of {known}, got {type(connection).__name__}")
        for layer in self.layers_read:
            if not getattr(connection, layer).traces:
                raise ValueError(f"{name}: {layer} must record traces, got traces=False")
        if reduction not in (None, torch.sum, torch.squeeze, torch.mean):
            raise ValueError(f"{name}: reduction must be None, torch.sum or torch.mean, got {reduction}")
        for bound in ("wmin", "wmax"):
            if getattr(connection, bound).numel() != 1:
                raise ValueError(f"{name}: {bound} must be a number, got {list(getattr(connection, bound).shape)}")
        rates = [0.0, 0.0] if nu is None else [nu, nu] if isinstance(nu, (int, float)) else list(nu)
        if len(rates) != 2 or not all(isinstance(rate, (int, float)) for rate in rates):
            raise ValueError(f"{name}: nu must be a number or two, got {nu}")

        self.connection = connection
        rule = self._rule(
            nu=rates,
            wmin=float(connection.wmin),
            wmax=float(connection.wmax),
            reduction="mean" if reduction is torch.mean else "sum",
            **self._more(weight_decay, kwargs),
        )
        # The layers' traces have this step's spikes in them already: read as they are. In a call of one step "call" and
        # "end" are "step".
        clamp: Literal["never", "end"] = "never" if rule.clamp == "never" else "end"
        rule = replace(rule, decay_pre=1.0, decay_post=1.0, timing="exclusive", evaluate="call", clamp=clamp)
        # BindsNET's w is [source, target]. The additive rule is the same with the two sides and the signs exchanged, so
        # that w need not be transposed.
        self.exchanged = self.dense and rule.dependence == "none"
        if self.exchanged:
            rule = replace(rule, a_plus=-rule.a_minus, a_minus=-rule.a_plus)
        self.rule = rule

    _rule: Callable[..., STDPRule]

    def _more(self, weight_decay: float, kwargs: dict[str, Any]) -> dict[str, Any]:
        """The options that only this rule has."""
        if weight_decay:
            raise ValueError(f"{type(self).__name__}: weight_decay must be 0, got {weight_decay}")
        return {}

    @torch.no_grad()
    def update(self, **kwargs: Any) -> None:
        """One step; BindsNET calls it once the layers have run."""
        source, target, w = self.connection.source, self.connection.target, self.connection.w
        pre, post = (s[None] if s.dtype == torch.bool else s[None].float() for s in (source.s, target.s))
        x = source.x
        y = target.x if target.traces else torch.zeros_like(post[0], dtype=x.dtype)
        if self.dense:
            pre, post, x, y = pre.flatten(2), post.flatten(2), x.flatten(1), y.flatten(1)
            if self.exchanged:
                stdp_(w[None], post, pre[:, :, None], self.rule, traces=Traces(y, x[:, None]))
            else:
                stdp_(w.t()[None], pre, post[:, :, None], self.rule, traces=Traces(x, y[:, None]))
        else:
            geometry = {name: getattr(self.connection, name) for name in ("stride", "padding", "dilation")}
            w.copy_(stdp_conv(w, pre, post, self.rule, traces=Traces(x, y), **geometry)[0])


class PostPre(_LearningRule):
    """`bindsnet.learning.PostPre`: the rule of `STDPRule.bindsnet_postpre`.

    (In a Conv1dConnection BindsNET 0.3.4 itself mixes the channels up where there are several; here they are kept.)
    """

    _rule = STDPRule.bindsnet_postpre

    def _more(self, weight_decay: float, kwargs: dict[str, Any]) -> dict[str, Any]:
        return {"weight_decay": weight_decay}


class WeightDependentPostPre(_LearningRule):
    """`bindsnet.learning.WeightDependentPostPre`, without weight decay: `STDPRule.bindsnet_weight_dependent`."""

    _rule = STDPRule.bindsnet_weight_dependent


class DiehlAndCook(_LearningRule):
    """`bindsnet.learning.DiehlAndCook`, without weight decay, in dense connections: `STDPRule.bindsnet_diehl_cook`."""

    dense_only = True
    layers_read = ("source",)
    _rule = STDPRule.bindsnet_diehl_cook

    def _more(self, weight_decay: float, kwargs: dict[str, Any]) -> dict[str, Any]:
        return super()._more(weight_decay, kwargs) | {k: float(kwargs[k]) for k in ("x_tar", "mu") if k in kwargs}
