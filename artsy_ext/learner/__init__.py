"""The continual learner (extra `learn`): ArtsyClassifier, the methods it is compared with, and the runs that do it."""

from artsy_ext.learner.backbones import Backbone, open_backbone
from artsy_ext.learner.classifier import ArtsyClassifier
from artsy_ext.learner.config import LearnerConfig, RunConfig
from artsy_ext.learner.experiment import ExperimentResult, run_experiment
from artsy_ext.learner.features import Features
from artsy_ext.learner.methods import METHODS, Batch, Prediction, SeedContext
from artsy_ext.learner.run import FinishedRun, Run

__all__ = [
    "METHODS",
    "ArtsyClassifier",
    "Backbone",
    "Batch",
    "ExperimentResult",
    "Features",
    "FinishedRun",
    "LearnerConfig",
    "Prediction",
    "Run",
    "RunConfig",
    "SeedContext",
    "open_backbone",
    "run_experiment",
]
