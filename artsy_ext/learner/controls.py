"""The methods that Artsy is compared with: each at its best, with settings from the literature or from held-out images.

Three kinds. Some read E0's features alone (`simplecil`, `lda`, `qda`, `ranpac`): what a sub-network must add to. Some
run one adapter for every sample (`aper`, `first-session`, `joint`, `finetune`): what one costs and brings. And `ease`
runs them all.
"""

import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import ConcatDataset, DataLoader, Dataset

from artsy_ext.data import Task
from artsy_ext.learner.context import Batch, Prediction, SeedContext
from artsy_ext.learner.training import (
    LinearHead,
    every_subnetwork,
    generator,
    images_per_batch,
    new_bank,
    own_features,
    train_adapter,
    train_subnetwork,
)
from artsy_ext.nn import (
    ClassGaussians,
    PrototypeHead,
    SubNetworkBank,
    Whitening,
    class_prototypes,
    covariance,
    within_class_covariance,
)
from artsy_ext.ops import plan_routes


def size_of(*modules: nn.Module) -> int:
    """Number of parameters."""
    return sum(p.numel() for module in modules for p in module.parameters())


def bytes_of(*tensors: Tensor) -> int:
    """What they take in memory."""
    return sum(t.numel() * t.element_size() for t in tensors)


def _used_prototypes(head: PrototypeHead) -> list[Tensor]:
    return [head.base_prototypes, head.prototypes[head.weight > 0]]


class Baseline(ABC):
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

    def whitening(self, first_h0: Tensor, labels: Tensor) -> Whitening:
        """As Artsy's: by the pre-training data, or by the first task where there is none."""
        statistics = self.context.statistics
        if statistics is None:
            statistics = first_h0.mean(0), within_class_covariance(first_h0, labels)
        return Whitening(*statistics, self.config.whitening_shrinkage).to(self.device)

    @torch.no_grad()
    def passed(self, dataset: Dataset[Any], run: Callable[[Tensor], Tensor]) -> Tensor:
        """run(images) for all images of a data set, batch by batch."""
        loader = DataLoader(dataset, images_per_batch(self.vit), generator=torch.Generator())
        return torch.cat([run(images.to(self.device)) for images, _ in loader])


class SimpleCIL(Baseline):
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
        return {"total": 0, "per_task": 0, "statistics_bytes": bytes_of(*kept)}


class LDA(Baseline):
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
        return {"total": 0, "per_task": 0, "statistics_bytes": bytes_of(self.means, self.covariances)}


class QDA(Baseline):
    """Quadratic discriminant analysis: Artsy's Gaussians of E0's features, without its synapses and sub-networks."""

    def __init__(self, context: SeedContext) -> None:
        super().__init__(context)
        self.white: Whitening | None = None
        self.gaussians = self.new_gaussians(self.vit.dim)

    def new_gaussians(self, dim: int) -> ClassGaussians:
        """Full covariances, whatever Artsy's budget is."""
        return ClassGaussians(dim, "full", shrinkage=self.config.covariance_shrinkage).to(self.device)

    def learn(self, task: Task, h0: Tensor, labels: Tensor) -> None:
        self.white = self.white or self.whitening(h0, labels)
        classes = range(task.classes[0], task.classes[-1] + 1)
        self.gaussians.add_task(self.read(h0, task), labels, classes, self.num_tasks)

    def read(self, h0: Tensor, task: Task) -> Tensor:
        """[n, features] of a task's training images."""
        assert self.white is not None
        return self.white(h0)

    @torch.no_grad()
    def predict(self, batch: Batch) -> Prediction:
        assert self.white is not None
        return Prediction(self.gaussians.log_likelihood(self.white(batch.h0)).argmax(1), None)

    def parameters(self) -> dict[str, float]:
        assert self.white is not None
        kept = 0 if self.context.statistics else bytes_of(self.white.mean, self.white.matrix)
        return {"total": 0, "per_task": 0, "statistics_bytes": self.gaussians.num_bytes + kept}


