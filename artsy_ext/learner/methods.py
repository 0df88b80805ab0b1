"""The methods that a run compares: Artsy, its ablations, EASE, and the baselines, by name in METHODS."""

import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import ConcatDataset, DataLoader, Dataset

from artsy_ext.data import Images, Stream, Task
from artsy_ext.learner.classifier import ArtsyClassifier, Silence
from artsy_ext.learner.config import LearnerConfig
from artsy_ext.learner.features import Features
from artsy_ext.learner.progress import Progress
from artsy_ext.learner.training import (
    LinearHead,
    generator,
    images_per_batch,
    new_bank,
    own_features,
    train_adapter,
    train_subnetwork,
)
from artsy_ext.nn import (
    ArtsyNetwork,
    PrototypeHead,
    STDPSynapses,
    SubNetworkBank,
    class_prototypes,
    covariance,
)
from artsy_ext.ops import Routes, plan_routes


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


def _size(*modules: nn.Module) -> int:
    """Number of parameters."""
    return sum(p.numel() for module in modules for p in module.parameters())


def _bytes(*tensors: Tensor) -> int:
    return sum(t.numel() * t.element_size() for t in tensors)


def _prototypes(head: PrototypeHead) -> list[Tensor]:
    """Those that are used."""
    return [head.base_prototypes, head.prototypes[head.weight > 0]]


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
        network, statistics = self.network, self.classifier.statistics_
        synapses = network.synapses
        total = synapses.num_weights + (_size(network.bank) if self.runs_subnetworks else 0)
        kept = [statistics.mean, statistics.covariance]
        if self.context.statistics is None:
            kept += [network.whitening.mean, network.whitening.matrix]
        if self.runs_subnetworks:
            kept += _prototypes(network.head)
        return {"total": total, "per_task": total / self.classifier.num_tasks, "statistics_bytes": _bytes(*kept)}


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


class _Synapses(_WithClassifier):
    runs_subnetworks = False

    @torch.no_grad()
    def predict(self, batch: Batch) -> Prediction:
        synapses = self.network.synapses
        assert isinstance(synapses, STDPSynapses)
        return Prediction(synapses.classify(self.network.whitening(batch.h0)), None)


class _Baseline(ABC):
    """A method with a state of its own; times its own training."""

    uses_h0 = True
    silent_fraction: float | None = None

    def __init__(self, context: SeedContext) -> None:
        self.context, self.vit, self.config, self.device = context, context.vit, context.config, context.device
        self.training_seconds = 0.0
        self.num_tasks = 0

    def fit_task(self, task: Task) -> None:
        h0 = self.context.h0(task.train) if self.uses_h0 else torch.empty(0)
        start = time.perf_counter()
        self.learn(task, h0, task.train.labels.to(self.device))
        self.training_seconds += time.perf_counter() - start
        if self.uses_h0:
            self.training_seconds += self.context.features.seconds(task.train)
        self.num_tasks += 1

    @abstractmethod
    def learn(self, task: Task, h0: Tensor, labels: Tensor) -> None:
        """Learns the next task from its images, or E0's features of them [n, D] (if it uses them) and labels [n]."""

    def centre(self, first_h0: Tensor) -> Tensor:
        """What features are centred by: µ of the pre-training data, or of the first task where there is none."""
        statistics = self.context.statistics
        return first_h0.mean(0) if statistics is None else statistics[0].to(self.device)


class _SimpleCIL(_Baseline):
    """Cosine to the classes' mean directions in E0's features (after SimpleCIL, Zhou et al., 2023), centred."""

    def __init__(self, context: SeedContext) -> None:
        super().__init__(context)
        self.mean: Tensor | None = None
        self.prototypes = torch.zeros(0, self.vit.dim, device=self.device)

    def learn(self, task: Task, h0: Tensor, labels: Tensor) -> None:
        self.mean = self.centre(h0) if self.mean is None else self.mean
        new = class_prototypes(h0 - self.mean, labels, range(task.classes[0], task.classes[-1] + 1))
        self.prototypes = torch.cat([self.prototypes, new])

    def predict(self, batch: Batch) -> Prediction:
        assert self.mean is not None
        logits = F.normalize(batch.h0 - self.mean, dim=1) @ self.prototypes.t()
        return Prediction(logits.argmax(1), None)

    def parameters(self) -> dict[str, float]:
        kept = [self.prototypes] + ([] if self.mean is None or self.context.statistics else [self.mean])
        return {"total": 0, "per_task": 0, "statistics_bytes": _bytes(*kept)}


