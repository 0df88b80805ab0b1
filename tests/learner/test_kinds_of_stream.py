"""Streams of every kind, learned by every method: tasks of one class, of a few images, and classes that come again."""

import dataclasses
from collections.abc import Callable
from typing import Any

import pytest
import torch
from timm.models.vision_transformer import VisionTransformer
from torch.utils.data import TensorDataset

from artsy_ext.data import Images, Stream, Task
from artsy_ext.learner import METHODS, Features, LearnerConfig, run_experiment
from artsy_ext.learner.progress import Progress
from artsy_ext.nn import RoutedViT

MakeData = Callable[..., TensorDataset]


def stream_of(make_data: MakeData, *tasks: tuple[int, ...], train: int = 20, **more: Any) -> Stream:
    """Tasks of these classes with so many training images and 4 test images of each."""
    parts = [
        Task(
            classes,
            Images.of_tensors(*make_data(classes, per_class=train, seed=1).tensors),
            Images.of_tensors(*make_data(classes, per_class=4, seed=2).tensors),
        )
        for classes in tasks
    ]
    return Stream("tiny", tuple(parts), tuple("abcdefghijklmnop"[: 1 + tasks[-1][-1]]), **more)


def results_of(stream: Stream, vit: VisionTransformer, config: LearnerConfig, *methods: str) -> dict[str, Any]:
    result = run_experiment(
        lambda seed: stream, Features(RoutedViT(vit)), None, methods or tuple(METHODS), [0], config, Progress.silent()
    )
    found: dict[str, Any] = result.results["methods"]
    return found


@pytest.fixture(scope="module")
def fast(tiny_config: LearnerConfig) -> LearnerConfig:
    return dataclasses.replace(tiny_config, epochs=1)


@pytest.mark.parametrize(
    ("tasks", "train"),
    [
        pytest.param([(0,), (1,), (2,)], 20, id="one class each"),
        pytest.param([(0, 1, 2), (3,)], 1, id="one image of each class"),
        pytest.param([(0,), (1, 2)], 2, id="two images of each class"),
        pytest.param([(0, 1, 2, 3), (4,), (5, 6, 7)], 5, id="uneven"),
        pytest.param([(0, 1)], 10, id="one task"),
    ],
)
def test_every_method_learns_any_tasks(
    tasks: list[tuple[int, ...]], train: int, make_data: MakeData, tiny_vit: VisionTransformer, fast: LearnerConfig
) -> None:
    found = results_of(stream_of(make_data, *tasks, train=train), tiny_vit, fast)
    for name, method in found.items():
        curve = method["incremental_accuracy"]["mean"]
        assert len(curve) == len(tasks), name
        assert all(0 <= accuracy <= 100 for accuracy in curve), name
        # A lone class is the only possible answer.
        assert curve[0] == 100 or len(tasks[0]) > 1, name
    assert found["simplecil"]["last_accuracy"]["mean"] > 60


def test_forty_tasks(make_data: MakeData, tiny_vit: VisionTransformer, fast: LearnerConfig) -> None:
    # There are pictures for 16 classes. They come again as classes of their own, which nobody could tell from them.
    tasks = []
    for t in range(40):
        images, _ = make_data((t % 16,), per_class=3, seed=t).tensors
        shown = Images.of_tensors(images, torch.full((3,), t))
        tasks.append(Task((t,), shown, shown))
    stream = Stream("long", tuple(tasks), tuple(map(str, range(40))), answers=tuple(t % 16 for t in range(40)))
    (artsy,) = results_of(stream, tiny_vit, fast, "artsy").values()
    assert len(artsy["synapses"]["routing_matrix"]["mean"]) == 40
    assert artsy["synapses"]["mean_functional"]["mean"] < 20
    assert artsy["last_accuracy"]["mean"] > 30


def test_a_class_that_comes_again_in_another_domain_is_the_same_answer(
    make_data: MakeData, tiny_vit: VisionTransformer, fast: LearnerConfig
) -> None:
    # The second task shows the classes of the first one again, in other pictures and in another order.
    tasks = ((0, 1), (2, 3))
    apart = results_of(stream_of(make_data, *tasks), tiny_vit, fast, "simplecil", "artsy")
    same = results_of(stream_of(make_data, *tasks, answers=(0, 1, 1, 0)), tiny_vit, fast, "simplecil", "artsy")
    wrong = results_of(stream_of(make_data, *tasks, answers=(0, 0, 0, 0)), tiny_vit, fast, "simplecil", "artsy")
    for name in apart:
        assert same[name]["synapses"] == apart[name]["synapses"]
        assert same[name]["last_accuracy"]["mean"] >= apart[name]["last_accuracy"]["mean"]
        assert wrong[name]["last_accuracy"]["mean"] == 100
