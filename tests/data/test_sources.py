"""Sources by name, their splits, and the order of their classes."""

import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from artsy_ext.data import SOURCES, Images, ImageSet, Source, check_source, load_source

DOCUMENTATION = Path(__file__).parents[2] / "docs" / "data.md"


def source(*counts: int, test: tuple[int, ...] | None = None, increment: int | None = None) -> Source:
    """A source of so many images of each class."""

    def of(counts: tuple[int, ...]) -> ImageSet:
        labels = torch.arange(len(counts)).repeat_interleave(torch.tensor(counts))
        return Images.of_tensors(torch.arange(len(labels)).float().view(-1, 1, 1, 1), labels).source

    names = tuple("abcdefghijklmnopqrstuvwxyz"[: len(counts)])
    return Source("letters", names, of(counts), test=None if test is None else of(test), increment=increment)


@pytest.mark.parametrize("name", [*SOURCES, "folder:somewhere"])
def test_known_names(name: str) -> None:
    check_source(name)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("cifar-10", r"data: 'cifar-10' is not known; did you mean cifar10.*\(known: digits, .*, folder:PATH\)"),
        ("", r"data: '' is not known; \(known: "),
        ("folder:", r"data: 'folder:' is not known; \(known: "),
    ],
)
def test_unknown_names(name: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        load_source(name, data_dir=tmp_path / "data")
    assert not list(tmp_path.iterdir())


def test_no_library_is_loaded_before_it_is_needed() -> None:
    code = (
        "import sys, artsy_ext.data as data; data.check_source('mnist');"
        "print([m for m in ('sklearn', 'timm', 'torchvision', 'PIL') if m in sys.modules])"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"


@pytest.mark.parametrize("counts", [(10, 20, 30), (2, 2, 2), (3, 3, 3, 3, 3), (100, 2, 3), (2,), (2,) * 26, (1000, 2)])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_split_leaves_every_class_something_to_learn_and_to_test(counts: tuple[int, ...], seed: int) -> None:
    images = source(*counts)
    train, test = images.split(seed)
    assert sorted([*train.tolist(), *test.tolist()]) == list(range(sum(counts)))
    tested = images.train.labels[test].bincount(minlength=len(counts)).tolist()
    for count, left_out in zip(counts, tested, strict=True):
        assert 1 <= left_out < count
        assert abs(left_out - 0.3 * count) <= 1


def test_split_of_a_single_image() -> None:
    with pytest.raises(ValueError, match=r"letters: class 'b' must have at least 2 images.*got 1"):
        source(3, 1, 3).stream(tasks=3)


def test_given_test_images_are_not_mixed_with_the_others() -> None:
    train, test = source(3, 2, test=(1, 1)).split(seed=5)
    assert (train.tolist(), test.tolist()) == (list(range(5)), list(range(2)))


@pytest.mark.parametrize("seed", [-1, 2**32])
def test_seed_out_of_range(seed: int) -> None:
    with pytest.raises(ValueError, match=rf"seed must be in \[0, 2\*\*32\), got {seed}"):
        source(2, 2).stream(seed, tasks=1)


def test_order_of_classes_is_by_seed() -> None:
    images = source(*[2] * 10)
    # NumPy promises that this never changes.
    assert images.order(0) == [2, 8, 4, 9, 1, 6, 7, 3, 0, 5]
    assert images.stream(0, tasks=2).class_names == tuple("ciejbghdaf")
    assert images.order(1) != images.order(0)


def test_order_of_classes_by_name() -> None:
    stream = source(2, 2, 2).stream(0, tasks=3, class_order=["b", "c", "a"])
    assert stream.class_names == ("b", "c", "a")
    assert [task.train.labels.unique().tolist() for task in stream.tasks] == [[0], [1], [2]]


@pytest.mark.parametrize(
    ("order", "trouble"),
    [
        ("abd", "unknown class 'd'"),
        ("ab", "no class 'c'"),
        ("abca", "a class more than once"),
        ("", "no class 'a'"),
    ],
)
def test_orders_that_are_refused(order: str, trouble: str) -> None:
    with pytest.raises(ValueError, match=f"class_order: expected each class of letters once, got {trouble}"):
        source(2, 2, 2).stream(tasks=1, class_order=order)


def test_sizes_where_nothing_is_said() -> None:
    assert source(2, 2, 2, 2, increment=2).sizes() == (2, 2)
    assert source(2, 2, 2, 2, increment=2).sizes(base=3) == (3, 1)
    assert source(2, 2, 2, 2, increment=2).sizes(tasks=4) == (1, 1, 1, 1)
    with pytest.raises(ValueError, match="tasks: letters needs a number of tasks, or an increment"):
        source(2, 2).stream()


def test_sizes_of_any_kind() -> None:
    images = source(2, 2, 2, 2)
    assert images.sizes(sizes=[3, 1]) == (3, 1)
    stream = images.stream(0, sizes=(1, 2, 1))
    assert [task.classes for task in stream.tasks] == [(0,), (1, 2), (3,)]
    with pytest.raises(ValueError, match="sizes: expected neither tasks, base nor increment with it, got tasks=2"):
        images.sizes(sizes=[4], tasks=2)
    for sizes in ([], [3], [3, 2], [4, 0]):
        with pytest.raises(ValueError, match="sizes: expected numbers of at least 1 that add up to 4, the classes of"):
            images.sizes(sizes=sizes)


def test_domains_stay_together_in_an_order_by_seed() -> None:
    images = replace(source(2, 2, 2, 2, 2, 2), domains=("x", "y"))
    orders = [images.order(seed) for seed in range(8)]
    for order in orders:
        assert [sorted(part) for part in (order[:3], order[3:])] in ([[0, 1, 2], [3, 4, 5]], [[3, 4, 5], [0, 1, 2]])
    assert len({*map(tuple, orders)}) > 4
    assert orders[0] == images.order(0)


def test_classes_that_come_again_are_the_same_answer() -> None:
    images = replace(source(2, 2, 2, 2, 2, 2), domains=("x", "y"))
    stream = images.stream(0, increment=3, by_label=True)
    assert stream.answers is not None
    labels = ["abcabc"["abcdef".index(name)] for name in stream.class_names]
    assert [labels[answer] for answer in stream.answers] == labels
    assert len({*stream.answers}) == 3
    assert images.stream(0, increment=3).answers is None
    with pytest.raises(ValueError, match="scenario: letters has no domains, so no class comes again"):
        source(2, 2).stream(0, tasks=1, by_label=True)


def test_more_tasks_than_classes() -> None:
    with pytest.raises(ValueError, match="tasks: expected at most as many tasks as classes, got 3 for 2 classes"):
        source(2, 2).stream(tasks=3)


def test_examples_of_the_documentation(capsys: pytest.CaptureFixture[str]) -> None:
    examples = re.findall(r"```python\n(.*?)```", DOCUMENTATION.read_text(encoding="utf-8"), re.DOTALL)
    for example in examples:
        exec(compile(example, DOCUMENTATION.name, "exec"), {})
    assert "[(0, 1, 2, 3), (4, 5, 6), (7, 8, 9)]" in capsys.readouterr().out
