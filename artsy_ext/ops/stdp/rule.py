"""STDPRule: which STDP is meant. Triplet and Traces belong to it."""

import math
from dataclasses import dataclass, fields
from typing import Any, Literal, NamedTuple, get_args, get_origin, get_type_hints

from torch import Tensor

from artsy_ext.ops.stdp.peers import PeerRules


class Traces(NamedTuple):
    """What STDP carries from one call to the next.

    Feeding it back in makes chunks of time equal the whole, unless the rule looks at the call: evaluate="call" with a
    dependence on W, or clamp="end". A field that the rule does not keep is None.
    """

    pre: Tensor
    """[B, I] or [B, S, I] (as pre) trace of the pre-synaptic spikes, x."""
    post: Tensor
    """[B, S, J] trace of the post-synaptic spikes, y."""
    pre_slow: Tensor | None = None
    """As pre: the slow trace of a triplet rule."""
    post_slow: Tensor | None = None
    """As post: the slow trace of a triplet rule."""
    eligibility: Tensor | None = None
    """[B, S, J, I] eligibility of every synapse, for every sample."""


@dataclass(frozen=True)
class Triplet:
    """The slow traces and triplet amplitudes of Pfister & Gerstner (J. Neurosci. 2006).

    Potentiation gains a_plus_3 · (slow post trace) and depression a_minus_3 · (slow pre trace), each decayed to this
    step but without its spike. decay_* per step, in [0, 1].
    """

    decay_pre_slow: float
    decay_post_slow: float
    a_plus_3: float
    a_minus_3: float

    def __post_init__(self) -> None:
        for name in ("decay_pre_slow", "decay_post_slow"):
            _check_unit("Triplet", name, getattr(self, name))
        for name in ("a_plus_3", "a_minus_3"):
            _check_finite("Triplet", name, getattr(self, name))