class RanPAC(Baseline):
    """Ridge regression on random features of E0's features: RanPAC (McDonnell et al., NeurIPS 2023) without an adapter.

    The ridge is chosen at each task on a fifth of the task's training images held out, by squared error as there.
    """

    width = 2000
    ridges = tuple(10.0**k for k in range(-4, 2))

    def __init__(self, context: SeedContext) -> None:
        super().__init__(context)
        self.random = generator(context.seed, "ranpac")
        self.white: Whitening | None = None
        M = self.width
        self.projection = torch.randn(self.vit.dim, M, generator=self.random).to(self.device)
        self.gram = torch.zeros(M, M, device=self.device)
        self.sums = torch.zeros(M, 0, device=self.device)
        self.weight = self.sums

    def features(self, h0: Tensor) -> Tensor:
        """[B, D] -> [B, M]."""
        assert self.white is not None
        return F.relu(self.white(h0) @ self.projection / self.vit.dim**0.5)

    def learn(self, task: Task, h0: Tensor, labels: Tensor) -> None:
        self.white = self.white or self.whitening(h0, labels)
        x, num_classes = self.features(h0), task.classes[-1] + 1
        y = F.one_hot(labels, num_classes).to(x)
        sums = F.pad(self.sums, (0, num_classes - self.sums.shape[1]))
        order = torch.randperm(len(x), generator=self.random)
        held, train = order[: len(x) // 5], order[len(x) // 5 :]
        gram, part = self.gram + x[train].t() @ x[train], sums + x[train].t() @ y[train]
        errors = [(x[held] @ self._solve(gram, part, ridge) - y[held]).square().mean().item() for ridge in self.ridges]
        best = self.ridges[errors.index(min(errors))] if len(held) else 1.0
        self.gram, self.sums = self.gram + x.t() @ x, sums + x.t() @ y
        self.weight = self._solve(self.gram, self.sums, best)

    def _solve(self, gram: Tensor, sums: Tensor, ridge: float) -> Tensor:
        """Ridges are multiples of the mean diagonal element of `gram`."""
        ridge = ridge * gram.diagonal().mean().item()
        root = torch.linalg.cholesky(gram.double() + ridge * torch.eye(len(gram), device=gram.device))
        return torch.cholesky_solve(sums.double(), root).to(sums)

    def predict(self, batch: Batch) -> Prediction:
        return Prediction((self.features(batch.h0) @ self.weight).argmax(1), None)

    def parameters(self) -> dict[str, float]:
        triangle = self.width * (self.width + 1) // 2
        assert self.white is not None
        kept = bytes_of(self.sums) + triangle * self.gram.element_size()
        kept += 0 if self.context.statistics else bytes_of(self.white.mean, self.white.matrix)
        return {"total": 0, "per_task": 0, "statistics_bytes": kept}


class FirstSession(QDA):
    """One adapter, trained on the first task and run for every sample: full Gaussians in [z; z_1].

    Artsy's read-out where one sub-network serves all tasks, at its best.
    """

    def __init__(self, context: SeedContext) -> None:
        super().__init__(context)
        self.bank: SubNetworkBank | None = None
        self.gaussians = self.new_gaussians(2 * self.vit.dim)

    def fit_task(self, task: Task) -> None:
        seconds = 0.0
        if self.bank is None:
            self.bank, seconds = self.adapter(task)
        super().fit_task(task)
        self.training_seconds += seconds

    def adapter(self, task: Task) -> tuple[SubNetworkBank, float]:
        """The adapter, and the seconds that its training took: Artsy's first sub-network."""
        return self.context.subnetwork(task.train, torch.tensor(sorted(task.classes)), 0)

    def own(self, images: Tensor) -> Tensor:
        """[B, D] the adapter's features."""
        assert self.bank is not None
        return own_features(self.vit, self.bank, images)

    def read(self, h0: Tensor, task: Task) -> Tensor:
        return self.joined(h0, self.passed(task.train, self.own))

    def joined(self, h0: Tensor, own: Tensor) -> Tensor:
        """[B, 2D]"""
        assert self.white is not None
        return torch.cat([self.white(h0), self.white(own)], 1)

    @torch.no_grad()
    def predict(self, batch: Batch) -> Prediction:
        x = self.joined(batch.h0, self.own(batch.images))
        return Prediction(self.gaussians.log_likelihood(x).argmax(1), None)

    def parameters(self) -> dict[str, float]:
        assert self.bank is not None
        total = size_of(self.bank)
        return {**super().parameters(), "total": total, "per_task": total / self.num_tasks}


class FirstSessionMatched(FirstSession):
    """The same with as many epochs as Artsy's sub-networks have together."""

    def adapter(self, task: Task) -> tuple[SubNetworkBank, float]:
        c = self.context
        config = replace(self.config, epochs=self.config.epochs * len(c.stream.tasks))
        labels = torch.tensor(sorted(task.classes))
        return train_subnetwork(self.vit, task.train, labels, config, seed=c.seed, task=0, progress=c.progress)


class APER(FirstSession):
    """APER with an adapter (Zhou et al., IJCV 2024): cosine to the classes' mean directions in [h0; h_1], centred."""

    def __init__(self, context: SeedContext) -> None:
        super().__init__(context)
        self.mean: Tensor | None = None
        self.prototypes = torch.zeros(0, 2 * self.vit.dim, device=self.device)

    def learn(self, task: Task, h0: Tensor, labels: Tensor) -> None:
        self.mean = self.centre(h0) if self.mean is None else self.mean
        x = self.joined(h0, self.passed(task.train, self.own))
        new = class_prototypes(x, labels, range(task.classes[0], task.classes[-1] + 1))
        self.prototypes = torch.cat([self.prototypes, new])

    def joined(self, h0: Tensor, own: Tensor) -> Tensor:
        assert self.mean is not None
        return torch.cat([h0 - self.mean, own - self.mean], 1)

    @torch.no_grad()
    def predict(self, batch: Batch) -> Prediction:
        x = self.joined(batch.h0, self.own(batch.images))
        return Prediction((F.normalize(x, dim=1) @ self.prototypes.t()).argmax(1), None)

    def parameters(self) -> dict[str, float]:
        assert self.bank is not None
        total = size_of(self.bank)
        kept = [self.prototypes] + ([] if self.mean is None or self.context.statistics else [self.mean])
        return {"total": total, "per_task": total / self.num_tasks, "statistics_bytes": bytes_of(*kept)}


class EASE(Baseline):
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
        features = self.passed(task.train, lambda images: every_subnetwork(self.vit, self.bank, images))
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
        mask = torch.ones(len(batch.images), self.num_tasks, dtype=torch.bool, device=self.device)
        routes = plan_routes(mask)
        features = self.vit.subnetwork_features(self.vit.embed(batch.images), self.bank, routes)
        return Prediction(self.head(features, routes, batch.h0).argmax(1), mask)

    def parameters(self) -> dict[str, float]:
        assert self.head is not None
        total = size_of(self.bank)
        kept = _used_prototypes(self.head) + ([] if self.context.statistics else [self.head.mean])
        return {"total": total, "per_task": total / self.num_tasks, "statistics_bytes": bytes_of(*kept)}


class Finetune(Baseline):
    """One adapter with a linear head over all classes so far, trained on task after task."""

    uses_h0 = False

    def __init__(self, context: SeedContext) -> None:
        super().__init__(context)
        self.random = generator(context.seed, "one adapter")
        self.bank = new_bank(self.vit, self.config, 1, self.random)
        self.head = LinearHead(self.vit.dim, 0, self.random).to(self.device)

    def learn(self, task: Task, h0: Tensor, labels: Tensor) -> None:
        self.num_seen = task.classes[-1] + 1
        wider = LinearHead(self.vit.dim, self.num_seen, self.random).to(self.device)
        with torch.no_grad():
            wider.weight[: len(self.head.weight)] = self.head.weight
            wider.bias[: len(self.head.bias)] = self.head.bias
        self.head = wider
        train_adapter(
            self.vit,
            self.bank,
            self.head,
            task.train,
            lambda y: y,
            self.config,
            learning_rate=self.config.learning_rate,
            generator=self.random,
            progress=self.context.progress,
            description="adapter",
        )

    @torch.no_grad()
    def predict(self, batch: Batch) -> Prediction:
        logits = self.head(own_features(self.vit, self.bank, batch.images))
        return Prediction(logits.argmax(1), None)

    def parameters(self) -> dict[str, float]:
        total = size_of(self.bank, self.head)
        return {"total": total, "per_task": total / self.num_tasks, "statistics_bytes": 0}


class Joint(FirstSession):
    """What forgetting nothing would give: one adapter, trained once on all tasks together; answers as `first-session`.

    After task t it is asked about the classes seen until then, and chooses among these.
    """

    def adapter(self, task: Task) -> tuple[SubNetworkBank, float]:
        c = self.context
        everything: ConcatDataset[Any] = ConcatDataset([t.train for t in c.stream.tasks])
        labels = torch.arange(c.stream.num_classes)
        config = replace(self.config, epochs=self.config.joint_epochs)
        return train_subnetwork(self.vit, everything, labels, config, seed=c.seed, task=0, progress=c.progress)
