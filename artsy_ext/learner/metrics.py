"""What a learner is judged by: pure functions from predictions and synapse masks to numbers.

`experiment` collects the predictions and calls these; nothing here knows of methods, streams or files. T is the
number of tasks, N the number of test samples of the whole stream, sorted by task, and N_i the number of those that
belong to tasks 0 to i.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

__all__ = [
    "Matrix",
    "accuracy_matrix",
    "average_accuracy",
    "backward_transfer",
    "forgetting",
    "functional_counts",
    "incremental_accuracies",
    "last_accuracy",
    "mean_functional",
    "routing_matrix",
    "synapse_precision",
    "synapse_recall",
]

Matrix = list[list[float | None]]


def accuracy_matrix(predictions: Sequence[Tensor], targets: Tensor, tasks: Tensor) -> Matrix:
    """Accuracy on every task after every task: R of Lopez-Paz & Ranzato, 2017 (arXiv 1706.08840), below the diagonal.

    Args:
        predictions: T tensors; predictions[i] [N_i] int64, the labels predicted after learning task i.
        targets: [N] int64, the true labels.
        tasks: [N] int64, the task of each sample, ascending from 0 to T - 1.

    Returns:
        T rows of T: a[i][j] is the percentage of task j's test samples that are right after learning task i, and
        None where j > i, as task j is not learned yet.

    Raises:
        ValueError: if the samples are not sorted by task or predictions[i] doesn't have N_i labels.
    """
    _check_predictions(predictions, targets, tasks)
    count = len(predictions)
    matrix: Matrix = []
    for i, predicted in enumerate(predictions):
        right, task = predicted == targets[: len(predicted)], tasks[: len(predicted)]
        matrix.append([_percent(right[task == j]) if j <= i else None for j in range(count)])
    return matrix


def incremental_accuracies(predictions: Sequence[Tensor], targets: Tensor, tasks: Tensor) -> list[float]:
    """Accuracy over all classes seen so far, after each task: the curve that iCaRL and EASE plot.

    Every test sample counts once, so a task with more samples weighs more.

    Args:
        predictions, targets, tasks: as in `accuracy_matrix`.

    Returns:
        T percentages.

    Raises:
        ValueError: as in `accuracy_matrix`.
    """
    _check_predictions(predictions, targets, tasks)
    return [_percent(predicted == targets[: len(predicted)]) for predicted in predictions]


def average_accuracy(incremental: Sequence[float]) -> float:
    """Mean of the incremental accuracies: average incremental accuracy (Rebuffi et al., iCaRL, CVPR 2017).

    Args:
        incremental: T percentages, from `incremental_accuracies`.
    """
    return sum(incremental) / len(incremental)


def last_accuracy(incremental: Sequence[float]) -> float:
    """Accuracy over all classes after the last task: the last of the incremental accuracies."""
    return incremental[-1]


def forgetting(matrix: Matrix) -> float:
    """How far each old task fell from its best: F of Chaudhry et al., ECCV 2018 (arXiv 1801.10112).

    The mean over tasks j < T - 1 of max_{j <= i < T - 1} a[i][j] - a[T - 1][j]. Below 0 where old tasks got better.
    (There, the maximum also runs over i < j, where the class-incremental accuracy is 0.)

    Args:
        matrix: from `accuracy_matrix`.

    Returns:
        Percentage points; 0 for a single task.
    """
    old = range(len(matrix) - 1)
    if not old:
        return 0.0
    falls = [max(_learned(matrix[i][j]) for i in range(j, len(matrix) - 1)) - _learned(matrix[-1][j]) for j in old]
    return sum(falls) / len(falls)


def backward_transfer(matrix: Matrix) -> float:
    """What later tasks did to earlier ones: BWT of Lopez-Paz & Ranzato, 2017 (arXiv 1706.08840).

    The mean over tasks j < T - 1 of a[T - 1][j] - a[j][j]. Below 0 where later tasks harmed earlier ones.

    Args:
        matrix: from `accuracy_matrix`.

    Returns:
        Percentage points; 0 for a single task.
    """
    old = range(len(matrix) - 1)
    if not old:
        return 0.0
    return sum(_learned(matrix[-1][j]) - _learned(matrix[j][j]) for j in old) / len(old)


def synapse_recall(mask: Tensor, tasks: Tensor) -> float:
    """Share of the samples whose true task's sub-network is functional.

    Args:
        mask: [N, S] bool, the functional sub-networks of each sample.
        tasks: [N] int64, the true task, which is the index of its sub-network.

    Returns:
        A number in [0, 1].
    """
    return mask.gather(1, tasks[:, None]).double().mean().item()


def synapse_precision(mask: Tensor, tasks: Tensor) -> float:
    """Share of the functional (sample, sub-network) pairs whose sub-network is that of the sample's true task.

    Args:
        mask, tasks: as in `synapse_recall`.

    Returns:
        A number in [0, 1]; 0 where no pair is functional.
    """
    true_pairs = int(mask.gather(1, tasks[:, None]).sum())
    return true_pairs / max(int(mask.sum()), 1)


def mean_functional(mask: Tensor) -> float:
    """Mean number of functional sub-networks per sample, in [0, S].

    Args:
        mask: [N, S] bool.
    """
    return mask.sum(1).double().mean().item()


def functional_counts(mask: Tensor) -> list[float]:
    """How many samples have no functional sub-network, how many have one, and so on.

    Args:
        mask: [N, S] bool.

    Returns:
        S + 1 shares of the samples, 1 in all.
    """
    return (torch.bincount(mask.sum(1), minlength=mask.shape[1] + 1).double() / len(mask)).tolist()


def routing_matrix(mask: Tensor, tasks: Tensor) -> list[list[float]]:
    """How often each sub-network is functional for each task.

    Args:
        mask, tasks: as in `synapse_recall`.

    Returns:
        T rows of S: the share of task t's samples for which sub-network s is functional, in [0, 1].
    """
    return [mask[tasks == task].double().mean(0).tolist() for task in range(int(tasks.max()) + 1)]


def _percent(right: Tensor) -> float:
    return 100 * right.double().mean().item()


def _learned(value: float | None) -> float:
    if value is None:
        raise ValueError("matrix: expected a number on and below the diagonal, got None")
    return value


def _check_predictions(predictions: Sequence[Tensor], targets: Tensor, tasks: Tensor) -> None:
    if targets.shape != tasks.shape or bool((tasks.diff() < 0).any()):
        raise ValueError(
            f"tasks: expected one per target in ascending order, got {list(tasks.shape)} for {list(targets.shape)}"
        )
    seen = torch.bincount(tasks, minlength=len(predictions)).cumsum(0).tolist()
    lengths = [len(predicted) for predicted in predictions]
    if lengths != seen:
        raise ValueError(f"predictions: expected {seen} labels after each task, got {lengths}")
