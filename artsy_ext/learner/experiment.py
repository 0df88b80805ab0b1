"""Runs methods over a stream, seed by seed, and measures them: the loop behind `artsy demo`.

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

from artsy_ext.data import STREAMS, Stream
from artsy_ext.learner import metrics
from artsy_ext.learner.classifier import ArtsyClassifier
from artsy_ext.learner.config import LearnerConfig
from artsy_ext.learner.methods import METHODS, Method, SeedContext
from artsy_ext.learner.progress import Progress
from artsy_ext.learner.results import aggregate, build_results

__all__ = ["ExperimentResult", "check_methods", "check_stream", "run_experiment"]

_TEST_BATCH = 512


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
        _check_known("methods", name, METHODS)
    return unique


def check_stream(name: str) -> Callable[[int], Stream]:
    """The function that builds the stream of this name from a seed.

    Raises:
        ValueError: for an unknown name, with the nearest known ones.
    """
    _check_known("stream", name, STREAMS)
    return STREAMS[name]


def run_experiment(
    stream: str | Callable[[int], Stream],
    backbone: torch.nn.Module,
    statistics: tuple[Tensor, Tensor] | None,
    methods: Sequence[str],
    seeds: Sequence[int],
    config: LearnerConfig,
    progress: Progress,
    *,
    command: Mapping[str, Any] | None = None,
) -> ExperimentResult:
    """Fit every method on the stream of every seed and measure it.

    All methods learn a task before any of them learns the next, so that they can share what they train for it. The
    same arguments on the same machine give the same results, times aside. PyTorch's random state is what it was
    before.

    Args:
        stream: a key of `artsy_ext.data.STREAMS`, or a function from a seed to a stream.
        backbone: the pre-trained network E0; stays as it is.
        statistics: mean [D] and within-class covariance [D, D] of its features over its pre-training data, None if
            there are none.
        methods: keys of `METHODS`.
        seeds: one run each.
        config: settings of the methods.
        progress: where bars are shown.
        command: arguments of the command that asked for this, noted in the results.

    Raises:
        ValueError: for an unknown stream or method, and if there is no method or no seed.
    """
    names = check_methods(methods)
    if not seeds:
        raise ValueError("seeds: expected at least one")
    build_stream = check_stream(stream) if isinstance(stream, str) else stream

    measured: dict[str, list[dict[str, Any]]] = {name: [] for name in names}
    classifier: ArtsyClassifier | None = None
    for seed in progress.track(seeds, "seeds"):
        data = build_stream(seed)
        context = SeedContext(data, backbone, statistics, config, seed, progress)
        # Methods draw from generators of their own; this is for what they call.
        with torch.random.fork_rng(range(torch.cuda.device_count())):
            torch.manual_seed(seed)
            for name, measurement in _measure(context, names, data, progress).items():
                measured[name].append(measurement)
        if classifier is None and "artsy" in names:
            classifier = context.classifier("stdp")

    results = build_results(
        data.name,
        seeds,
        {"command": dict(command or {}), "config": asdict(config)},
        {name: {"summary": METHODS[name].summary, **aggregate(measured[name])} for name in names},
    )
    return ExperimentResult(results, classifier)


class _Answers:
    """What one method answered after each task, for the test samples of all tasks until then."""

    def __init__(self) -> None:
        self.labels: list[Tensor] = []
        self.mask: Tensor | None = None
        self.seconds = 0.0

    def ask(self, method: Method, images: Tensor, tasks: Tensor) -> None:
        """Add the labels; mask and seconds are those of the last call."""
        start = time.perf_counter()
        parts = [
            method.predict(image_batch, task_batch)
            for image_batch, task_batch in zip(images.split(_TEST_BATCH), tasks.split(_TEST_BATCH), strict=True)
        ]
        # Moving the answers to the CPU waits for the device, so the time is that of the whole work.
        self.labels.append(torch.cat([part.labels.cpu() for part in parts]))
        masks = [part.mask.cpu() for part in parts if part.mask is not None]
        self.mask = torch.cat(masks) if masks else None
        self.seconds = time.perf_counter() - start


def _measure(
    context: SeedContext, names: Sequence[str], stream: Stream, progress: Progress
) -> dict[str, dict[str, Any]]:
    """Fit the methods on all tasks; per method a method's fields in results.json, with one seed's plain values."""
    images, targets = (torch.cat(parts) for parts in zip(*(task.test.tensors for task in stream.tasks), strict=True))
    sizes = torch.tensor([len(task.test) for task in stream.tasks])
    tasks = torch.arange(len(sizes)).repeat_interleave(sizes)

    methods = {name: METHODS[name](context) for name in names}
    answers = {name: _Answers() for name in names}
    for task, seen in zip(progress.track(stream.tasks, "tasks"), sizes.cumsum(0).tolist(), strict=True):
        for name in progress.track(names, "methods"):
            methods[name].fit_task(task)
            answers[name].ask(methods[name], images[:seen], tasks[:seen])
    return {name: _figures(methods[name], answers[name], targets, tasks) for name in names}


def _figures(method: Method, answers: _Answers, targets: Tensor, tasks: Tensor) -> dict[str, Any]:
    matrix = metrics.accuracy_matrix(answers.labels, targets, tasks)
    incremental = metrics.incremental_accuracies(answers.labels, targets, tasks)
    synapses: dict[str, Any] | None = None
    if answers.mask is not None:
        synapses = {
            "recall": metrics.synapse_recall(answers.mask, tasks),
            "precision": metrics.synapse_precision(answers.mask, tasks),
            "mean_functional": metrics.mean_functional(answers.mask),
            "silent_fraction": method.silent_fraction,
            "routing_matrix": metrics.routing_matrix(answers.mask, tasks),
        }
    return {
        "average_accuracy": metrics.average_accuracy(incremental),
        "last_accuracy": metrics.last_accuracy(incremental),
        "accuracy_matrix": matrix,
        "incremental_accuracy": incremental,
        "forgetting": metrics.forgetting(matrix),
        "backward_transfer": metrics.backward_transfer(matrix),
        "synapses": synapses,
        "parameters": method.parameters(),
        "seconds": {"training": method.training_seconds, "inference": answers.seconds},
        "images_per_second": {"inference": len(targets) / answers.seconds},
    }


def _check_known(argument: str, name: str, known: Iterable[str]) -> None:
    known = list(known)
    if name in known:
        return
    nearest = difflib.get_close_matches(name, known)
    suggestion = f"did you mean {' or '.join(nearest)}? " if nearest else ""
    raise ValueError(f"{argument}: {name!r} is not known; {suggestion}(known: {', '.join(known)})")