@dataclass(frozen=True)
class STDPRule(PeerRules):
    """An STDP rule; `artsy_ext.ops.stdp` says what each step does with it.

    Every combination is legal; a field that has no effect is ignored. Rules of other packages by name: `spikingjelly`,
    `bindsnet_postpre`, `bindsnet_weight_dependent`, `bindsnet_diehl_cook` and `norse`.

    Raises:
        ValueError: a word is unknown, a decay is outside [0, 1], a number is NaN, exponent < 0, w_min > w_max, or soft
            bounds are not finite.
    """

    decay_pre: float = 0.0
    """Decay of the pre-synaptic trace per step, in [0, 1]: exp(−dt/τ); 0 forgets, so that only coincidences count."""
    decay_post: float = 0.0
    """Decay of the post-synaptic trace per step, in [0, 1]."""
    gain_pre: float = 1.0
    """What a spike adds to its trace (or sets it to, for nearest pairing)."""
    gain_post: float = 1.0
    a_plus: float | Tensor = 0.01
    """Amplitude of potentiation: a number or [S]. Differentiable. Where it changes from call to call under
    torch.compile, pass a tensor: a number is compiled in."""
    a_minus: float | Tensor = 0.01
    """Amplitude of depression: as a_plus."""
    x_target: float = 0.0
    """Subtracted from the pre-synaptic trace in potentiation (Diehl & Cook, 2015)."""
    pairing: Literal["all", "nearest"] = "all"
    """"all": a spike adds to its trace. "nearest": it sets it."""
    timing: Literal["inclusive", "exclusive"] = "inclusive"
    """"inclusive": a coincident pair counts in both terms. "exclusive": in neither."""
    dependence: Literal["none", "proportional", "soft", "hard"] = "none"
    """f₊, f₋ = 1 | W, W | max(w_max−W, 0)^exponent, max(W−w_min, 0)^exponent | [W<w_max], [W>w_min]."""
    exponent: float = 1.0
    """Of the soft bounds, >= 0."""
    evaluate: Literal["call", "step"] = "call"
    """When f reads W: once before the first step, or at each step after the decay of W."""
    w_min: float = -math.inf
    w_max: float = math.inf
    clamp: Literal["never", "end", "step"] = "never"
    """When W is clamped to [w_min, w_max]."""
    reduction: Literal["sum", "mean"] = "sum"
    """Over the batch; "mean" divides by B whatever the mask."""
    weight_decay: float = 0.0
    """Per step, in [0, 1]: W ← (1 − weight_decay) · W before the update."""
    eligibility: float | None = None
    """Decay per step, in [0, 1], of an eligibility trace that modulation then multiplies; None for no trace."""
    modulation_delay: Literal[0, 1] = 0
    """With eligibility: 0 reads the trace with this step's pairs, 1 as the step before left it."""
    triplet: Triplet | None = None

    def __post_init__(self) -> None:
        for name in ("decay_pre", "decay_post", "weight_decay"):
            _check_unit("STDPRule", name, getattr(self, name))
        if self.eligibility is not None:
            _check_unit("STDPRule", "eligibility", self.eligibility)
        for name in ("gain_pre", "gain_post", "x_target", "exponent"):
            _check_finite("STDPRule", name, getattr(self, name))
        if self.exponent < 0:
            raise ValueError(f"STDPRule: exponent must be >= 0, got {self.exponent}")
        for name in ("a_plus", "a_minus"):
            if not isinstance(getattr(self, name), Tensor):
                _check_finite("STDPRule", name, getattr(self, name))
        for name, known in _WORDS.items():
            if getattr(self, name) not in known:
                raise ValueError(f"STDPRule: {name} must be one of {known}, got {getattr(self, name)!r}")
        if not self.w_min <= self.w_max:
            raise ValueError(f"STDPRule: w_min must be <= w_max, got w_min={self.w_min}, w_max={self.w_max}")
        if self.dependence == "soft" and not (math.isfinite(self.w_min) and math.isfinite(self.w_max)):
            raise ValueError(
                f"STDPRule: soft bounds need finite w_min and w_max, got w_min={self.w_min}, w_max={self.w_max}"
            )
        if self.triplet is not None and not isinstance(self.triplet, Triplet):
            raise TypeError(f"STDPRule: triplet must be a Triplet or None, got {type(self.triplet).__name__}")

    @classmethod
    def from_time_constants(
        cls,
        tau_pre: float,
        tau_post: float,
        dt: float = 1.0,
        discretization: Literal["exact", "euler"] = "exact",
        **rule_fields: Any,
    ) -> "STDPRule":
        """A rule from time constants, in the unit of dt (ms, say): decays exp(−dt/τ) ("exact") or 1 − dt/τ ("euler").

        Raises:
            ValueError: a time constant or dt is not positive, discretization is unknown, or dt > τ with "euler".
        """
        if discretization not in ("exact", "euler"):
            raise ValueError(f"STDPRule: discretization must be 'exact' or 'euler', got {discretization!r}")
        for name, value in (("tau_pre", tau_pre), ("tau_post", tau_post), ("dt", dt)):
            if not value > 0:
                raise ValueError(f"STDPRule: {name} must be > 0, got {value}")

        def decay(tau: float) -> float:
            return math.exp(-dt / tau) if discretization == "exact" else 1 - dt / tau

        return cls(decay_pre=decay(tau_pre), decay_post=decay(tau_post), **rule_fields)

    def flatten(self) -> dict[str, Any]:
        """The keyword arguments of the op's schema: all fields but the two amplitudes, triplet as four numbers."""
        flat = {f.name: getattr(self, f.name) for f in fields(self) if f.name not in ("a_plus", "a_minus")}
        t = self.triplet
        flat["triplet"] = None if t is None else [t.decay_pre_slow, t.decay_post_slow, t.a_plus_3, t.a_minus_3]
        return flat

    @classmethod
    def unflatten(cls, a_plus: Tensor, a_minus: Tensor, **flat: Any) -> "STDPRule":
        """The inverse of `flatten`."""
        triplet = flat.pop("triplet")
        return cls(a_plus=a_plus, a_minus=a_minus, triplet=None if triplet is None else Triplet(*triplet), **flat)


_WORDS = {name: get_args(hint) for name, hint in get_type_hints(STDPRule).items() if get_origin(hint) is Literal}


def _check_unit(owner: str, name: str, value: float) -> None:
    if not 0 <= value <= 1:
        raise ValueError(f"{owner}: {name} must be in [0, 1], got {value}")


def _check_finite(owner: str, name: str, value: float) -> None:
    if not -math.inf < value < math.inf:
        raise ValueError(f"{owner}: {name} must be finite, got {value}")
