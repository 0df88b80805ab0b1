"""Streams: shapes, splits, class order, and the shared function that cuts any data set into tasks."""

import subprocess
import sys

import pytest
import torch
from torch.utils.data import TensorDataset

from artsy_ext.data import STREAMS, Stream, class_incremental
from artsy_ext.data.digits import handwritten_digits

SIZES = {"digits": (5, 10, 1797), "rotated": (10, 20, 2 * 1797)}


def images_of(stream: Stream, split: str, class_name: str) -> torch.Tensor:
    label = stream.class_names.index(class_name)
    data: TensorDataset = getattr(stream.tasks[label // 2], split)
    images, labels = data.tensors
    return images[labels == label]


def as_set(images: torch.Tensor) -> set[bytes]:
    return {image.numpy().tobytes() for image in images}


@pytest.mark.parametrize("name", STREAMS)
def test_shapes_and_labels(name: str) -> None:
    num_tasks, num_classes, num_images = SIZES[name]
    stream = STREAMS[name](0)
    assert (stream.name, len(stream.tasks), stream.num_classes) == (name, num_tasks, num_classes)
    assert len(set(stream.class_names)) == num_classes
    for t, task in enumerate(stream.tasks):
        assert task.classes == (2 * t, 2 * t + 1)
        for images, labels in (task.train.tensors, task.test.tensors):
            assert images.shape == (len(labels), 1, 28, 28)
            assert (images.dtype, labels.dtype) == (torch.float32, torch.int64)
            assert set(labels.tolist()) == set(task.classes)
    assert sum(len(task.train) + len(task.test) for task in stream.tasks) == num_images


def test_pixels_are_enlarged_padded_and_normalised() -> None:
    for task in STREAMS["digits"](0).tasks:
        images = task.train.tensors[0] * 0.3 + 0.3
        torch.testing.assert_close(images.amin(), torch.tensor(0.0), atol=1e-6, rtol=0)
        torch.testing.assert_close(images.amax(), torch.tensor(1.0))
        border = torch.ones(28, 28, dtype=torch.bool)
        border[4:24, 4:24] = False
        torch.testing.assert_close(images[..., border].abs().amax(), torch.tensor(0.0), atol=1e-6, rtol=0)


def test_split_is_stratified_and_disjoint() -> None:
    stream = STREAMS["digits"](3)
    everything: set[bytes] = set()
    for digit in stream.class_names:
        train, test = images_of(stream, "train", digit), images_of(stream, "test", digit)
        assert abs(len(test) - 0.3 * (len(train) + len(test))) <= 1
        assert not everything & as_set(train)
        everything |= as_set(train)
        assert not everything & as_set(test)
        everything |= as_set(test)
    # The data set has no two equal images, so every one of them is here exactly once.
    assert len(everything) == 1797


@pytest.mark.parametrize("name", STREAMS)
def test_seed_decides_split_and_order(name: str) -> None:
    one, again, other = STREAMS[name](1), STREAMS[name](1), STREAMS[name](2)
    assert one.class_names == again.class_names != other.class_names
    for task, same in zip(one.tasks, again.tasks, strict=True):
        for split in ("train", "test"):
            for tensor, equal in zip(getattr(task, split).tensors, getattr(same, split).tensors, strict=True):
                assert torch.equal(tensor, equal)
    assert as_set(images_of(one, "test", "0")) != as_set(images_of(other, "test", "0"))


@pytest.mark.parametrize("split", ["train", "test"])
def test_rotated_is_digits_turned(split: str) -> None:
    digits, rotated = STREAMS["digits"](5), STREAMS["rotated"](5)
    for digit in digits.class_names:
        upright = images_of(digits, split, digit)
        assert torch.equal(images_of(rotated, split, digit), upright)
        assert torch.equal(images_of(rotated, split, f"{digit} turned"), upright.rot90(1, (2, 3)))


def test_seed_out_of_range() -> None:
    with pytest.raises(ValueError, match=r"seed must be in \[0, 2\*\*32\), got -1"):
        handwritten_digits(-1)


def test_scikit_learn_is_loaded_only_for_a_stream() -> None:
    code = "import sys, artsy_ext.data; print([m for m in ('sklearn', 'timm') if m in sys.modules])"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"


def dataset(*labels: int) -> TensorDataset:
    # Each image is the label it had before renumbering.
    return TensorDataset(torch.tensor(labels).float().view(-1, 1, 1, 1), torch.tensor(labels))


def test_class_incremental_renumbers_in_class_order() -> None:
    stream = class_incremental(
        "letters",
        dataset(0, 1, 2, 3, 3, 2),
        dataset(3, 2, 1, 0),
        class_names=["a", "b", "c", "d"],
        class_order=[2, 0, 3, 1],
        classes_per_task=2,
    )
    assert stream.class_names == ("c", "a", "d", "b")
    assert [task.classes for task in stream.tasks] == [(0, 1), (2, 3)]
    first, second = stream.tasks
    assert first.train.tensors[0].flatten().tolist() == [0, 2, 2]
    assert first.train.tensors[1].tolist() == [1, 0, 0]
    assert second.train.tensors[1].tolist() == [3, 2, 2]
    assert first.test.tensors[1].tolist() == [0, 1]
    assert second.test.tensors[1].tolist() == [2, 3]


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"class_order": [0, 0]}, r"class_order must permute \[0, 1\], got \[0, 0\]"),
        ({"class_order": [0, 1, 2]}, r"class_order must permute \[0, 1\], got \[0, 1, 2\]"),
        ({"classes_per_task": 3}, "classes_per_task must divide 2 classes, got 3"),
        ({"classes_per_task": 0}, "classes_per_task must divide 2 classes, got 0"),
        ({"train": dataset(0, 2)}, r"train labels must be \[0, 1\], got \[0, 2\]"),
        ({"test": dataset(1)}, r"test labels must be \[0, 1\], got \[1\]"),
    ],
)
def test_class_incremental_refuses(changed: dict[str, object], message: str) -> None:
    arguments = {
        "train": dataset(0, 1),
        "test": dataset(0, 1),
        "class_names": ["a", "b"],
        "class_order": [1, 0],
        "classes_per_task": 1,
    }
    with pytest.raises(ValueError, match=f"class_incremental: {message}"):
        class_incremental("refused", **(arguments | changed))  # type: ignore[arg-type]


def test_class_incremental_refuses_labels_that_are_not_int64() -> None:
    floats = TensorDataset(torch.zeros(2, 1), torch.tensor([0.0, 1.0]))
    with pytest.raises(TypeError, match=r"train labels must be int64, got torch\.float32"):
        class_incremental(
            "refused", floats, dataset(0, 1), class_names=["a", "b"], class_order=[0, 1], classes_per_task=1
        )
