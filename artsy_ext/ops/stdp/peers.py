"""The rules of SpikingJelly, BindsNET and Norse as `STDPRule`s, under their own names of parameters and in their units.

Each equals the class or function that its docstring names, to 1e-5 on the weights after 100 steps and more:
`tests/ops/test_stdp_peers.py` runs the packages themselves.
"""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal, TypeVar

Rule = TypeVar("Rule", bound="PeerRules")

_ALGORITHMS = {
    "additive": "none",
    "additive_step": "hard",
    "multiplicative_pow": "soft",
    "multiplicative_relu": "soft",
}
_NEVER_REACHED = -1e6
"""Soft bounds are finite: stands for wmin=-inf where f₋ has no effect."""


class PeerRules:
    """Named constructors of `STDPRule`."""

    if TYPE_CHECKING:

        def __init__(self, **fields: Any) -> None: ...

    @classmethod
    def spikingjelly(
        cls: type[Rule],
        step_mode: Literal["s", "m"],
        tau_pre: float,
        tau_post: float,
        *,
        learner: Literal["STDPLearner", "MSTDPLearner", "MSTDPETLearner"] = "STDPLearner",
        tau_trace: float | None = None,
        scale: float = 1.0,
        **fields: Any,
    ) -> Rule:
        """`spikingjelly.activation_based.learning.STDPLearner`, `MSTDPLearner` or `MSTDPETLearner` (SpikingJelly 2.0).

        Layout: pre and post are the learner's recorded spikes, [T, N, in] and [T, N, out] with S = 1 put in:
        `stdp(weight[None], pre, post[:, :, None], rule)`; MSTDPETLearner has N = 1. The reward is `modulation`, [T, 1]
        for all samples or [T, N]; as in SpikingJelly it acts on the pairs up to the step before.

        The learner leaves the negative of its change in `weight.grad`, and an optimizer changes the weights. With
        `torch.optim.SGD(lr)` and no momentum that comes to scale = lr times the scale given to `.step(...)`.

        Args:
            step_mode: "m": the weights change once, after the T steps, so that f reads them before the first one.
                "s": they change at each step. Reward learners have "s" only.
            tau_pre, tau_post: time constants in steps, decays 1 − 1/τ (STDPLearner, τ >= 1) or exp(−1/τ) (the others).
            learner: which.
            tau_trace: time constant of MSTDPETLearner's eligibility trace, in steps.
            scale: factor of the update: learning rate times the learner's scale.
            **fields: other fields of `STDPRule`. Weight factors f_pre = f_post = identity, SpikingJelly's default, are
                dependence="proportional", the default here; `lambda w: 1.0` is "none"; f_post = (w_max − w)⁺ and
                f_pre = (w − w_min)⁺ are "soft".

        Raises:
            ValueError: learner or step_mode is unknown or they do not go together, a time constant is out of range, or
                tau_trace is missing or has no use.
        """
        known = ("STDPLearner", "MSTDPLearner", "MSTDPETLearner")
        if learner not in known:
            raise ValueError(f"STDPRule.spikingjelly: learner must be one of {known}, got {learner!r}")
        rewarded = learner != "STDPLearner"
        modes = ("s",) if rewarded else ("s", "m")
        if step_mode not in modes:
            raise ValueError(f"STDPRule.spikingjelly: step_mode of {learner} must be one of {modes}, got {step_mode!r}")
        if (tau_trace is not None) != (learner == "MSTDPETLearner"):
            raise ValueError(f"STDPRule.spikingjelly: tau_trace is MSTDPETLearner's, got {tau_trace} for {learner}")
        least, bound = (0.0, "> 0") if rewarded else (1.0, ">= 1")
        for name, tau in (("tau_pre", tau_pre), ("tau_post", tau_post), ("tau_trace", tau_trace)):
            if tau is not None and not (tau > 0 and least <= tau < math.inf):
                raise ValueError(f"STDPRule.spikingjelly: {name} must be finite and {bound} steps, got {tau}")

        def decay(tau: float) -> float:
            return math.exp(-1 / tau) if rewarded else 1 - 1 / tau

        amplitude = scale if tau_trace is None else scale / tau_trace
        if rewarded:
            fields = {
                "eligibility": 0.0 if tau_trace is None else decay(tau_trace),
                "modulation_delay": 1,
                **fields,
            }
        return cls(
            **{
                "decay_pre": decay(tau_pre),
                "decay_post": decay(tau_post),
                "a_plus": amplitude,
                "a_minus": amplitude,
                "dependence": "proportional",
                "evaluate": "call" if step_mode == "m" else "step",
                **fields,
            }
        )

    @classmethod
    def bindsnet_postpre(
        cls: type[Rule],
        nu: float | Sequence[float],
        *,
        wmin: float = -math.inf,
        wmax: float = math.inf,
        weight_decay: float = 0.0,
        reduction: Literal["sum", "mean"] = "sum",
        tc_trace: float | Sequence[float] = 20.0,
        trace_scale: float | Sequence[float] = 1.0,
        traces_additive: bool = False,
        dt: float = 1.0,
    ) -> Rule:
        """`bindsnet.learning.PostPre` (BindsNET 0.3.4).

        Layout: pre and post are the spikes of the connection's source and target at each step, as a monitor of "s"
        records them; BindsNET's weights are [source.n, target.n] and ours their transpose:
        `stdp(w.t()[None], pre, post[:, :, None], rule)`. A convolutional connection's w is as `stdp_conv` has it.

        Args:
            nu: learning rates (pre-synaptic spike: depression, post-synaptic spike: potentiation), or one for both.
            wmin, wmax: of the connection; where one is finite the weights are clamped at each step.
            weight_decay: per step, after the update and before the clamp. (This rule decays first: the amplitudes are
                scaled by 1 − weight_decay, which comes to the same.)
            reduction: over the batch, `torch.sum` (BindsNET's default) or `torch.mean`.
            tc_trace: time constant of the layers' traces, in the unit of dt; of source and target, or one for both.
            trace_scale: what a spike adds to its trace, or sets it to; of source and target, or one for both.
            traces_additive: of both layers. False, BindsNET's default, is nearest pairing.
            dt: of the network.

        Raises:
            ValueError: a time constant or dt is not positive, a pair is no pair, or as STDPRule.
        """
        a_minus, a_plus = _pair("nu", nu)
        keep = 1 - weight_decay
        return cls(
            **_traces(tc_trace, trace_scale, traces_additive, dt),
            a_plus=a_plus * keep,
            a_minus=a_minus * keep,
            weight_decay=weight_decay,
            w_min=wmin,
            w_max=wmax,
            clamp="never" if math.isinf(wmin) and math.isinf(wmax) else "step",
            reduction=reduction,
        )

    @classmethod
    def bindsnet_weight_dependent(
        cls: type[Rule],
        nu: float | Sequence[float],
        *,
        wmin: float,
        wmax: float,
        reduction: Literal["sum", "mean"] = "sum",
        tc_trace: float | Sequence[float] = 20.0,
        trace_scale: float | Sequence[float] = 1.0,
        traces_additive: bool = False,
        dt: float = 1.0,
    ) -> Rule:
        """`bindsnet.learning.WeightDependentPostPre` (BindsNET 0.3.4) without weight decay.

        Potentiation by (wmax − w), depression by (w − wmin), both read at each step. Layout and arguments as for
        `bindsnet_postpre`; wmin and wmax are finite, and the weights lie between them when training begins.

        Raises:
            ValueError: as `bindsnet_postpre`.
        """
        a_minus, a_plus = _pair("nu", nu)
        return cls(
            **_traces(tc_trace, trace_scale, traces_additive, dt),
            **_soft_bounds(wmin, wmax, 1.0),
            a_plus=a_plus,
            a_minus=a_minus,
            reduction=reduction,
        )

    @classmethod
    def bindsnet_diehl_cook(
        cls: type[Rule],
        nu: float | Sequence[float],
        *,
        wmax: float,
        wmin: float = -math.inf,
        x_tar: float = 0.0,
        mu: float = 1.0,
        reduction: Literal["sum", "mean"] = "sum",
        tc_trace: float | Sequence[float] = 20.0,
        trace_scale: float | Sequence[float] = 1.0,
        traces_additive: bool = False,
        dt: float = 1.0,
    ) -> Rule:
        """`bindsnet.learning.DiehlAndCook` (BindsNET 0.3.4) without weight decay: Diehl & Cook (2015), section 2.3.

        At a post-synaptic spike w grows by nu · (x − x_tar) · (wmax − w)^mu. Its multi-compartment twin in
        `bindsnet.learning.MCC_learning` is the same with range = (wmin, wmax). Layout and the other arguments as for
        `bindsnet_postpre`.

        Args:
            nu: learning rate; of a pair the second, as in BindsNET.
            wmax: finite; the weights do not exceed it when training begins.
            wmin: anything below −1e6 is −1e6, as bounds are finite here.
            x_tar: target of the pre-synaptic trace.
            mu: exponent of the weight dependence.

        Raises:
            ValueError: as `bindsnet_postpre`.
        """
        return cls(
            **_traces(tc_trace, trace_scale, traces_additive, dt),
            **_soft_bounds(max(wmin, _NEVER_REACHED), wmax, mu),
            a_plus=_pair("nu", nu)[1],
            a_minus=0.0,
            x_target=x_tar,
            reduction=reduction,
        )

    @classmethod
    def norse(
        cls: type[Rule],
        stdp_algorithm: Literal["additive", "additive_step", "multiplicative_pow", "multiplicative_relu"] = "additive",
        *,
        a_pre: float = 1.0,
        a_post: float = 1.0,
        tau_pre_inv: float = 1 / 50e-3,
        tau_post_inv: float = 1 / 50e-3,
        w_min: float = 0.0,
        w_max: float = 1.0,
        eta_plus: float = 1e-3,
        eta_minus: float = 1e-3,
        mu: float = 0.0,
        hardbound: bool = True,
        dt: float = 0.001,
    ) -> Rule:
        """`norse.torch.functional.stdp.stdp_step_linear` (Norse 1.1.0), T times; its parameters are `STDPParameters`.

        Layout: z_pre [B, I] and z_post [B, J] of the T steps stacked, w [J, I]:
        `stdp(w[None], z_pre, z_post[:, :, None], rule)`. `stdp_step_conv2d` is the same rule in `stdp_conv`.

        Traces are of the Euler form with the spike inside: decay 1 − dt/τ, gain a · dt/τ.

        Args:
            stdp_algorithm: "additive" | "additive_step" ([w < w_max], [w > w_min]) | "multiplicative_pow"
                ((w_max − w)^mu, (w − w_min)^mu; beyond a bound it is 0, where Norse has NaN for a broken mu) |
                "multiplicative_relu".
            a_pre, a_post: contribution of a spike to its trace.
            tau_pre_inv, tau_post_inv: inverse time constants in 1/s.
            w_min, w_max, hardbound: bounds of the weights; with hardbound they are clamped at each step.
            eta_plus, eta_minus: learning rates of potentiation and depression.
            mu: exponent of "multiplicative_pow".
            dt: step in s.

        Raises:
            ValueError: stdp_algorithm is unknown, dt · tau_inv is outside [0, 1], or as STDPRule.
        """
        if stdp_algorithm not in _ALGORITHMS:
            raise ValueError(
                f"STDPRule.norse: stdp_algorithm must be one of {tuple(_ALGORITHMS)}, got {stdp_algorithm!r}"
            )
        for name, inverse in (("tau_pre_inv", tau_pre_inv), ("tau_post_inv", tau_post_inv)):
            if not 0 <= dt * inverse <= 1:
                raise ValueError(f"STDPRule.norse: dt * {name} must be in [0, 1], got {dt} * {inverse}")
        return cls(
            decay_pre=1 - dt * tau_pre_inv,
            decay_post=1 - dt * tau_post_inv,
            gain_pre=dt * tau_pre_inv * a_pre,
            gain_post=dt * tau_post_inv * a_post,
            a_plus=eta_plus,
            a_minus=eta_minus,
            dependence=_ALGORITHMS[stdp_algorithm],
            exponent=mu if stdp_algorithm == "multiplicative_pow" else 1.0,
            evaluate="step",
            w_min=w_min,
            w_max=w_max,
            clamp="step" if hardbound else "never",
        )


