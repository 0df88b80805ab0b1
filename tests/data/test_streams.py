"""Cutting labelled images into tasks: sizes, class order, and what is refused."""

import pytest
import torch

from artsy_ext.data import Images, class_incremental, task_sizes


@pytest.mark.parametrize(
    ("arguments", "sizes"),
    [
        ({"tasks": 5}, (2, 2, 2, 2, 2)),
        ({"tasks": 3}, (4, 3, 3)),  # as equal as can be, the larger ones first
        ({"tasks": 1}, (10,)),
        ({"tasks": 10}, (1,) * 10),
        ({"increment": 2}, (2, 2, 2, 2, 2)),  # B0 Inc2
        ({"increment": 3}, (3, 3, 3, 1)),
        ({"increment": 20}, (10,)),
        ({"base": 4, "increment": 2}, (4, 2, 2, 2)),  # B4 Inc2
        ({"base": 5, "increment": 4}, (5, 4, 1)),
        ({"base": 10, "increment": 1}, (10,)),
    ],
)
def test_sizes_of_ten_classes(arguments: dict[str, int], sizes: tuple[int, ...]) -> None:
    assert task_sizes(10, **arguments) == sizes


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "tasks: expected either tasks or increment, got tasks=None, increment=None"),
        ({"tasks": 2, "increment": 2}, "tasks: expected either tasks or increment, got tasks=2, increment=2"),
        ({"tasks": 2, "base": 4}, "base: expected an increment with it, not a number of tasks, got base=4"),
        ({"tasks": 0}, "tasks: expected at least 1, got 0"),
        ({"tasks": 11}, "tasks: expected at most as many tasks as classes, got 11 for 10 classes"),
        ({"increment": 0}, "increment: expected at least 1, got 0"),
        ({"increment": 2, "base": -1}, "base: expected 0 to 10, the number of classes, got -1"),
        ({"increment": 2, "base": 11}, "base: expected 0 to 10, the number of classes, got 11"),
    ],
)
def test_sizes_that_are_refused(arguments: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=f"^{message}$"):
        task_sizes(10, **arguments)


def labelled(*labels: int) -> Images:
    # Each image is the label that it had before renumbering.
    return Images.of_tensors(torch.tensor(labels).float().view(-1, 1, 1, 1), torch.tensor(labels))


def test_labels_are_renumbered_in_class_order() -> None:
    stream = class_incremental(
        "letters",
        labelled(0, 1, 2, 3, 3, 2),
        labelled(3, 2, 1, 0),
        class_names=["a", "b", "c", "d"],
        class_order=[2, 0, 3, 1],
        sizes=(2, 2),
    )
    assert (stream.name, stream.num_classes, stream.class_names) == ("letters", 4, ("c", "a", "d", "b"))
    assert [task.classes for task in stream.tasks] == [(0, 1), (2, 3)]
    first, second = stream.tasks
    assert first.train.tensors[0].flatten().tolist() == [0, 2, 2]
    assert first.train.tensors[1].tolist() == [1, 0, 0]
    assert second.train.tensors[1].tolist() == [3, 2, 2]
    assert first.test.tensors[1].tolist() == [0, 1]
    assert second.test.tensors[1].tolist() == [2, 3]


def test_tasks_may_differ_in_size() -> None:
    images = labelled(4, 3, 2, 1, 0)
    stream = class_incremental(
        "uneven", images, images, class_names="abcde", class_order=[4, 3, 2, 1, 0], sizes=(1, 3, 1)
    )
    assert [task.classes for task in stream.tasks] == [(0,), (1, 2, 3), (4,)]
    assert [task.train.labels.tolist() for task in stream.tasks] == [[0], [1, 2, 3], [4]]
    assert [task.train.tensors[0].flatten().tolist() for task in stream.tasks] == [[4], [3, 2, 1], [0]]


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"class_order": [0, 0]}, r"class_order must permute \[0, 1\], got \[0, 0\]"),
        ({"class_order": [0, 1, 2]}, r"class_order must permute \[0, 1\], got \[0, 1, 2\]"),
        ({"sizes": (1,)}, r"sizes must be at least 1 and 2 in all, the classes, got \[1\]"),
        ({"sizes": (2, 1)}, r"sizes must be at least 1 and 2 in all, the classes, got \[2, 1\]"),
        ({"sizes": (2, 0)}, r"sizes must be at least 1 and 2 in all, the classes, got \[2, 0\]"),
        ({"sizes": (3, -1)}, r"sizes must be at least 1 and 2 in all, the classes, got \[3, -1\]"),
        ({"sizes": ()}, r"sizes must be at least 1 and 2 in all, the classes, got \[\]"),
        ({"train": labelled(0, 2)}, r"train labels must be \[0, 1\], got \[0, 2\]"),
        ({"train": labelled(0, 1, -1)}, r"train labels must be \[0, 1\], got \[-1, 0, 1\]"),
        ({"test": labelled(1)}, r"test labels must be \[0, 1\], got \[1\]"),
    ],
)
def test_refused(changed: dict[str, object], message: str) -> None:
    arguments = {
        "train": labelled(0, 1),
        "test": labelled(0, 1),
        "class_names": ["a", "b"],
        "class_order": [1, 0],
        "sizes": (1, 1),
    }
    with pytest.raises(ValueError, match=f"class_incremental: {message}"):
        class_incremental("refused", **(arguments | changed))  # type: ignore[arg-type]


def test_labels_that_are_not_int64_are_refused() -> None:
    floats = Images.of_tensors(torch.zeros(2, 1, 1, 1), torch.tensor([0.0, 1.0]))
    with pytest.raises(TypeError, match=r"train labels must be int64, got torch\.float32"):
        class_incremental("refused", floats, labelled(0, 1), class_names=["a", "b"], class_order=[0, 1], sizes=(1, 1))
