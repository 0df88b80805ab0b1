"""Covariances and whitening against numbers worked by hand."""

import torch
from torch import Tensor

from artsy_ext.nn import Whitening, covariance, within_class_covariance


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
