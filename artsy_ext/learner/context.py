"""What a method sees of an experiment: its features, stream and settings; and what is asked of it."""

from typing import Any, NamedTuple, Protocol

from torch import Tensor
from torch.utils.data import Dataset

from artsy_ext.data import Images, Stream, Task
from artsy_ext.learner.classifier import ArtsyClassifier
from artsy_ext.learner.config import LearnerConfig
from artsy_ext.learner.features import Features
from artsy_ext.learner.progress import Progress
from artsy_ext.learner.training import train_subnetwork
from artsy_ext.nn import SubNetworkBank


class Batch(NamedTuple):
    """Samples that a method is asked about."""

    images: Tensor
    """[B, channels, height, width], on the backbone's device."""
    h0: Tensor
    """[B, D] E0's features of the images."""
    tasks: Tensor
    """[B] int64, the true task of each sample, which only `oracle` looks at."""


class Prediction(NamedTuple):
    """What a method answers for a batch."""

    labels: Tensor
    """[B] int64 class indexes in stream order."""
    mask: Tensor | None
    """[B, S] bool functional sub-networks; None where the method has no sub-networks to choose from."""


class Method(Protocol):
    """What `run_experiment` asks of a method."""

    @property
    def uses_h0(self) -> bool:
        """Whether it answers from E0's features."""

    @property
    def training_seconds(self) -> float:
        """So far, including E0's features and what else other methods use, too."""

    @property
    def silent_fraction(self) -> float | None:
        """Share of synaptic weights that are silent; None where that has no meaning."""

    def fit_task(self, task: Task) -> None:
        """Learns the next task."""

    def predict(self, batch: Batch) -> Prediction:
        """Answers a batch."""

    def parameters(self) -> dict[str, float]:
        """Trainable parameters added to E0 ("total", and "per_task" on average) and "statistics_bytes" stored."""


class SeedContext:
    """What the methods share for one seed, so that a task's sub-network and synapses are trained once.

    Args:
        stream: what the methods learn; only `joint` looks ahead in it.
        features: E0's features; their network is E0.
        statistics: mean and within-class covariance of its features over its pre-training data, or None.
        config, seed: of all methods.
        progress: where bars are shown.
        subnetworks: those trained before for the same stream, seed and `SUBNETWORK_SETTINGS`, by task; new ones are
            added.
    """

    def __init__(
        self,
        stream: Stream,
        features: Features,
        statistics: tuple[Tensor, Tensor] | None,
        config: LearnerConfig,
        seed: int,
        progress: Progress,
        *,
        subnetworks: dict[int, tuple[SubNetworkBank, float]] | None = None,
    ) -> None:
        self.stream, self.features, self.vit = stream, features, features.vit
        self.device = self.vit.device
        self.statistics, self.config, self.seed, self.progress = statistics, config, seed, progress
        self._subnetworks = {} if subnetworks is None else subnetworks
        self._classifiers: dict[str, ArtsyClassifier] = {}

    def subnetwork(self, dataset: Dataset[Any], labels: Tensor, task: int) -> tuple[SubNetworkBank, float]:
        """The sub-network of a task, and the seconds that its training took, whoever asked first."""
        if task not in self._subnetworks:
            self._subnetworks[task] = train_subnetwork(
                self.vit, dataset, labels, self.config, seed=self.seed, task=task, progress=self.progress
            )
        return self._subnetworks[task]

    def h0(self, images: Images) -> Tensor:
        """[n, D]: E0's features on its device."""
        return self.features.h0(images).to(self.device)

    def release(self) -> None:
        """Lets go of the stream: classifiers that go on from here train their sub-networks themselves."""
        for classifier in self._classifiers.values():
            classifier.subnetwork_trainer = None

    def adopt(self, classifier: ArtsyClassifier) -> None:
        """Takes one that has learned already for the one with its kind of synapses."""
        self._classifiers[classifier.synapse] = classifier

    def classifier(self, synapse: str) -> ArtsyClassifier:
        """The one classifier with these synapses, which `artsy`, its ablations and its controls share."""
        if synapse not in self._classifiers:
            self._classifiers[synapse] = ArtsyClassifier(
                self.vit.backbone,
                self.statistics,
                synapse=synapse,
                config=self.config,
                seed=self.seed,
                progress=self.progress,
                subnetwork_trainer=self.subnetwork,
            )
        return self._classifiers[synapse]