def _traces(
    tc_trace: float | Sequence[float], trace_scale: float | Sequence[float], traces_additive: bool, dt: float
) -> dict[str, Any]:
    """The fields that follow from the two layers of a BindsNET connection."""
    taus, scales = _pair("tc_trace", tc_trace), _pair("trace_scale", trace_scale)
    for name, value in (("tc_trace", min(taus)), ("dt", dt)):
        if not value > 0:
            raise ValueError(f"STDPRule: {name} must be > 0, got {value}")
    return {
        "decay_pre": math.exp(-dt / taus[0]),
        "decay_post": math.exp(-dt / taus[1]),
        "gain_pre": scales[0],
        "gain_post": scales[1],
        "pairing": "all" if traces_additive else "nearest",
    }


def _soft_bounds(wmin: float, wmax: float, exponent: float) -> dict[str, Any]:
    """The fields of BindsNET's weight-dependent rules."""
    return {
        "dependence": "soft",
        "exponent": exponent,
        "evaluate": "step",
        "w_min": wmin,
        "w_max": wmax,
        "clamp": "step",
    }


def _pair(name: str, value: float | Sequence[float]) -> tuple[float, float]:
    """One number for both sides, or (pre, post)."""
    if isinstance(value, (int, float)):
        return value, value
    pair = tuple(value)
    if len(pair) != 2:
        raise ValueError(f"STDPRule: {name} must be a number or a pair (pre, post), got {len(pair)} values")
    return pair