class _LDA(_Baseline):
    """Linear discriminant analysis on E0's features: class means and the mean of the classes' covariances."""

    # Among the best of 1e-6 … 5e-2 on a held-out quarter of the demo's training data, all tasks taken together: more
    # than a method of the stream may know, in favour of this control.
    shrinkage = 1e-4

    def __init__(self, context: SeedContext) -> None:
        super().__init__(context)
        self.means = torch.zeros(0, self.vit.dim, device=self.device)
        self.covariances = torch.zeros(self.vit.dim, self.vit.dim, device=self.device)

    def learn(self, task: Task, h0: Tensor, labels: Tensor) -> None:
        rows = [h0[labels == c] for c in task.classes]
        self.means = torch.cat([self.means, torch.stack([r.mean(0) for r in rows])])
        self.covariances = self.covariances + torch.stack([covariance(r) for r in rows]).sum(0)

    def predict(self, batch: Batch) -> Prediction:
        shared = self.covariances / len(self.means)
        # Classes of a single sample have no covariance: nearest class mean then.
        identity = torch.eye(len(shared), device=self.device) * shared.diagonal().mean().clamp(min=1e-12)
        shared = (1 - self.shrinkage) * shared + self.shrinkage * identity
        directions = torch.linalg.solve(shared, self.means.t())
        logits = batch.h0 @ directions - (self.means.t() * directions).sum(0) / 2
        return Prediction(logits.argmax(1), None)

    def parameters(self) -> dict[str, float]:
        return {"total": 0, "per_task": 0, "statistics_bytes": _bytes(self.means, self.covariances)}


class _EASE(_Baseline):
    """After EASE (Zhou et al., CVPR 2024): every sub-network runs for every sample, missing prototypes are synthesised.

    A strengthened form: it adds E0's cosine (an option there), centres features, and synthesises in residual form and
    with a sharp softmax, where the published one mixes plain prototypes. Its weight of the other spaces is divided by
    their number, ours is not; its adapters have a scale of 0.1, ours `LearnerConfig.scale`.

    The logit of a class is its cosine in E0's space, plus that in its own sub-network's space, plus 0.1 times those in
    the other sub-networks' spaces. In the space of a sub-network younger than the class, the prototype is synthesised
    in residual form, p_(c,0) + Σ softmax(similarity/0.1)·(p_(new,b) − p_(new,0)), with the similarity read in the
    class's own space, and normalised.
    """

    others = 0.1
    temperature = 0.1

    def __init__(self, context: SeedContext) -> None:
        super().__init__(context)
        self.bank = new_bank(self.vit, self.config, 0)
        self.head: PrototypeHead | None = None

    def fit_task(self, task: Task) -> None:
        subnetwork, seconds = self.context.subnetwork(task.train, torch.tensor(sorted(task.classes)), self.num_tasks)
        self.bank.append(subnetwork)
        super().fit_task(task)
        self.training_seconds += seconds

    @torch.no_grad()
    def learn(self, task: Task, h0: Tensor, labels: Tensor) -> None:
        loader = DataLoader(task.train, images_per_batch(self.vit), generator=torch.Generator())
        rows = [self._run(images.to(self.device))[0] for images, _ in loader]
        # Pairs are sorted by sub-network.
        features = torch.cat([r.view(self.bank.num_subnetworks, -1, self.vit.dim) for r in rows], 1).transpose(0, 1)
        if self.head is None:
            self.head = PrototypeHead(self.centre(h0), reduce="sum")
        head, t = self.head, self.num_tasks
        old, new = range(head.num_classes), range(task.classes[0], task.classes[-1] + 1)
        head.add_task(h0, features[:, t], labels, new)
        for s in range(t):
            head.prototypes[s, new.start :] = class_prototypes(features[:, s] - head.mean, labels, new)
        own = head.weight.argmax(0)
        for c in old:
            space = head.prototypes[own[c]]
            similarity = (space[new.start :] @ space[c] / self.temperature).softmax(0)
            residual = head.prototypes[t, new.start :] - head.base_prototypes[new.start :]
            head.prototypes[t, c] = F.normalize(head.base_prototypes[c] + similarity @ residual, dim=0)
        head.weight[head.weight == 0] = self.others

    @torch.no_grad()
    def predict(self, batch: Batch) -> Prediction:
        assert self.head is not None
        features, routes = self._run(batch.images)
        mask = torch.ones(len(batch.images), self.num_tasks, dtype=torch.bool, device=self.device)
        return Prediction(self.head(features, routes, batch.h0).argmax(1), mask)

    def _run(self, images: Tensor) -> tuple[Tensor, Routes]:
        """All sub-networks on all images: features [B·S, D] in route order, and the plan."""
        routes = plan_routes(torch.ones(len(images), self.bank.num_subnetworks, dtype=torch.bool, device=self.device))
        return self.vit.subnetwork_features(self.vit.embed(images), self.bank, routes), routes

    def parameters(self) -> dict[str, float]:
        assert self.head is not None
        total = _size(self.bank)
        kept = _prototypes(self.head) + ([] if self.context.statistics else [self.head.mean])
        return {"total": total, "per_task": total / self.num_tasks, "statistics_bytes": _bytes(*kept)}


