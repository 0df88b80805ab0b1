"""LearnerConfig: every setting of the learner and its baselines, in one place."""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class LearnerConfig:
    """Settings of `ArtsyClassifier` and the methods; the defaults are those of the demo."""

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


def default_config() -> LearnerConfig:
    """The settings of the demo."""
    return LearnerConfig()
