"""The built-in sources: shapes, splits, and what one shows of the other."""

import pytest
import torch

from artsy_ext.data import Stream, load_source
from artsy_ext.data.digits import DOMAINS

SIZES = {"digits": (5, 10, 1797), "rotated": (10, 20, 2 * 1797), "domains": (4, 40, 4 * 1797)}


def stream_of(name: str, seed: int = 0) -> Stream:
    return load_source(name).stream(seed)


def images_of(stream: Stream, split: str, class_name: str) -> torch.Tensor:
    label = stream.class_names.index(class_name)
    (task,) = (task for task in stream.tasks if label in task.classes)
    images, labels = getattr(task, split).tensors
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
        size = num_classes // num_tasks
        assert task.classes == tuple(range(size * t, size * (t + 1)))
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
    name = one.class_names[0]
    assert as_set(images_of(one, "test", name)) != as_set(images_of(other, "test", name))


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


def test_a_task_of_domains_is_a_domain() -> None:
    streams = [stream_of("domains", seed) for seed in range(4)]
    for stream in streams:
        for task in stream.tasks:
            names = [stream.class_names[c].split() for c in task.classes]
            assert sorted(digit for digit, _ in names) == [str(digit) for digit in range(10)]
            assert len({domain for _, domain in names}) == 1
    orders = {tuple(name.split()[1] for name in stream.class_names[::10]) for stream in streams}
    assert all(sorted(order) == sorted(DOMAINS) for order in orders)
    assert len(orders) > 1


def test_domains_show_the_same_digits_in_every_task() -> None:
    source = load_source("domains")
    train, test = (indices.view(4, -1) % 1797 for indices in source.split(3))
    assert (train == train[0]).all()
    assert (test == test[0]).all()
    assert sorted([*train[0].tolist(), *test[0].tolist()]) == list(range(1797))


@pytest.mark.parametrize("split", ["train", "test"])
def test_domains_are_digits_in_disguise(split: str) -> None:
    digits, domains = stream_of("digits", 5), stream_of("domains", 5)
    for digit in digits.class_names:
        upright = images_of(digits, split, digit)
        shown = {domain: images_of(domains, split, f"{digit} {domain}") for domain in DOMAINS}
        assert all(images.amin() >= 0 and images.amax() <= 1 for images in shown.values())
        turned = upright.rot90(1, (2, 3))
        kept = shown["sparse"] != 0
        assert torch.equal(shown["sparse"][kept], turned[kept])
        assert abs(kept[turned > 0].float().mean() - 0.6) < 0.03
        # Averaged over many images the noise is gone, apart from what clipping makes of it; the digit is left.
        for domain, expected in (
            ("stripes", (0.8 * (torch.arange(28) // 2 % 2) - upright.flip(3)).abs()),
            ("photos", upright.rot90(3, (2, 3))),
            ("negative", 1 - upright.transpose(2, 3)),
        ):
            both = torch.stack([shown[domain].mean(0).flatten(), expected.mean(0).flatten()])
            assert torch.corrcoef(both)[0, 1] > 0.9


def test_test_images_of_domains_have_photographs_of_their_own() -> None:
    source = load_source("domains")
    assert source.test is not None
    train, test = (torch.stack(list(images.images)).view(4, 1797, 28, 28) for images in (source.train, source.test))
    photos = DOMAINS.index("photos")
    assert not (train[photos] == test[photos]).flatten(1).all(1).any()
    assert torch.equal(source.train.labels, source.test.labels)


def test_long_is_digits_in_pieces() -> None:
    source = load_source("long")
    stream = source.stream(1)
    assert (len(stream.tasks), stream.num_classes) == (100, 200)
    assert len(source.stream(1, tasks=20).tasks) == 20
    domains = [{stream.class_names[c].split()[1] for c in task.classes} for task in stream.tasks]
    assert all(len(names) == 1 for names in domains)
    # A domain's tasks follow each other.
    assert [names for names in domains[::5] for _ in range(5)] == domains

    digits = torch.stack(list(load_source("digits").train.images))
    shown = source.train.images
    pieces = digits[7].view(4, 7, 4, 7).transpose(1, 2).reshape(16, 49)
    orders = set()
    for domain in range(20):
        found = shown[1797 * domain + 7].view(4, 7, 4, 7).transpose(1, 2).reshape(16, 49)
        assert as_set(found) == as_set(pieces)
        orders.add(found.numpy().tobytes())
    assert len(orders) == 20
