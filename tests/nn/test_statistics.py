"""Whitening and class statistics against numbers worked by hand, and pseudo-samples against their own moments."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from artsy_ext.nn import ClassStatistics, Whitening, covariance, within_class_covariance


def skewed(n: int, seed: int = 0) -> Tensor:
    """[n, 6]: correlated, with standard deviations from 0.1 to 10."""
    generator = torch.Generator().manual_seed(seed)
    spread = torch.logspace(-1, 1, 6, dtype=torch.float64)
    turn = torch.linalg.qr(torch.randn(6, 6, generator=generator, dtype=torch.float64))[0]
    return torch.randn(n, 6, generator=generator, dtype=torch.float64) * spread @ turn


def test_covariance_by_hand() -> None:
    x = torch.tensor([[0.0, 1.0], [2.0, 1.0], [4.0, 4.0]])
    # Centred: (−2, −1), (0, −1), (2, 2); sums of products 8, 6, 6 over n − 1 = 2.
    assert torch.equal(covariance(x), torch.tensor([[4.0, 3.0], [3.0, 3.0]]))


def test_covariance_of_one_row_is_zero() -> None:
    assert torch.equal(covariance(torch.tensor([[3.0, 4.0]])), torch.zeros(2, 2))


def test_within_class_covariance_by_hand() -> None:
    x = torch.tensor([[0.0], [2.0], [10.0], [10.0], [16.0], [7.0]])
    labels = torch.tensor([4, 4, 9, 9, 9, 5])
    # Variances 2 (of 2 rows), 12 (of 3), 0 (of one): 2·2/6 + 12·3/6.
    torch.testing.assert_close(within_class_covariance(x, labels), torch.tensor([[2 / 3 + 6]]))


def test_whitening_makes_classes_round() -> None:
    labels = torch.arange(4).repeat_interleave(50)
    x = skewed(200) + 30 * torch.randn(4, 6, dtype=torch.float64)[labels]
    sigma = within_class_covariance(x, labels)
    z = Whitening(x.mean(0), sigma, shrinkage=0.0)(x)
    torch.testing.assert_close(within_class_covariance(z, labels), torch.eye(6, dtype=torch.float64), atol=1e-8, rtol=0)
    torch.testing.assert_close(z.mean(0), torch.zeros(6, dtype=torch.float64), atol=1e-8, rtol=0)


def test_shrinkage_mixes_in_the_mean_variance() -> None:
    # Variances 1 and 9: their mean, 5, has 5 % of the say, so 1.2 and 8.8 are taken for them.
    whitening = Whitening(torch.tensor([1.0, 2.0]), torch.diag(torch.tensor([1.0, 9.0])))
    z = whitening(torch.tensor([[2.0, 2.0], [1.0, 5.0]]))
    torch.testing.assert_close(z, torch.diag(torch.tensor([1.2**-0.5, 3 * 8.8**-0.5])))


def test_whitening_is_symmetric_and_takes_a_singular_covariance() -> None:
    # Features after a layer norm obey one linear relation, so their covariance has no inverse.
    x = skewed(100).float()
    x = x - x.mean(1, keepdim=True)
    whitening = Whitening(x.mean(0), covariance(x))
    torch.testing.assert_close(whitening.matrix, whitening.matrix.t())
    z = whitening(x)
    assert z.dtype == torch.float32
    assert z.isfinite().all()
    assert z.std(0).amax() < 1.1


def test_whitening_is_state_and_not_trained() -> None:
    whitening = Whitening(torch.randn(3), torch.eye(3) * 4)
    assert not list(whitening.parameters())
    other = Whitening(torch.zeros(3), torch.eye(3))
    other.load_state_dict(whitening.state_dict())
    x = torch.randn(5, 3)
    assert torch.equal(other(x), whitening(x))


def test_statistics_by_hand() -> None:
    z = torch.tensor([[0.0, 1.0], [7.0, 7.0], [2.0, 1.0], [4.0, 4.0]])
    statistics = ClassStatistics(2)
    statistics.add_task(z, torch.tensor([0, 1, 0, 0]), range(2))
    assert torch.equal(statistics.mean, torch.tensor([[2.0, 2.0], [7.0, 7.0]]))
    # S = [[4, 3], [3, 3]] as above; the diagonal of 0.9·S + 0.1·diag(S) is that of S, the rest is 0.9 of it.
    expected = torch.tensor([[[4.0, 2.7], [2.7, 3.0]], [[0.0, 0.0], [0.0, 0.0]]]) + 1e-4 * torch.eye(2)
    torch.testing.assert_close(statistics.covariance, expected)


def test_tasks_are_counted() -> None:
    statistics = ClassStatistics(2)
    assert statistics.num_classes == 0
    for classes in (range(2), range(2, 5), range(5, 6)):
        statistics.add_task(torch.randn(12, 2), torch.arange(12) % len(classes) + classes.start, classes)
    assert statistics.task.tolist() == [0, 0, 1, 1, 1, 2]
    assert statistics.num_classes == 6
    assert (statistics.mean.shape, statistics.covariance.shape) == ((6, 2), (6, 2, 2))


def test_an_older_tasks_statistics_stay() -> None:
    statistics = ClassStatistics(2)
    statistics.add_task(torch.randn(8, 2), torch.arange(8) % 2, range(2))
    before = {name: value.clone() for name, value in statistics.state_dict().items()}
    statistics.add_task(torch.randn(8, 2), torch.full((8,), 2), range(2, 3))
    for name, value in before.items():
        assert torch.equal(statistics.state_dict()[name][:2], value)


@pytest.fixture
def three_classes() -> ClassStatistics:
    statistics = ClassStatistics(6)
    labels = torch.arange(3).repeat_interleave(40)
    shifts = torch.tensor([0.0, 50.0, -50.0])
    statistics.add_task(skewed(120).float() + shifts[labels, None], labels, range(3))
    return statistics


def test_pseudo_samples_have_the_classes_moments(
    three_classes: ClassStatistics, generator: Callable[[int], torch.Generator]
) -> None:
    z, labels = three_classes.sample(torch.tensor([2, 0]), 100_000, generator(0))
    assert torch.equal(labels, torch.tensor([2, 0]).repeat_interleave(100_000))
    for c in (2, 0):
        rows, sigma = z[labels == c], three_classes.covariance[c]
        scale = sigma.diagonal().sqrt()
        # Five standard errors of a mean, and about that of a covariance, from 100,000 draws.
        assert ((rows.mean(0) - three_classes.mean[c]).abs() < 5 * scale / 100_000**0.5).all()
        assert ((covariance(rows) - sigma).abs() < 0.03 * scale[:, None] * scale).all()


def test_pseudo_samples_follow_the_generator(
    three_classes: ClassStatistics, generator: Callable[[int], torch.Generator]
) -> None:
    state = torch.get_rng_state()
    first, again, other = (three_classes.sample(torch.arange(3), 4, generator(seed))[0] for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert torch.equal(torch.get_rng_state(), state)


def test_pseudo_samples_of_no_class(
    three_classes: ClassStatistics, generator: Callable[[int], torch.Generator]
) -> None:
    z, labels = three_classes.sample(torch.zeros(0, dtype=torch.int64), 7, generator(0))
    assert (z.shape, labels.shape) == ((0, 6), (0,))


def test_pseudo_samples_of_a_class_with_one_sample(generator: Callable[[int], torch.Generator]) -> None:
    statistics = ClassStatistics(3)
    statistics.add_task(torch.tensor([[1.0, 2.0, 3.0]]), torch.tensor([0]), range(1))
    z, _ = statistics.sample(torch.tensor([0]), 1000, generator(0))
    assert (z - torch.tensor([1.0, 2.0, 3.0])).abs().amax() < 0.06  # a standard deviation of 0.01 remains


def test_state_loads_into_empty_statistics(three_classes: ClassStatistics) -> None:
    loaded = ClassStatistics(6)
    loaded.load_state_dict(three_classes.state_dict())
    torch.testing.assert_close(loaded.state_dict(), three_classes.state_dict(), rtol=0, atol=0)
    loaded.add_task(torch.randn(4, 6), torch.full((4,), 3), range(3, 4))
    assert loaded.task.tolist() == [0, 0, 0, 1]
    with pytest.raises(RuntimeError, match="size mismatch for mean"):
        ClassStatistics(5).load_state_dict(three_classes.state_dict())
