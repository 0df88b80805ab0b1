"""The built-in sources: shapes, splits, and that one is the other one turned."""

import pytest
import torch

from artsy_ext.data import Stream, load_source

SIZES = {"digits": (5, 10, 1797), "rotated": (10, 20, 2 * 1797)}


def stream_of(name: str, seed: int = 0) -> Stream:
    return load_source(name).stream(seed)


def images_of(stream: Stream, split: str, class_name: str) -> torch.Tensor:
    label = stream.class_names.index(class_name)
    images, labels = getattr(stream.tasks[label // 2], split).tensors
    return images[labels == label]


def as_set(images: torch.Tensor) -> set[bytes]:
    return {image.numpy().tobytes() for image in images}


@pytest.mark.parametrize("name", SIZES)
def test_shapes_and_labels(name: str) -> None:
    num_tasks, num_classes, num_images = SIZES[name]
    stream = stream_of(name)
    assert (stream.name, len(stream.tasks), stream.num_classes) == (name, num_tasks, num_classes)
    assert len(set(stream.class_names)) == num_classes
    for t, task in enumerate(stream.tasks):
        assert task.classes == (2 * t, 2 * t + 1)
        for images, labels in (task.train.tensors, task.test.tensors):
            assert images.shape == (len(labels), 1, 28, 28)
            assert (images.dtype, labels.dtype) == (torch.float32, torch.int64)
            assert set(labels.tolist()) == set(task.classes)
    assert sum(len(task.train) + len(task.test) for task in stream.tasks) == num_images


def test_pixels_are_enlarged_and_padded() -> None:
    images = torch.stack(list(load_source("digits").train.images))
    assert (images.amin(), images.amax()) == (0, 1)
    border = torch.ones(28, 28, dtype=torch.bool)
    border[4:24, 4:24] = False
    assert images[..., border].amax() == 0


def test_split_is_stratified_and_disjoint() -> None:
    stream = stream_of("digits", 3)
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


@pytest.mark.parametrize("name", SIZES)
def test_seed_decides_split_and_order(name: str) -> None:
    one, again, other = stream_of(name, 1), stream_of(name, 1), stream_of(name, 2)
    assert one.class_names == again.class_names != other.class_names
    for task, same in zip(one.tasks, again.tasks, strict=True):
        for split in ("train", "test"):
            for tensor, equal in zip(getattr(task, split).tensors, getattr(same, split).tensors, strict=True):
                assert torch.equal(tensor, equal)
    assert as_set(images_of(one, "test", "0")) != as_set(images_of(other, "test", "0"))


def test_published_results_stay_comparable() -> None:
    # A seed stands for the same order and the same split in every version.
    assert "".join(stream_of("digits", 1).class_names) == "2964031785"
    train, test = load_source("digits").split(1)
    assert (train[:6].tolist(), test[:6].tolist()) == ([230, 919, 799, 448, 1305, 89], [456, 999, 27, 1425, 733, 378])


@pytest.mark.parametrize("split", ["train", "test"])
def test_rotated_is_digits_turned(split: str) -> None:
    digits, rotated = stream_of("digits", 5), stream_of("rotated", 5)
    for digit in digits.class_names:
        upright = images_of(digits, split, digit)
        assert torch.equal(images_of(rotated, split, digit), upright)
        assert torch.equal(images_of(rotated, split, f"{digit} turned"), upright.rot90(1, (2, 3)))