class _OneAdapter(_Baseline):
    """One adapter with a linear head over all classes."""

    uses_h0 = False

    def __init__(self, context: SeedContext) -> None:
        super().__init__(context)
        self.random = generator(context.seed, "one adapter")
        self.num_seen = 0
        self.bank = new_bank(self.vit, self.config, 1, self.random)
        self.head = LinearHead(self.vit.dim, 0, self.random).to(self.device)

    def _train(self, dataset: Dataset[Any], num_classes: int) -> None:
        wider = LinearHead(self.vit.dim, num_classes, self.random).to(self.device)
        with torch.no_grad():
            wider.weight[: len(self.head.weight)] = self.head.weight
            wider.bias[: len(self.head.bias)] = self.head.bias
        self.head = wider
        train_adapter(
            self.vit,
            self.bank,
            self.head,
            dataset,
            lambda y: y,
            self.config,
            learning_rate=self.config.baseline_learning_rate,
            generator=self.random,
            progress=self.context.progress,
            description="adapter",
        )

    @torch.no_grad()
    def predict(self, batch: Batch) -> Prediction:
        logits = self.head(own_features(self.vit, self.bank, batch.images))
        return Prediction(logits[:, : self.num_seen].argmax(1), None)

    def parameters(self) -> dict[str, float]:
        total = _size(self.bank, self.head)
        return {"total": total, "per_task": total / self.num_tasks, "statistics_bytes": 0}


class _Finetune(_OneAdapter):
    def learn(self, task: Task, h0: Tensor, labels: Tensor) -> None:
        self.num_seen = task.classes[-1] + 1
        self._train(task.train, self.num_seen)


class _Joint(_OneAdapter):
    """What forgetting nothing would give: trained once, on all tasks together.

    After task t it is asked about the classes seen until then, and chooses among these.
    """

    def learn(self, task: Task, h0: Tensor, labels: Tensor) -> None:
        tasks = self.context.stream.tasks
        if task is tasks[0]:
            self._train(ConcatDataset([t.train for t in tasks]), self.context.stream.num_classes)
        self.num_seen = task.classes[-1] + 1


@dataclass(frozen=True)
class MethodSpec:
    """A method by name: a line about it, and how it is made."""

    summary: str
    create: Callable[[SeedContext], Method]

    def __call__(self, context: SeedContext) -> Method:
        return self.create(context)


METHODS: dict[str, MethodSpec] = {
    "finetune": MethodSpec("one adapter and head, trained on task after task: forgets", _Finetune),
    "random": MethodSpec("Artsy with random sub-networks, as many as Artsy runs", _Random),
    "simplecil": MethodSpec("cosine to the classes' mean directions in E0's features", _SimpleCIL),
    "ease": MethodSpec("after EASE, strengthened: every sub-network runs for every sample", _EASE),
    "lda": MethodSpec("linear discriminant analysis of E0's features", _LDA),
    "synapses": MethodSpec("the STDP synapses' own units answer, no sub-network runs", _Synapses),
    "artsy": MethodSpec("synapses trained by STDP decide which sub-networks run", _WithClassifier),
    "artsy-mlp": MethodSpec("two-layer synapses decide which sub-networks run", lambda c: _WithClassifier(c, "mlp")),
    "joint": MethodSpec("one adapter and head, trained once on all tasks together", _Joint),
    "oracle": MethodSpec("Artsy told the true sub-network of every sample", _Oracle),
}
