"""Streams of tasks: the order in which a learner meets the classes of a data set."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from artsy_ext.data.images import Images, Track, untracked

__all__ = ["Stream", "Task", "class_incremental", "task_sizes"]


@dataclass(frozen=True)
class Task:
    """The classes that appear together, with all their images.

    Attributes:
        classes: class indexes in stream order; consecutive, and following on from the task before.
        train: (image, label) pairs, images float32 as the backbone takes them, each label one of `classes`.
        test: likewise, from images that are in no task's `train`.
    """

    classes: tuple[int, ...]
    train: Images
    test: Images


@dataclass(frozen=True)
class Stream:
    """Tasks in the order in which a learner meets them.

    Attributes:
        name: what the stream is called in commands and tables.
        tasks: at least one.
        class_names: [C] names in stream order: `class_names[label]` is what a person calls the class.
        answers: [C] what counts as the answer: classes with the same number here are the same to whoever asks, as a
            class is that comes again in another domain. To a learner each is a class of its own, of one task. None
            where every class is an answer of its own.
    """

    name: str
    tasks: tuple[Task, ...]
    class_names: tuple[str, ...]
    answers: tuple[int, ...] | None = None

    @property
    def num_classes(self) -> int:
        """C, over all tasks."""
        return len(self.class_names)

    def hold(self, limit: int = 2**30, track: Track = untracked) -> Stream:
        """The same with its images read and transformed once, if together they take at most `limit` bytes.

        Else itself: images are read and transformed each time they are asked for. track: wraps the loop over the tasks.
        """
        image = self.tasks[0].train[0][0]
        count = sum(len(task.train) + len(task.test) for task in self.tasks)
        if count * image.numel() * image.element_size() > limit:
            return self
        tasks = track(self.tasks, "reading images")
        return replace(self, tasks=tuple(replace(t, train=t.train.hold(), test=t.test.hold()) for t in tasks))


def task_sizes(
    num_classes: int, *, tasks: int | None = None, base: int = 0, increment: int | None = None
) -> tuple[int, ...]:
    """How many classes each task brings.

    Either `tasks` of about equal size, the larger ones first; or, as the literature writes it, "B`base`
    Inc`increment`": a first task of `base` classes (none if 0), then `increment` at a time, the last ones what is left.

    Raises:
        ValueError: both or neither are given, a number is out of its range, or there are fewer classes than tasks.
    """
    if (tasks is None) == (increment is None):
        raise ValueError(f"tasks: expected either tasks or increment, got tasks={tasks}, increment={increment}")
    if tasks is not None:
        if base:
            raise ValueError(f"base: expected an increment with it, not a number of tasks, got base={base}")
        if tasks < 1:
            raise ValueError(f"tasks: expected at least 1, got {tasks}")
        if num_classes < tasks:
            raise ValueError(f"tasks: expected at most as many tasks as classes, got {tasks} for {num_classes} classes")
        size, larger = divmod(num_classes, tasks)
        return (size + 1,) * larger + (size,) * (tasks - larger)
    assert increment is not None
    if increment < 1:
        raise ValueError(f"increment: expected at least 1, got {increment}")
    if not 0 <= base <= num_classes:
        raise ValueError(f"base: expected 0 to {num_classes}, the number of classes, got {base}")
    whole, left = divmod(num_classes - base, increment)
    return (base,) * (base > 0) + (increment,) * whole + (left,) * (left > 0)


def class_incremental(
    name: str,
    train: Images,
    test: Images,
    *,
    class_names: Sequence[str],
    class_order: Sequence[int],
    sizes: Sequence[int],
) -> Stream:
    """Cut labelled images into tasks of `sizes` classes, in the order `class_order`.

    Args:
        name: the stream's name.
        train: images whose labels index `class_names`.
        test: likewise.
        class_names: [C] names in the data set's own order.
        class_order: a permutation of range(C); the class at position k becomes class k of the stream.
        sizes: how many classes each task brings, C in all; `task_sizes` gives the usual ones.

    Returns:
        A stream of len(sizes) tasks, labels renumbered to stream order. Within a task, images keep the order that they
        have in `train` and `test`.

    Raises:
        TypeError: if labels are not int64.
        ValueError: if the order is no permutation, the sizes are not at least 1 and C in all, a label is out of range,
            or a class has no image.
    """
    num_classes = len(class_names)
    order = torch.tensor(class_order, dtype=torch.int64)
    every_class = list(range(num_classes))
    if sorted(order.tolist()) != every_class:
        raise ValueError(f"class_incremental: class_order must permute {every_class}, got {list(class_order)}")
    if sum(sizes) != num_classes or min(sizes, default=0) < 1:
        raise ValueError(
            f"class_incremental: sizes must be at least 1 and {num_classes} in all, the classes, got {list(sizes)}"
        )
    position = torch.empty_like(order)
    position[order] = torch.arange(num_classes)

    def in_stream_order(argument: str, images: Images) -> Tensor:
        if images.labels.dtype != torch.int64:
            raise TypeError(f"class_incremental: {argument} labels must be int64, got {images.labels.dtype}")
        found = images.labels.unique().tolist()
        if found != every_class:
            raise ValueError(f"class_incremental: {argument} labels must be {every_class}, got {found}")
        return position[images.labels]

    def of_classes(images: Images, labels: Tensor, classes: range) -> Images:
        chosen = (labels >= classes.start) & (labels < classes.stop)
        return Images(images.source, images.indices[chosen], labels[chosen], images.transform)

    train_labels, test_labels = in_stream_order("train", train), in_stream_order("test", test)
    tasks, first = [], 0
    for size in sizes:
        classes = range(first, first + size)
        first += size
        tasks.append(
            Task(tuple(classes), of_classes(train, train_labels, classes), of_classes(test, test_labels, classes))
        )
    return Stream(name, tuple(tasks), tuple(class_names[c] for c in order.tolist()))
