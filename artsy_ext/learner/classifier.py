"""ArtsyClassifier: the continual learner as an estimator. fit_task, predict, save, load."""

import copy
import hashlib
import json
import os
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

import safetensors.torch
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from artsy_ext.data import Images
from artsy_ext.learner._files import foreign, replacing
from artsy_ext.learner.config import LearnerConfig
from artsy_ext.learner.progress import Progress
from artsy_ext.learner.training import generator, images_per_batch, new_bank, own_features, train_subnetwork
from artsy_ext.nn import (
    SYNAPSES,
    ArtsyNetwork,
    ClassStatistics,
    PrototypeHead,
    RoutedViT,
    SubNetworkBank,
    SynapseBank,
    Whitening,
    within_class_covariance,
)

# Trains a task's sub-network, or brings one trained before, with the seconds that its training took.
SubNetworkTrainer = Callable[[Dataset[tuple[Tensor, ...]], Tensor, int], tuple[SubNetworkBank, float]]

_FORMAT = 1
_FILES = ("model.json", "model.safetensors")


class Silence(NamedTuple):
    """What share of the synapses was silent around one task, each in [0, 1].

    Attributes:
        by_epoch: of all, before the first pass over the task and after each.
        of_each: of the synapse of each sub-network there is, when the task was learned.
    """

    by_epoch: list[float]
    of_each: list[float]


class _SilenceWatch:
    """Goes through the passes over a task, and looks at the synapses before each."""

    def __init__(self, synapses: SynapseBank, progress: Progress) -> None:
        self.synapses, self.progress = synapses, progress
        self.by_epoch: list[float | None] = []

    def track(self, passes: Iterable[int], description: str) -> Iterator[int]:
        for number in self.progress.track(passes, description):
            self.by_epoch.append(self.synapses.silent_fraction)
            yield number

    def found(self) -> list[Silence]:
        last, of_each = self.synapses.silent_fraction, self.synapses.silent_fractions
        if last is None or of_each is None:
            return []
        return [Silence([*(f for f in self.by_epoch if f is not None), last], of_each.tolist())]


