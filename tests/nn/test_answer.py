"""Answer: the decision among functional sub-networks worked by hand, and its switches."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from artsy_ext.data import load_source
from artsy_ext.learner import LearnerConfig
from artsy_ext.nn import Answer
from artsy_ext.ops import plan_routes

TASK = (0, 0, 1, 2)  # of each class


class Given(Answer):
    """The likelihoods of every sub-network are given instead of measured."""

    def __init__(self, scores: Tensor) -> None:
        super().__init__(1, statistics="shared", temperature=1.0)
        self.scores = scores  # [B, S, C]
        for t in range(max(TASK) + 1):
            classes = range(TASK.index(t), len(TASK) - TASK[::-1].index(t))
            rows = torch.randn(4 * len(classes), 1)
            labels = torch.tensor(classes).repeat_interleave(4)
            self.add_task(rows, [rows] * (t + 1), labels, classes)

    def _pairs(self, features: Tensor, routes: object, z: Tensor, base: Tensor) -> Tensor:
        return self.scores[routes.sample, routes.subnetwork]  # type: ignore[attr-defined]


def asked(scores: Tensor, mask: list[int]) -> list[float]:
    """Probabilities of the classes of one sample."""
    functional = torch.tensor([mask], dtype=torch.bool)
    routes = plan_routes(functional)
    P = int(functional.sum())
    return Given(scores)(torch.zeros(P, 1), routes, torch.zeros(1, 1), functional)[0].exp().tolist()


# Sub-network 0 knows all classes, 1 those of tasks 1 and 2, 2 its own: rows of unnormalised probabilities.
KNOWN = torch.tensor([[[1.0, 3.0, 4.0, 2.0], [0.0, 0.0, 1.0, 3.0], [0.0, 0.0, 0.0, 9.0]]]).log()


@pytest.mark.parametrize(
    ("mask", "expected"),
    [
        ([1, 1, 1], [0.1, 0.3, 0.6 * 0.25, 0.6 * 0.75]),
        ([1, 0, 1], [1 / 6, 3 / 6, 0, 2 / 6]),  # task 1 is out of the question
        ([1, 1, 0], [1 / 8, 3 / 8, 4 / 8, 0]),
        ([0, 1, 1], [0, 0, 0.25, 0.75]),
        ([1, 0, 0], [0.25, 0.75, 0, 0]),
        ([0, 0, 1], [0, 0, 0, 1]),
    ],
)
def test_the_oldest_decides_first(mask: list[int], expected: list[float]) -> None:
    assert asked(KNOWN, mask) == pytest.approx(expected, abs=1e-6)


def test_far_apart_likelihoods_do_not_underflow() -> None:
    # Sub-network 0 is sure that it is not its own, so sure that its doubt is no number in float32.
    scores = torch.tensor([[[-900.0, -900.0, 0.0, -1.0], [0.0, 0.0, -500.0, 0.0], [0.0, 0.0, 0.0, 0.0]]])
    functional = torch.ones(1, 3, dtype=torch.bool)
    log_p = Given(scores)(torch.zeros(3, 1), plan_routes(functional), torch.zeros(1, 1), functional)[0]
    assert log_p.isfinite().all()
    assert log_p.tolist() == pytest.approx([-900.3133, -900.3133, -500.0, 0.0], abs=1e-3)


def tasks(generator: torch.Generator) -> list[tuple[Tensor, list[Tensor], Tensor, range]]:
    """Two tasks of two classes in D = 2: z, features of each sub-network there is, labels, classes."""
    found = []
    for t in range(2):
        labels = torch.arange(2 * t, 2 * t + 2).repeat_interleave(30)
        spaces = [3 * F.one_hot(labels, 4)[:, s : s + 2] + torch.randn(60, 2, generator=generator) for s in range(3)]
        found.append((spaces[0], spaces[1 : 2 + t], labels, range(2 * t, 2 * t + 2)))
    return found


def learned(generator: torch.Generator, **options: bool) -> Answer:
    answer = Answer(2, statistics="full", temperature=2.0, **options)  # type: ignore[arg-type]
    for z, spaces, labels, classes in tasks(generator):
        answer.add_task(z, spaces if options.get("negatives", True) else spaces[-1:], labels, classes)
    return answer


def test_older_subnetworks_meet_later_tasks() -> None:
    answer = learned(torch.Generator().manual_seed(0))
    assert [space.label.tolist() for space in answer.spaces] == [[0, 1, 2, 3], [2, 3]]
    assert [space.task.tolist() for space in answer.spaces] == [[0, 0, 1, 1], [1, 1]]
    assert [space.dim for space in answer.spaces] == [4, 4]
    alone = learned(torch.Generator().manual_seed(0), negatives=False, base_features=False)
    assert [space.label.tolist() for space in alone.spaces] == [[0, 1], [2, 3]]
    assert [space.dim for space in alone.spaces] == [2, 2]


def test_without_negatives_e0_tells_the_tasks_apart() -> None:
    generator = torch.Generator().manual_seed(0)
    answer = learned(generator, negatives=False)
    z, features = torch.randn(5, 2, generator=generator), torch.randn(10, 2, generator=generator)
    both = torch.ones(5, 2, dtype=torch.bool)
    routes = plan_routes(both)
    p = answer(features, routes, z, both).exp()
    base = (answer.base.log_likelihood(z) / 2).softmax(1)
    torch.testing.assert_close(p[:, :2].sum(1), base[:, :2].sum(1))
    for s in range(2):
        within = (answer.spaces[s].log_likelihood(torch.cat([z, features[5 * s : 5 * s + 5]], 1)) / 2).softmax(1)
        own = p[:, 2 * s : 2 * s + 2]
        torch.testing.assert_close(own / own.sum(1, keepdim=True), within)


def test_the_temperature_softens() -> None:
    z = torch.tensor([[0.0, 0.0]])
    functional = torch.tensor([[True, False]])
    likelihoods = []
    for temperature in (1.0, 3.0):
        answer = learned(torch.Generator().manual_seed(0))
        answer.temperature = temperature
        log_p = answer(torch.tensor([[1.0, -2.0]]), plan_routes(functional), z, functional)[0]
        likelihoods.append((log_p[0] - log_p[1]).item())
    assert likelihoods[0] == pytest.approx(3 * likelihoods[1], rel=1e-4)
    assert not math.isclose(likelihoods[0], 0, abs_tol=0.1)


def test_bytes_are_those_of_all_spaces() -> None:
    answer = learned(torch.Generator().manual_seed(0))
    assert answer.num_bytes == answer.base.num_bytes + sum(space.num_bytes for space in answer.spaces)
    # Space 0 holds four classes in four dimensions: means, counts, widths, and 4 + 1 triangles of 10.
    assert answer.spaces[0].num_bytes == 4 * (4 * 4 + 4 + 4 + 5 * 10)


@pytest.mark.parametrize("name", ["digits", "rotated", "domains"])
def test_the_default_keeps_less_than_the_training_images(name: str) -> None:
    # How much is kept depends on the classes and tasks alone, so a few samples of each class will do.
    config, stream = LearnerConfig(), load_source(name).stream(seed=0)
    answer = Answer(
        96, statistics=config.statistics, base_statistics=config.base_statistics, rank=config.statistics_rank
    )
    for t, task in enumerate(stream.tasks):
        labels = torch.tensor(task.classes).repeat_interleave(6)
        rows = torch.randn(len(labels), 96, generator=torch.Generator().manual_seed(t))
        answer.add_task(rows, [rows] * (t + 1), labels, range(task.classes[0], task.classes[-1] + 1))
    images = sum(len(task.train) for task in stream.tasks) * 28 * 28  # a byte for a pixel
    assert answer.num_bytes < 0.8 * images


def test_bad_settings() -> None:
    with pytest.raises(ValueError, match=r"^Answer: temperature must be positive, got 0.0$"):
        Answer(2, temperature=0.0)
