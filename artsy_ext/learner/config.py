"""LearnerConfig: every setting of the learner and its baselines, in one place."""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class LearnerConfig:
    """Settings of `ArtsyClassifier` and the methods; the defaults are those of the demo.

    The thresholds of silence were chosen on a held-out quarter of the demo's training data (stream `digits`, seeds 0 to
    2), so that about 30 % of the synapses are silent. The others come from earlier experiments on that stream.

    Raises:
        ValueError: a setting is out of its range.
    """

    # Sub-networks (and the adapters of the baselines)
    rank: int = 16
    """R, the adapters' bottleneck."""
    scale: float = 0.3
    """Factor of the adapters' outputs."""
    epochs: int = 20
    batch_size: int = 32
    learning_rate: float = 2e-2
    """Of AdamW, with cosine decay to 0."""
    baseline_learning_rate: float = 1e-2
    """The same for `finetune` and `joint`."""
    weight_decay: float = 1e-4
    shift: int = 2
    """Training images are shifted at random by up to so many pixels."""
    head_scale: float = 16.0
    """Factor of the cosines in the training head, and of the logits in `predict_proba`."""

    # Synapses
    quantile: float = 0.02
    """q: thresholds are the q-quantile of a task's own scores."""
    fallback: Literal["top", "none"] = "top"
    """Where no score reaches its threshold: the highest is functional, or none is."""
    stdp_steps: int = 8
    stdp_rate: float = 0.2
    stdp_epochs: int = 5
    consolidate: bool = True
    """STDP synapses below the thresholds are silent: they learn but do not transmit."""
    consolidate_on: float = 0.12
    consolidate_off: float = 0.08
    mlp_hidden: int = 32
    mlp_steps: int = 300

    def __post_init__(self) -> None:
        for name in ("rank", "epochs", "batch_size", "stdp_steps", "stdp_epochs", "mlp_hidden", "mlp_steps"):
            if getattr(self, name) < 1:
                raise ValueError(f"LearnerConfig: {name} must be >= 1, got {getattr(self, name)}")
        for name in ("learning_rate", "baseline_learning_rate", "weight_decay", "shift", "stdp_rate"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"LearnerConfig: {name} must be >= 0, got {getattr(self, name)}")
        if not 0 <= self.quantile < 1:
            raise ValueError(f"LearnerConfig: quantile must be in [0, 1), got {self.quantile}")
        if self.fallback not in ("top", "none"):
            raise ValueError(f"LearnerConfig: fallback must be 'top' or 'none', got {self.fallback!r}")
        if not 0 <= self.consolidate_off <= self.consolidate_on:
            raise ValueError(
                "LearnerConfig: consolidate_off and consolidate_on must satisfy 0 <= off <= on, "
                f"got {self.consolidate_off} and {self.consolidate_on}"
            )
