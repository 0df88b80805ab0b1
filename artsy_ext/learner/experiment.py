"""Runs methods over a stream, seed by seed, and measures them: the loop behind `artsy train`.

A method sees the tasks one after another and, after each, is asked about the test samples of all tasks so far.
`metrics` turns its answers into numbers, `results` turns the numbers of all seeds into the record that `report` shows.
"""

from __future__ import annotations

import difflib
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import ConcatDataset, DataLoader

from artsy_ext.data import Stream, Task
from artsy_ext.learner import metrics
from artsy_ext.learner.classifier import ArtsyClassifier
from artsy_ext.learner.config import LearnerConfig
from artsy_ext.learner.features import Features
from artsy_ext.learner.methods import METHODS, Batch, Method, Prediction, SeedContext
from artsy_ext.learner.progress import Progress
from artsy_ext.learner.results import aggregate, build_results
from artsy_ext.learner.training import images_per_batch

__all__ = ["ExperimentResult", "check_methods", "evaluate", "measure", "run_experiment"]


@dataclass(frozen=True)
class ExperimentResult:
    """What `run_experiment` returns.

    Attributes:
        results: the content of results.json.
        classifier: that of the method `artsy`, fitted on the first seed's stream; None if it was not asked for.
    """

    results: dict[str, Any]
    classifier: ArtsyClassifier | None


def check_methods(names: Iterable[str]) -> tuple[str, ...]:
    """The names without repetitions, all of them keys of `METHODS`.

    Raises:
        ValueError: for an unknown name, with the nearest known ones; and if there is no name at all.
    """
    unique = tuple(dict.fromkeys(names))
    if not unique:
        raise ValueError(f"methods: expected at least one of {', '.join(METHODS)}")
    for name in unique:
        if name not in METHODS:
            nearest = difflib.get_close_matches(name, METHODS)
            suggestion = f"did you mean {' or '.join(nearest)}? " if nearest else ""
            raise ValueError(f"methods: {name!r} is not known; {suggestion}(known: {', '.join(METHODS)})")
    return unique


def run_experiment(
    build_stream: Callable[[int], Stream],
    features: Features,
    statistics: tuple[Tensor, Tensor] | None,
    methods: Sequence[str],
    seeds: Sequence[int],
    config: LearnerConfig,
    progress: Progress,
    *,
    arguments: Mapping[str, Any] | None = None,
) -> ExperimentResult:
    """Fit every method on the stream of every seed and measure it.

    All methods learn a task before any of them learns the next, so that they can share what they train for it. The
    same arguments on the same machine give the same results, times aside. PyTorch's random state is what it was
    before.

    Args:
        build_stream: from a seed to a stream.
        features: of the pre-trained network E0, which stays as it is.
        statistics: mean [D] and within-class covariance [D, D] of its features over its pre-training data, None if
            there are none.
        methods: keys of `METHODS`.
        seeds: one run each.
        config: settings of the methods.
        progress: where bars are shown.
        arguments: what else was asked for, noted in the results beside the configuration.

    Raises:
        ValueError: for an unknown method, and if there is no method or no seed.
    """
    names = check_methods(methods)
    if not seeds:
        raise ValueError("seeds: expected at least one")
    measured: dict[str, list[dict[str, Any]]] = {name: [] for name in names}
    classifier: ArtsyClassifier | None = None
    for seed in progress.track(seeds, "seeds"):
        data = build_stream(seed).hold(track=progress.track)
        context = SeedContext(data, features, statistics, config, seed, progress)
        for name, measurement in measure(context, names).items():
            measured[name].append(measurement)
        if classifier is None and "artsy" in names:
            classifier = context.classifier("stdp")
            classifier.class_names_ = list(data.class_names)
        name = data.name
        # The images of this seed need not wait in memory for those of the next; the classifier kept is not their owner.
        context.release()
        del context, data

    results = build_results(
        name,
        seeds,
        {**(arguments or {}), "config": asdict(config)},
        {name: {"summary": METHODS[name].summary, **aggregate(measured[name])} for name in names},
    )
    return ExperimentResult(results, classifier)


def evaluate(classifier: ArtsyClassifier, stream: Stream, features: Features, progress: Progress) -> dict[str, Any]:
    """Ask a classifier about the test samples of its tasks, as `run_experiment` does after the last one.

    Args:
        classifier: has learned the stream's classes, under the stream's labels.
        stream: its training images are not looked at.
        features: of the classifier's E0.
        progress: where bars are shown.

    Returns:
        `last_accuracy`, `accuracy` (of each task, %), `synapses`, `seconds` and `images_per_second`, as in results.json
        but plain numbers.
    """
    context = SeedContext(stream, features, None, classifier.config, classifier.seed, progress)
    context.adopt(classifier)
    name = "artsy" if classifier.synapse == "stdp" else "artsy-mlp"
    method, answers = METHODS[name](context), _Answers()
    _ask({name: method}, {name: answers}, stream.tasks, features, progress)
    targets, tasks = _truth(stream.tasks)
    right = (_as_asked(answers.labels[-1], stream) == _as_asked(targets, stream)).double()
    return {
        "last_accuracy": 100 * right.mean().item(),
        "accuracy": [100 * right[tasks == t].mean().item() for t in range(len(stream.tasks))],
        "synapses": _synapses(method, answers.mask, tasks),
        "seconds": {"inference": answers.seconds},
        "images_per_second": {"inference": len(targets) / answers.seconds},
    }