class ArtsyClassifier:
    """Learns task after task, and keeps no image of any.

    Sub-networks, prototypes and statistics stay as they were when their task was learned; synapses and thresholds learn
    on, so that they tell new tasks from old ones.

    Args:
        backbone: E0, a pre-trained timm ViT; it is frozen.
        statistics: mean [D] and within-class covariance [D, D] of its features over its pre-training data; None takes
            those of the first task.
        synapse: "stdp" or "mlp".
        config: all settings.
        seed: of every random number.
        progress: where bars are shown; none by default.
        subnetwork_trainer: brings the sub-network of a task; trains it by default.

    Attributes:
        classes_: labels in the order in which they were learned.
        task_of_class_: [C] the task of each of them.
        class_names_: [C] what people call them; None unless somebody sets it. Saved.
        network_: the `ArtsyNetwork`, from the first task on.
        statistics_: the `ClassStatistics` that are kept of the tasks.
        silence_: for each task that was learned, what share of the synapses was silent; empty where they never are. Not
            saved.
        seconds_: training time so far: E0's "features", "subnetworks", "prototypes" and "synapses". Not saved.
    """

    def __init__(
        self,
        backbone: nn.Module,
        statistics: tuple[Tensor, Tensor] | None = None,
        *,
        synapse: str = "stdp",
        config: LearnerConfig | None = None,
        seed: int = 0,
        progress: Progress | None = None,
        subnetwork_trainer: SubNetworkTrainer | None = None,
    ) -> None:
        if synapse not in SYNAPSES:
            raise ValueError(f"ArtsyClassifier: synapse must be one of {', '.join(SYNAPSES)}, got {synapse!r}")
        self.vit = RoutedViT(backbone)
        self.synapse, self.seed = synapse, seed
        self.config = config or LearnerConfig()
        self.progress = progress or Progress.silent()
        self.classes_: list[int] = []
        self.task_of_class_: list[int] = []
        self.class_names_: list[str] | None = None
        self.network_: ArtsyNetwork | None = None
        self.statistics_: ClassStatistics
        self.silence_: list[Silence] = []
        self.seconds_ = {"features": 0.0, "subnetworks": 0.0, "prototypes": 0.0, "synapses": 0.0}
        D = self.vit.dim
        if statistics is not None and [list(s.shape) for s in statistics] != [[D], [D, D]]:
            raise ValueError(
                f"ArtsyClassifier: statistics must be mean [{D}] and covariance [{D}, {D}], "
                f"got {' and '.join(str(list(s.shape)) for s in statistics)}"
            )
        self._whitening = None if statistics is None else self._new_whitening(*statistics)
        self.subnetwork_trainer = subnetwork_trainer

    @property
    def num_tasks(self) -> int:
        """Tasks learned so far."""
        return self.task_of_class_[-1] + 1 if self.task_of_class_ else 0

    def fit_task(self, dataset: Dataset[tuple[Tensor, ...]], *, features: Tensor | None = None) -> "ArtsyClassifier":
        """Learns the next task: a new sub-network, its synapse, and the prototypes of its classes.

        Args:
            dataset: (image [channels, height, width], label) pairs; its labels must be new.
            features: [n, D] E0's features of its images, where they are known; None computes them.

        Raises:
            ValueError: the data set is empty, its labels are no integers, it brings a class that an earlier task had,
                or there are not as many features as images.

        Whatever is raised, nothing is changed.
        """
        labels = self._labels(dataset)
        if not len(labels):
            raise ValueError("fit_task: dataset must not be empty")
        if labels.dtype.is_floating_point or labels.dtype == torch.bool or labels.dim() != 1:
            raise ValueError(f"fit_task: dataset must have integer labels, got {labels.dtype} {list(labels.shape[1:])}")
        names = labels.unique()
        known = sorted(set(names.tolist()) & set(self.classes_))
        if known:
            raise ValueError(f"fit_task: dataset must bring new classes, got {known} again")
        if features is not None and features.shape != (len(labels), self.vit.dim):
            raise ValueError(
                f"fit_task: features must be {[len(labels), self.vit.dim]}, one row per image, "
                f"got {list(features.shape)}"
            )
        task, first = self.num_tasks, len(self.classes_)
        classes = range(first, first + len(names))
        y = (first + torch.searchsorted(names, labels)).to(self.vit.device)

        seconds = dict(self.seconds_)
        subnetwork, training = (self.subnetwork_trainer or self._train_subnetwork)(dataset, names, task)
        seconds["subnetworks"] += training

        if features is None:
            start = time.perf_counter()
            features = self._features(dataset, lambda x: self.vit.base_features(self.vit.embed(x)))
            seconds["features"] += time.perf_counter() - start
        h0 = features.to(self.vit.device)

        start = time.perf_counter()
        own = self._features(dataset, lambda x: own_features(self.vit, subnetwork, x))
        if self.network_ is None:
            network, statistics = self._new_network(h0, y)
        else:  # copies, so that a failure on the way leaves what was learned before
            network, statistics = copy.deepcopy((self.network_, self.statistics_), {id(self.vit): self.vit})
        network.bank.append(subnetwork)
        network.head.add_task(h0, own, y, classes)
        seconds["prototypes"] += time.perf_counter() - start

        start = time.perf_counter()
        z = network.whitening(h0)
        statistics.add_task(z, y, classes)
        watch = _SilenceWatch(network.synapses, self.progress)
        network.synapses.fit_task(z, y, statistics, generator(self.seed, f"synapses {self.synapse}", task), watch.track)
        seconds["synapses"] += time.perf_counter() - start

        self.network_, self.statistics_, self.seconds_ = network, statistics, seconds
        self.silence_ = self.silence_ + watch.found()
        self.classes_ = self.classes_ + names.tolist()
        self.task_of_class_ = self.task_of_class_ + [task] * len(names)
        return self

    @torch.no_grad()
    def decision_function(self, images: Tensor, *, mask: Tensor | None = None) -> Tensor:
        """[B, channels, height, width] -> logits [B, C], columns as `classes_`; mask as in `ArtsyNetwork`."""
        mask = None if mask is None else mask.to(self.vit.device)
        return self._fitted()(images.to(self.vit.device), mask=mask)

    def predict(self, images: Tensor, *, mask: Tensor | None = None) -> Tensor:
        """[B, channels, height, width] -> [B] int64 labels."""
        logits = self.decision_function(images, mask=mask)
        return torch.tensor(self.classes_, device=logits.device)[logits.argmax(1)]

    def predict_proba(self, images: Tensor, *, mask: Tensor | None = None) -> Tensor:
        """[B, channels, height, width] -> [B, C]: softmax of the logits at the training head's scale.

        Classes of silent sub-networks have probability 0, unless no sub-network is functional: then E0's prototypes
        alone answer, for all classes.
        """
        return self._probabilities(self.decision_function(images, mask=mask))

    @torch.no_grad()
    def predict_with_mask(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Probabilities [B, C], as `predict_proba`, and the mask [B, S], as `synapse_mask`, in one look at images."""
        network = self._fitted()
        first, h0 = network.base(images.to(self.vit.device))
        mask = network.functional(h0)
        return self._probabilities(network.answer(first, h0, mask)), mask

    @torch.no_grad()
    def synapse_mask(self, images: Tensor) -> Tensor:
        """[B, channels, height, width] -> [B, S] bool: the functional sub-networks."""
        return self._fitted().synapse_mask(images.to(self.vit.device))

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes the folder `path`: what was learned (safetensors) and the settings (JSON), without E0.

        The folder is written beside and renamed; an earlier checkpoint is replaced.

        Raises:
            FileExistsError: `path` is a file, or a folder that holds something else than a checkpoint.
        """
        path = Path(path).resolve()
        network = self._fitted()
        if path.is_file():
            raise FileExistsError(f"save: {path} is a file, expected a folder")
        others = foreign(path, _FILES) if path.exists() else []
        if others:
            raise FileExistsError(f"save: {path} must be a checkpoint or empty to be replaced, but holds {others[0]}")
        modules = {"network": network, "statistics": self.statistics_}
        tensors = {
            f"{name}.{key}": value.contiguous()
            for name, module in modules.items()
            for key, value in module.state_dict().items()
            if not key.startswith("vit.")
        }
        facts = {
            "format": _FORMAT,
            "synapse": self.synapse,
            "seed": self.seed,
            "backbone": self.vit.fingerprint(),
            "classes": self.classes_,
            "task_of_class": self.task_of_class_,
            "class_names": self.class_names_,
            "config": asdict(self.config),
        }
        with replacing(path) as folder:
            safetensors.torch.save_file(tensors, folder / "model.safetensors")
            facts["weights"] = _sha256((folder / "model.safetensors").read_bytes())
            facts["checksum"] = _checksum(facts)
            (folder / "model.json").write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, path: str | os.PathLike[str], backbone: nn.Module) -> "ArtsyClassifier":
        """The classifier saved in the folder `path`, over the same backbone that it was trained with.

        It predicts as it did, and goes on learning.

        Raises:
            FileNotFoundError: there is no checkpoint.
            ValueError: there is something else, or the checkpoint is damaged, has a newer format or is for another
                backbone.
        """
        path = Path(path)
        try:
            facts = json.loads((path / "model.json").read_text(encoding="utf-8"))
        except ValueError as error:
            raise ValueError(f"load: {path / 'model.json'} is damaged: {error}") from None
        if not isinstance(facts, dict) or not isinstance(facts.get("format"), int):
            raise ValueError(f"load: {path} holds no checkpoint of this package")
        if facts["format"] > _FORMAT:
            raise ValueError(
                f"load: {path} has format {facts['format']}, this version of artsy_ext reads up to {_FORMAT}"
            )
        if facts.get("checksum") != _checksum(facts):
            raise ValueError(f"load: {path / 'model.json'} is damaged: its checksum does not match")
        classifier = cls(
            backbone, synapse=facts["synapse"], config=LearnerConfig(**facts["config"]), seed=facts["seed"]
        )
        found = classifier.vit.fingerprint()
        if found != facts["backbone"]:
            raise ValueError(
                f"load: backbone must be the one that {path} was trained with (SHA-256 of its weights "
                f"{facts['backbone'][:12]}…), got {found[:12]}…"
            )
        D = classifier.vit.dim
        classifier._whitening = classifier._new_whitening(torch.zeros(D), torch.eye(D))
        network, statistics = classifier._new_network(torch.empty(0, D), torch.empty(0))
        try:
            weights = (path / "model.safetensors").read_bytes()
        except FileNotFoundError:
            raise FileNotFoundError(f"load: {path} is not complete: there is no model.safetensors") from None
        if _sha256(weights) != facts["weights"]:
            raise ValueError(f"load: {path / 'model.safetensors'} is damaged: its checksum does not match")
        device = classifier.vit.device
        tensors = {key: value.to(device) for key, value in safetensors.torch.load(weights).items()}
        state = {key.removeprefix("network."): value for key, value in tensors.items() if key.startswith("network.")}
        state |= {f"vit.{key}": value for key, value in classifier.vit.state_dict().items()}
        network.load_state_dict(state)
        network.requires_grad_(False)
        statistics.load_state_dict(
            {key.removeprefix("statistics."): value for key, value in tensors.items() if key.startswith("statistics.")}
        )
        classifier.network_, classifier.statistics_ = network, statistics
        classifier.classes_, classifier.task_of_class_ = facts["classes"], facts["task_of_class"]
        classifier.class_names_ = facts["class_names"]
        return classifier

    def _new_network(self, h0: Tensor, y: Tensor) -> tuple[ArtsyNetwork, ClassStatistics]:
        whitening = self._whitening
        if whitening is None:
            whitening = self._new_whitening(h0.mean(0), within_class_covariance(h0, y))
        network = ArtsyNetwork(
            self.vit,
            new_bank(self.vit, self.config, 0),
            whitening,
            self._new_synapses(),
            PrototypeHead(whitening.mean),
        )
        return network.to(self.vit.device), ClassStatistics(self.vit.dim).to(self.vit.device)

    def _new_whitening(self, mean: Tensor, within_covariance: Tensor) -> Whitening:
        return Whitening(mean, within_covariance, self.config.whitening_shrinkage).to(self.vit.device)

    def _new_synapses(self) -> SynapseBank:
        c = self.config
        options: dict[str, Any] = {
            "quantile": c.quantile,
            "fallback": c.fallback,
            "held_out": c.held_out,
            "calibration_samples": c.calibration_samples,
        }
        if self.synapse == "stdp":
            options |= {"steps": c.stdp_steps, "rate": c.stdp_rate, "epochs": c.stdp_epochs}
            options |= {"batch_size": c.stdp_batch_size}
            if c.consolidate:
                options |= {"on": c.consolidate_on, "off": c.consolidate_off}
        else:
            options |= {"hidden": c.mlp_hidden, "steps": c.mlp_steps, "batch_size": c.mlp_batch_size}
            options |= {"learning_rate": c.mlp_learning_rate, "weight_decay": c.mlp_weight_decay}
        return SYNAPSES[self.synapse](self.vit.dim, **options)

    def _train_subnetwork(
        self, dataset: Dataset[tuple[Tensor, ...]], labels: Tensor, task: int
    ) -> tuple[SubNetworkBank, float]:
        return train_subnetwork(
            self.vit, dataset, labels, self.config, seed=self.seed, task=task, progress=self.progress
        )

    def _labels(self, dataset: Dataset[tuple[Tensor, ...]]) -> Tensor:
        if isinstance(dataset, Images):
            return dataset.labels
        return torch.cat([y for _, y in self._batches(dataset)]) if len(dataset) else torch.empty(0)  # type: ignore[arg-type]

    @torch.no_grad()
    def _features(self, dataset: Dataset[tuple[Tensor, ...]], features: Callable[[Tensor], Tensor]) -> Tensor:
        return torch.cat([features(x.to(self.vit.device)) for x, _ in self._batches(dataset)])

    def _batches(self, dataset: Dataset[tuple[Tensor, ...]]) -> DataLoader[tuple[Tensor, ...]]:
        # With a generator of its own it does not draw from PyTorch's random state.
        return DataLoader(dataset, images_per_batch(self.vit), generator=torch.Generator())

    def _probabilities(self, logits: Tensor) -> Tensor:
        return (self.config.head_scale * logits).softmax(1)

    def _fitted(self) -> ArtsyNetwork:
        if self.network_ is None:
            raise RuntimeError("ArtsyClassifier: no task has been learned; call fit_task first")
        return self.network_


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _checksum(facts: dict[str, Any]) -> str:
    """Of everything in model.json but itself."""
    others = {name: value for name, value in facts.items() if name != "checksum"}
    return _sha256(json.dumps(others, sort_keys=True).encode())
