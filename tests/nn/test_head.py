"""PrototypeHead: cosines worked by hand, which classes a sub-network has a say on, and growing from a state."""

import math

import pytest
import torch
from torch import Tensor

from artsy_ext.nn import PrototypeHead, class_prototypes
from artsy_ext.ops import plan_routes

INF = math.inf


def test_prototypes_by_hand() -> None:
    # A class's prototype is the direction of the mean of directions: lengths have no say.
    features = torch.tensor([[3.0, 4.0], [0.0, 2.0], [100.0, 0.0], [5.0, 0.0]])
    prototypes = class_prototypes(features, torch.tensor([1, 1, 2, 0]), range(1, 3))
    mean = torch.tensor([0.3, 0.9])  # of (0.6, 0.8) and (0, 1)
    torch.testing.assert_close(prototypes, torch.stack([mean / mean.norm(), torch.tensor([1.0, 0.0])]))


def two_tasks(reduce: str = "max") -> PrototypeHead:
    """Features are taken from the point (1, 1). Task 0 has classes 0 and 1, task 1 has class 2."""
    head = PrototypeHead(torch.tensor([1.0, 1.0]), reduce)  # type: ignore[arg-type]
    head.add_task(
        base_features=torch.tensor([[2.0, 1.0], [1.0, 3.0]]),  # directions (1, 0) and (0, 1)
        features=torch.tensor([[1.0, 0.0], [5.0, 1.0]]),  # (0, −1) and (1, 0)
        labels=torch.tensor([0, 1]),
        classes=range(2),
    )
    head.add_task(
        base_features=torch.tensor([[4.0, 5.0], [7.0, 9.0]]),  # both (0.6, 0.8)
        features=torch.tensor([[0.0, 1.0], [-2.0, 1.0]]),  # both (−1, 0)
        labels=torch.tensor([2, 2]),
        classes=range(2, 3),
    )
    return head


def test_tasks_are_added() -> None:
    head = two_tasks()
    assert head.num_classes == 3
    torch.testing.assert_close(head.base_prototypes, torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.6, 0.8]]))
    torch.testing.assert_close(
        head.prototypes,
        torch.tensor([[[0.0, -1.0], [1.0, 0.0], [0.0, 0.0]], [[0.0, 0.0], [0.0, 0.0], [-1.0, 0.0]]]),
    )
    assert head.weight.tolist() == [[1, 1, 0], [0, 0, 1]]
    assert not list(head.parameters())


@pytest.mark.parametrize("reduce", ["max", "sum"])
@pytest.mark.parametrize(
    ("functional", "expected"),
    [
        # h0 has direction (0.8, 0.6): base cosines 0.8, 0.6, 0.96. Own features have (0, −1), then (−0.6, 0.8).
        ([True, False], [0.8 + 1.0, 0.6 + 0.0, -INF]),
        ([False, True], [-INF, -INF, 0.96 + 0.6]),
        ([True, True], [0.8 + 1.0, 0.6 + 0.0, 0.96 + 0.6]),
        ([False, False], [-INF, -INF, -INF]),
    ],
)
def test_logits_by_hand(functional: list[bool], expected: list[float], reduce: str) -> None:
    head = two_tasks(reduce)
    own = torch.tensor([[1.0, -8.0], [0.4, 1.8]])[torch.tensor(functional)]
    routes = plan_routes(torch.tensor([functional]))
    logits = head(own, routes, torch.tensor([[5.0, 4.0]]))
    torch.testing.assert_close(logits, torch.tensor([expected]))


@pytest.mark.parametrize(("reduce", "own"), [("max", 0.5 * 0.6), ("sum", 0.5 * 0.6 - 1.0)])
def test_reduce_over_subnetworks_with_a_say_on_the_same_class(reduce: str, own: float) -> None:
    head = two_tasks(reduce)
    # EASE gives the others a say, too: here sub-network 1 on class 1, with a weight.
    head.weight[1, 1] = 0.5
    head.prototypes[1, 1] = torch.tensor([-3.0, 0.0])  # any length
    features = torch.tensor([[-1.0, 1.0], [0.4, 1.8]])  # directions (−1, 0) and (−0.6, 0.8)
    logits = head(features, plan_routes(torch.tensor([[True, True]])), torch.tensor([[5.0, 4.0]]))
    # Class 1: −1 from sub-network 0, half of 0.6 from 1; 0.6 from E0.
    torch.testing.assert_close(logits, torch.tensor([[0.8 + 0.0, 0.6 + own, 0.96 + 0.6]]))


def test_base_logits_by_hand() -> None:
    logits = two_tasks().base_logits(torch.tensor([[5.0, 4.0], [1.0, -6.0]]))
    torch.testing.assert_close(logits, torch.tensor([[0.8, 0.6, 0.96], [0.0, -1.0, -0.8]]))


def _state(head: PrototypeHead) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in head.state_dict().items()}


@pytest.mark.parametrize("own", [0, 1, 3])
def test_state_loads_into_a_head_of_any_size(own: int) -> None:
    saved, head = two_tasks(), PrototypeHead(torch.zeros(2))
    for t in range(own):
        head.add_task(torch.randn(4, 2), torch.randn(4, 2), torch.full((4,), t), range(t, t + 1))
    head.load_state_dict(saved.state_dict())
    torch.testing.assert_close(_state(head), _state(saved), rtol=0, atol=0)
    own_features, h0 = torch.randn(2, 2), torch.randn(1, 2)
    routes = plan_routes(torch.tensor([[True, True]]))
    assert torch.equal(head(own_features, routes, h0), saved(own_features, routes, h0))
    for grown in (saved, head):
        torch.manual_seed(0)
        grown.add_task(torch.randn(4, 2), torch.randn(4, 2), torch.full((4,), 3), range(3, 4))
    torch.testing.assert_close(_state(head), _state(saved), rtol=0, atol=0)


def test_state_of_another_width_is_an_error() -> None:
    with pytest.raises(RuntimeError, match="size mismatch for mean"):
        PrototypeHead(torch.zeros(3)).load_state_dict(two_tasks().state_dict())


def test_the_mean_is_copied() -> None:
    mean = torch.zeros(2)
    head = PrototypeHead(mean)
    mean += 1
    assert head.mean.tolist() == [0, 0]