class _Answers:
    """What one method answered after each task, for the test samples of all tasks until then.

    Attributes:
        labels: [n] after each task.
        mask: [n, S] after the last one; None if the method has none.
        seconds: that the answers after the last one took, E0's features included.
    """

    def __init__(self) -> None:
        self.labels: list[Tensor] = []
        self.mask: Tensor | None = None
        self.seconds = 0.0


def measure(context: SeedContext, names: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Fit methods on all tasks of one seed; per method its fields in results.json, with plain values.

    PyTorch's random state is what it was before.
    """
    stream, progress = context.stream, context.progress
    answers = {name: _Answers() for name in names}
    # Methods draw from generators of their own; the seed is for what they call.
    with torch.random.fork_rng(range(torch.cuda.device_count())):
        torch.manual_seed(context.seed)
        methods = {name: METHODS[name](context) for name in names}
        for number, task in enumerate(progress.track(stream.tasks, "tasks")):
            for name in progress.track(names, "methods"):
                methods[name].fit_task(task)
            _ask(methods, answers, stream.tasks[: number + 1], context.features, progress)
    targets, tasks = _truth(stream.tasks)
    targets = _as_asked(targets, stream)
    for given in answers.values():
        given.labels = [_as_asked(labels, stream) for labels in given.labels]
    return {name: _figures(methods[name], answers[name], targets, tasks) for name in names}


def _as_asked(labels: Tensor, stream: Stream) -> Tensor:
    """What labels of classes count as."""
    return labels if stream.answers is None else torch.tensor(stream.answers)[labels]


def _truth(tasks: Sequence[Task]) -> tuple[Tensor, Tensor]:
    """Labels and tasks [n] of all test samples."""
    sizes = torch.tensor([len(task.test) for task in tasks])
    return torch.cat([task.test.labels for task in tasks]), torch.arange(len(sizes)).repeat_interleave(sizes)


def _ask(
    methods: Mapping[str, Method],
    answers: Mapping[str, _Answers],
    tasks: Sequence[Task],
    features: Features,
    progress: Progress,
) -> None:
    """Add every method's answers on the test samples of these tasks; each image is read once for all methods."""
    device, size = features.vit.device, images_per_batch(features.vit)
    h0 = torch.cat([features.h0(task.test) for task in tasks]).split(size)
    truth = _truth(tasks)[1].split(size)
    loader: DataLoader[Any] = DataLoader(
        ConcatDataset([task.test for task in tasks]), size, generator=torch.Generator()
    )
    parts: dict[str, list[Prediction]] = {name: [] for name in methods}
    seconds = dict.fromkeys(methods, 0.0)
    for (images, _), h0_batch, task_batch in zip(progress.track(loader, "test images"), h0, truth, strict=True):
        batch = Batch(images.to(device), h0_batch.to(device), task_batch.to(device))
        for name, method in methods.items():
            start = time.perf_counter()
            prediction = method.predict(batch)
            # Moving the answers to the CPU waits for the device, so the time is that of the whole work.
            mask = None if prediction.mask is None else prediction.mask.cpu()
            parts[name].append(Prediction(prediction.labels.cpu(), mask))
            seconds[name] += time.perf_counter() - start
    for name, predictions in parts.items():
        answers[name].labels.append(torch.cat([p.labels for p in predictions]))
        masks = [p.mask for p in predictions if p.mask is not None]
        answers[name].mask = torch.cat(masks) if masks else None
        if methods[name].uses_h0:
            seconds[name] += sum(features.seconds(task.test) for task in tasks)
        answers[name].seconds = seconds[name]


def _figures(method: Method, answers: _Answers, targets: Tensor, tasks: Tensor) -> dict[str, Any]:
    matrix = metrics.accuracy_matrix(answers.labels, targets, tasks)
    incremental = metrics.incremental_accuracies(answers.labels, targets, tasks)
    return {
        "average_accuracy": metrics.average_accuracy(incremental),
        "last_accuracy": metrics.last_accuracy(incremental),
        "accuracy_matrix": matrix,
        "incremental_accuracy": incremental,
        "forgetting": metrics.forgetting(matrix),
        "backward_transfer": metrics.backward_transfer(matrix),
        "synapses": _synapses(method, answers.mask, tasks),
        "parameters": method.parameters(),
        "seconds": {"training": method.training_seconds, "inference": answers.seconds},
        "images_per_second": {"inference": len(targets) / answers.seconds},
    }


def _synapses(method: Method, mask: Tensor | None, tasks: Tensor) -> dict[str, Any] | None:
    if mask is None:
        return None
    silence = getattr(method, "silence", None)  # of those with synapses of their own
    by_epoch = [task.by_epoch for task in silence] if silence else None
    # A square like the accuracies'.
    by_task = [task.of_each + [None] * (len(silence) - 1 - t) for t, task in enumerate(silence)] if silence else None
    return {
        "recall": metrics.synapse_recall(mask, tasks),
        "precision": metrics.synapse_precision(mask, tasks),
        "mean_functional": metrics.mean_functional(mask),
        "functional_counts": metrics.functional_counts(mask),
        "silent_fraction": method.silent_fraction,
        "silent_by_epoch": by_epoch,
        "silent_by_task": by_task,
        "routing_matrix": metrics.routing_matrix(mask, tasks),
    }
