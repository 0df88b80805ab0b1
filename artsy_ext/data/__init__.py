"""Data sets as streams of tasks: where every learner, baseline and benchmark of `artsy_ext` gets its data.

A stream shows its classes a few at a time. `class_incremental` turns any labelled data set into one, and
`STREAMS` holds those that can be asked for by name. A new data set needs a function from seed to stream and
an entry there, nothing else.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch.utils.data import TensorDataset

from artsy_ext.data.digits import handwritten_digits, with_quarter_turns

__all__ = ["STREAMS", "Stream", "Task", "class_incremental", "digits", "rotated"]


@dataclass(frozen=True)
class Task:
    """The classes that appear together, with all their images.

    Attributes:
        classes: class indexes in stream order; consecutive, and following on from the task before.
        train: images [n, ...] float32, normalised, and labels [n] int64, each one of `classes`.
        test: likewise, from images that are in no task's `train`.
    """

    classes: tuple[int, ...]
    train: TensorDataset
    test: TensorDataset


@dataclass(frozen=True)
class Stream:
    """Tasks in the order in which a learner meets them.

    Attributes:
        name: what the stream is called in commands and tables.
        tasks: at least one.
        class_names: [C] names in stream order: `class_names[label]` is what a person calls the class.
    """

    name: str
    tasks: tuple[Task, ...]
    class_names: tuple[str, ...]

    @property
    def num_classes(self) -> int:
        """C, over all tasks."""
        return len(self.class_names)


def class_incremental(
    name: str,
    train: TensorDataset,
    test: TensorDataset,
    *,
    class_names: Sequence[str],
    class_order: Sequence[int],
    classes_per_task: int,
) -> Stream:
    """Cut a labelled data set into tasks of `classes_per_task` classes, in the order `class_order`.

    Args:
        name: the stream's name.
        train: images [n, ...] and labels [n] int64 that index `class_names`.
        test: likewise.
        class_names: [C] names in the data set's own order.
        class_order: a permutation of range(C); the class at position k becomes class k of the stream.
        classes_per_task: a divisor of C.

    Returns:
        A stream of C / classes_per_task tasks, labels renumbered to stream order. Within a task, images keep
        the order that they have in the data set.

    Raises:
        TypeError: if labels are not int64.
        ValueError: if the order is no permutation, `classes_per_task` does not divide C, a label is out of
            range, or a class has no image.
    """
    num_classes = len(class_names)
    order = torch.tensor(class_order, dtype=torch.int64)
    every_class = list(range(num_classes))
    if sorted(order.tolist()) != every_class:
        raise ValueError(f"class_incremental: class_order must permute {every_class}, got {class_order}")
    if classes_per_task < 1 or num_classes % classes_per_task:
        raise ValueError(
            f"class_incremental: classes_per_task must divide {num_classes} classes, got {classes_per_task}"
        )
    position = torch.empty_like(order)
    position[order] = torch.arange(num_classes)

    def in_stream_order(argument: str, data: TensorDataset) -> tuple[torch.Tensor, torch.Tensor]:
        images, labels = data.tensors
        if labels.dtype != torch.int64:
            raise TypeError(f"class_incremental: {argument} labels must be int64, got {labels.dtype}")
        found = torch.unique(labels).tolist()
        if found != every_class:
            raise ValueError(f"class_incremental: {argument} labels must be {every_class}, got {found}")
        return images, position[labels]

    def of_classes(data: tuple[torch.Tensor, torch.Tensor], classes: range) -> TensorDataset:
        images, labels = data
        chosen = (labels >= classes.start) & (labels < classes.stop)
        return TensorDataset(images[chosen], labels[chosen])

    train_data, test_data = in_stream_order("train", train), in_stream_order("test", test)
    tasks = []
    for first in range(0, num_classes, classes_per_task):
        classes = range(first, first + classes_per_task)
        tasks.append(Task(tuple(classes), of_classes(train_data, classes), of_classes(test_data, classes)))
    return Stream(name, tuple(tasks), tuple(class_names[c] for c in order.tolist()))


def digits(seed: int) -> Stream:
    """Handwritten digits: 5 tasks of 2 classes; images [n, 1, 28, 28].

    Args:
        seed: decides the train/test split and the order of the classes; 0 <= seed < 2**32.

    Raises:
        ValueError: if the seed is out of range.
    """
    train, test = handwritten_digits(seed)
    return class_incremental(
        "digits",
        train,
        test,
        class_names=[str(digit) for digit in range(10)],
        class_order=_random_order(10, seed),
        classes_per_task=2,
    )


def rotated(seed: int) -> Stream:
    """Handwritten digits, and each turned by 90 degrees as 10 more classes: 10 tasks of 2 classes.

    Images are [n, 1, 28, 28]. The digits are split before they are turned, so no test digit is seen in
    training in the other orientation.

    Args:
        seed: decides the train/test split and the order of the classes; 0 <= seed < 2**32.

    Raises:
        ValueError: if the seed is out of range.
    """
    train, test = handwritten_digits(seed)
    return class_incremental(
        "rotated",
        with_quarter_turns(train),
        with_quarter_turns(test),
        class_names=[f"{digit}{turn}" for turn in ("", " turned") for digit in range(10)],
        class_order=_random_order(20, seed),
        classes_per_task=2,
    )


def _random_order(num_classes: int, seed: int) -> list[int]:
    # RandomState's streams are frozen by NumPy; torch.randperm and default_rng may change between versions.
    order: list[int] = np.random.RandomState(seed).permutation(num_classes).tolist()
    return order


STREAMS: dict[str, Callable[[int], Stream]] = {"digits": digits, "rotated": rotated}
