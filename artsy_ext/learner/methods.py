"""The methods that a run compares, by name in METHODS: Artsy, its ablations, and its controls (`controls`)."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from artsy_ext.data import Task
from artsy_ext.learner import controls
from artsy_ext.learner.classifier import Silence
from artsy_ext.learner.context import Batch, Method, Prediction, SeedContext
from artsy_ext.learner.controls import bytes_of, size_of
from artsy_ext.learner.training import generator
from artsy_ext.nn import ArtsyNetwork, STDPSynapses

__all__ = ["METHODS", "MethodSpec"]


class _WithClassifier:
    """Artsy and what looks at the same classifier in another way.

    All methods of a context learn a task before any learns the next, so whoever comes first fits the classifier.
    """

    uses_h0 = True
    runs_subnetworks = True

    def __init__(self, context: SeedContext, synapse: str = "stdp") -> None:
        self.context = context
        self.classifier = context.classifier(synapse)
        self.h0_seconds = 0.0

    def fit_task(self, task: Task) -> None:
        self.h0_seconds += self.context.features.seconds(task.train)
        seen = len(self.classifier.classes_)
        if seen == task.classes[0]:
            self.classifier.fit_task(task.train, features=self.context.h0(task.train))
        elif seen != task.classes[-1] + 1:
            raise RuntimeError("methods that share a classifier must all learn a task before any learns the next")

    @property
    def network(self) -> ArtsyNetwork:
        network = self.classifier.network_
        assert network is not None, "fit_task comes first"
        return network

    @torch.no_grad()
    def predict(self, batch: Batch) -> Prediction:
        mask = self.choose(self.network.functional(batch.h0), batch.tasks)
        tokens = self.context.vit.embed(batch.images)
        return Prediction(self.network.answer(tokens, batch.h0, mask).argmax(1), mask)

    def choose(self, functional: Tensor, tasks: Tensor) -> Tensor:
        """[B, S] bool: the sub-networks that run, given those that the synapses make functional."""
        return functional

    @property
    def training_seconds(self) -> float:
        seconds = self.classifier.seconds_
        own = sum(seconds.values()) if self.runs_subnetworks else seconds["features"] + seconds["synapses"]
        return self.h0_seconds + own

    @property
    def silent_fraction(self) -> float | None:
        return self.network.synapses.silent_fraction

    @property
    def silence(self) -> list[Silence] | None:
        """Over the tasks; None where synapses are never silent, and of a classifier that was loaded."""
        return self.classifier.silence_ or None

    def parameters(self) -> dict[str, float]:
        network = self.network
        total = network.synapses.num_weights + (size_of(network.bank) if self.runs_subnetworks else 0)
        kept = network.decision.num_bytes if self.runs_subnetworks else network.decision.base.num_bytes
        if self.context.statistics is None:
            kept += bytes_of(network.whitening.mean, network.whitening.matrix)
        return {"total": total, "per_task": total / self.classifier.num_tasks, "statistics_bytes": kept}


class _Oracle(_WithClassifier):
    silent_fraction = None
    silence = None

    def choose(self, functional: Tensor, tasks: Tensor) -> Tensor:
        return F.one_hot(tasks.to(functional.device), functional.shape[1]).bool()


class _Random(_WithClassifier):
    silent_fraction = None
    silence = None

    def __init__(self, context: SeedContext) -> None:
        super().__init__(context)
        self.generator = generator(context.seed, "random")

    def choose(self, functional: Tensor, tasks: Tensor) -> Tensor:
        B, S = functional.shape
        # ⌊mean⌋ or ⌈mean⌉ sub-networks for each sample, so that the mean is Artsy's.
        count = (functional.sum().item() / max(B, 1) + torch.rand(B, 1, generator=self.generator)).floor()
        rank = torch.rand(B, S, generator=self.generator).argsort(1).argsort(1)
        return (rank < count).to(functional.device)


class _Shuffled(_WithClassifier):
    silent_fraction = None
    silence = None

    def choose(self, functional: Tensor, tasks: Tensor) -> Tensor:
        return functional.roll(1, dims=1)


class _Synapses(_WithClassifier):
    runs_subnetworks = False

    @torch.no_grad()
    def predict(self, batch: Batch) -> Prediction:
        synapses = self.network.synapses
        assert isinstance(synapses, STDPSynapses)
        return Prediction(synapses.classify(self.network.whitening(batch.h0)), None)


@dataclass(frozen=True)
class MethodSpec:
    """A method by name: a line about it, and how it is made."""

    summary: str
    create: Callable[[SeedContext], Method]

    def __call__(self, context: SeedContext) -> Method:
        return self.create(context)


METHODS: dict[str, MethodSpec] = {
    "finetune": MethodSpec("one adapter and head, trained on task after task: forgets", controls.Finetune),
    "random": MethodSpec("Artsy with random sub-networks, as many as Artsy runs", _Random),
    "shuffled": MethodSpec("Artsy where every synapse opens the next one's sub-network", _Shuffled),
    "simplecil": MethodSpec("cosine to the classes' mean directions in E0's features", controls.SimpleCIL),
    "lda": MethodSpec("linear discriminant analysis of E0's features", controls.LDA),
    "qda": MethodSpec("quadratic discriminant analysis of E0's features", controls.QDA),
    "ranpac": MethodSpec("ridge regression on 2000 random features of E0's features", controls.RanPAC),
    "synapses": MethodSpec("the STDP synapses' own units answer, no sub-network runs", _Synapses),
    "aper": MethodSpec("cosine in E0's and the first task's adapter's features", controls.APER),
    "first-session": MethodSpec("QDA in E0's and the first task's adapter's features", controls.FirstSession),
    "first-session-matched": MethodSpec("the same, trained as long as all of Artsy", controls.FirstSessionMatched),
    "ease": MethodSpec("after EASE, strengthened: every sub-network runs for every sample", controls.EASE),
    "artsy": MethodSpec("synapses trained by STDP decide which sub-networks run", _WithClassifier),
    "artsy-mlp": MethodSpec("two-layer synapses decide which sub-networks run", lambda c: _WithClassifier(c, "mlp")),
    "joint": MethodSpec("one adapter, trained once on all tasks together; QDA as first-session", controls.Joint),
    "oracle": MethodSpec("Artsy told the true sub-network of every sample", _Oracle),
}
