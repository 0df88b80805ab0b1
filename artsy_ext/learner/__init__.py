"""The continual learner (extra `learn`): ArtsyClassifier, the methods it is compared with, and the runs that do it."""

from artsy_ext.learner.classifier import ArtsyClassifier
from artsy_ext.learner.config import LearnerConfig
from artsy_ext.learner.experiment import ExperimentResult, run_experiment
from artsy_ext.learner.methods import METHODS, Prediction, SeedContext

__all__ = [
    "METHODS",
    "ArtsyClassifier",
    "ExperimentResult",
    "LearnerConfig",
    "Prediction",
    "SeedContext",
    "run_experiment",
]
