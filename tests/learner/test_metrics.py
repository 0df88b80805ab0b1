"""Metrics of the learner, against numbers worked by hand."""

import pytest
import torch

from artsy_ext.learner import metrics

# Three tasks of 2, 4 and 2 test samples with two classes each. After the second task one sample of it is wrong; after
# the third, one sample of the first task and two of the second are taken for its classes.
TASKS = torch.tensor([0, 0, 1, 1, 1, 1, 2, 2])
TARGETS = torch.tensor([0, 1, 2, 2, 3, 3, 4, 5])
PREDICTIONS = [
    torch.tensor([0, 0]),
    torch.tensor([0, 1, 2, 2, 3, 0]),
    torch.tensor([0, 4, 2, 2, 4, 4, 4, 5]),
]
MATRIX = [[50.0, None, None], [100.0, 75.0, None], [50.0, 50.0, 100.0]]
INCREMENTAL = [50.0, 100 * 5 / 6, 62.5]

# Two tasks, three sub-networks; the second sample of each task runs two of them, the third sample misses its own.
ROUTED_TASKS = torch.tensor([0, 0, 1, 1])
MASK = torch.tensor([[1, 0, 0], [1, 1, 0], [0, 0, 1], [0, 1, 1]], dtype=torch.bool)


def test_accuracy_matrix() -> None:
    assert metrics.accuracy_matrix(PREDICTIONS, TARGETS, TASKS) == MATRIX


def test_incremental_accuracies_weigh_samples_not_tasks() -> None:
    # After the second task: 5 of 6 samples; the mean over the tasks would be 87.5.
    assert metrics.incremental_accuracies(PREDICTIONS, TARGETS, TASKS) == pytest.approx(INCREMENTAL)


def test_average_and_last_accuracy() -> None:
    assert metrics.average_accuracy(INCREMENTAL) == pytest.approx((50 + 100 * 5 / 6 + 62.5) / 3)
    assert metrics.last_accuracy(INCREMENTAL) == 62.5


def test_forgetting_is_measured_from_the_best() -> None:
    # Task 0 fell from 100 (not from its first 50) to 50, task 1 from 75 to 50.
    assert metrics.forgetting(MATRIX) == (50 + 25) / 2


def test_backward_transfer_is_measured_from_the_first() -> None:
    # Task 0 ended where it began, task 1 lost 25.
    assert metrics.backward_transfer(MATRIX) == (0 - 25) / 2


def test_a_task_that_gets_better_has_negative_forgetting() -> None:
    matrix: metrics.Matrix = [[60.0, None], [70.0, 80.0]]
    assert metrics.forgetting(matrix) == -10
    assert metrics.backward_transfer(matrix) == 10


def test_a_single_task_forgets_nothing() -> None:
    assert metrics.forgetting([[80.0]]) == 0
    assert metrics.backward_transfer([[80.0]]) == 0


def test_synapses() -> None:
    assert metrics.synapse_recall(MASK, ROUTED_TASKS) == 3 / 4
    assert metrics.synapse_precision(MASK, ROUTED_TASKS) == 3 / 6
    assert metrics.mean_functional(MASK) == 6 / 4
    assert metrics.routing_matrix(MASK, ROUTED_TASKS) == [[1.0, 0.5, 0.0], [0.0, 0.5, 1.0]]


def test_all_functional_finds_every_task_at_the_price_of_precision() -> None:
    everything = torch.ones(4, 5, dtype=torch.bool)
    assert metrics.synapse_recall(everything, ROUTED_TASKS) == 1
    assert metrics.synapse_precision(everything, ROUTED_TASKS) == 1 / 5
    assert metrics.mean_functional(everything) == 5


def test_nothing_functional() -> None:
    nothing = torch.zeros(4, 5, dtype=torch.bool)
    assert metrics.synapse_recall(nothing, ROUTED_TASKS) == 0
    assert metrics.synapse_precision(nothing, ROUTED_TASKS) == 0
    assert metrics.mean_functional(nothing) == 0


def test_samples_must_be_sorted_by_task() -> None:
    with pytest.raises(ValueError, match="tasks: expected one per target in ascending order"):
        metrics.accuracy_matrix(PREDICTIONS, TARGETS, TASKS.flip(0))


def test_predictions_must_cover_the_tasks_seen() -> None:
    with pytest.raises(ValueError, match=r"predictions: expected \[2, 6, 8\] labels after each task, got \[2, 6, 7\]"):
        metrics.incremental_accuracies([*PREDICTIONS[:2], PREDICTIONS[2][:7]], TARGETS, TASKS)
