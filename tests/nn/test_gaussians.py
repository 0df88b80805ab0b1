"""ClassGaussians against PyTorch's normal distribution and numbers by hand; pseudo-samples against their moments."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from artsy_ext.nn import ClassGaussians, covariance

D = 6
KINDS = ("full", "shared", "low-rank", "diagonal")
SIZES = ((40, 9), (25,))  # samples of each class, by task


def draw(seed: int = 0) -> list[tuple[Tensor, Tensor, range]]:
    """Per task samples, labels and classes; every class has directions and widths of its own."""
    generator = torch.Generator().manual_seed(seed)
    tasks, first = [], 0
    for sizes in SIZES:
        classes = range(first, first + len(sizes))
        labels = torch.tensor(classes).repeat_interleave(torch.tensor(sizes))
        shape = torch.randn(len(sizes), D, D, generator=generator)[labels - first]
        x = torch.einsum("nd,nde->ne", torch.randn(len(labels), D, generator=generator), shape)
        tasks.append((x + 5 * torch.randn(len(sizes), D, generator=generator)[labels - first], labels, classes))
        first = classes.stop
    return tasks


def learned(kind: Any, **options: Any) -> ClassGaussians:
    gaussians = ClassGaussians(D, kind, **{"rank": 2, **options})
    for t, (x, labels, classes) in enumerate(draw()):
        gaussians.add_task(x, labels, classes, t)
    return gaussians


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shrinkage", [0.3, 1.0])
def test_likelihood_is_that_of_the_normal_distribution(kind: str, shrinkage: float) -> None:
    gaussians = learned(kind, shrinkage=shrinkage)
    x = 4 * torch.randn(11, D, generator=torch.Generator().manual_seed(1))
    normals = [
        torch.distributions.MultivariateNormal(gaussians.mean[c].double(), gaussians.covariance(c)) for c in range(3)
    ]
    expected = torch.stack([normal.log_prob(x.double()) for normal in normals], 1).float()
    found = gaussians.log_likelihood(x)
    # But for one constant, the same for all samples and classes.
    torch.testing.assert_close(found - found[0, 0], expected - expected[0, 0], rtol=1e-4, atol=1e-3)


def pooled_by_hand() -> Tensor:
    """Σ̄ over the three classes: weighted by samples less one, and held off from being singular."""
    total = torch.zeros(D, D)
    for x, labels, classes in draw():
        for c in classes:
            rows = x[labels == c]
            total += (len(rows) - 1) * covariance(rows)
    sigma = total / (39 + 8 + 24)
    diagonal = sigma.diagonal()
    return 0.98 * sigma + torch.diag(0.02 * diagonal + 1e-4 * diagonal.mean())


def test_covariances_by_their_formulas() -> None:
    pooled, first = pooled_by_hand(), draw()[0]
    own = covariance(first[0][first[1] == 1])

    def of_class_one(kind: str, **options: Any) -> Tensor:
        return learned(kind, shrinkage=0.25, **options).covariance(1).float()

    torch.testing.assert_close(of_class_one("full"), 0.75 * own + 0.25 * pooled, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(of_class_one("shared"), pooled, rtol=1e-4, atol=1e-4)
    expected = torch.diag(0.75 * own.diagonal() + 0.25 * pooled.diagonal())
    torch.testing.assert_close(of_class_one("diagonal"), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("rank", [1, 3])
def test_low_rank_keeps_the_widest_directions(rank: int) -> None:
    # One task, so that the class is measured beside the Σ̄ that is there at the end.
    x, labels, classes = draw()[0]
    gaussians = ClassGaussians(D, "low-rank", rank=rank, shrinkage=0.25)
    gaussians.add_task(x, labels, classes, 0)
    pooled = ClassGaussians(D, "shared")
    pooled.add_task(x, labels, classes, 0)
    root = torch.linalg.cholesky(pooled.covariance(0))
    inverse = torch.linalg.inv(root)

    def beside(sigma: Tensor) -> Tensor:
        return torch.linalg.eigvalsh(inverse @ sigma.double() @ inverse.t())

    for c in classes:
        wanted = beside(covariance(x[labels == c]))
        kept = (beside(gaussians.covariance(c)) - 0.25) / 0.75
        torch.testing.assert_close(kept[-rank:], wanted[-rank:], rtol=1e-3, atol=1e-3)
        torch.testing.assert_close(kept[:-rank], wanted[:-rank].mean().expand(D - rank).clone(), rtol=1e-3, atol=1e-3)


def test_classes_labels_and_tasks() -> None:
    gaussians = learned("shared")
    assert gaussians.num_classes == 3
    assert gaussians.label.tolist() == [0, 1, 2]
    assert gaussians.task.tolist() == [0, 0, 1]
    for c, (x, labels) in enumerate([draw()[0][:2]] * 2 + [draw()[1][:2]]):
        torch.testing.assert_close(gaussians.mean[c], x[labels == c].mean(0))


@pytest.mark.parametrize(
    ("kind", "numbers"),
    # Means, samples less one and widths; then triangles of 21 numbers, or directions, or variances.
    [("full", 4 * 21), ("shared", 21), ("low-rank", 21 + 3 * 2 * D), ("diagonal", 4 * D)],
)
def test_bytes_by_hand(kind: str, numbers: int) -> None:
    assert learned(kind).num_bytes == 4 * (3 * D + 3 + 3 + numbers)


@pytest.mark.parametrize("kind", KINDS)
def test_an_older_tasks_classes_stay(kind: Any) -> None:
    gaussians = ClassGaussians(D, kind, rank=2)
    first, second = draw()
    gaussians.add_task(*first, 0)
    before = {name: getattr(gaussians, name).clone() for name in ("mean", "own", "width", "freedom")}
    gaussians.add_task(*second, 1)
    for name, value in before.items():
        assert torch.equal(getattr(gaussians, name)[:2], value)


@pytest.mark.parametrize("kind", KINDS)
def test_pseudo_samples_have_the_classes_moments(kind: str, generator: Callable[[int], torch.Generator]) -> None:
    gaussians = learned(kind)
    x, labels = gaussians.sample(torch.tensor([2, 0]), 100_000, generator(0))
    assert torch.equal(labels, torch.tensor([2, 0]).repeat_interleave(100_000))
    for c in (2, 0):
        rows, sigma = x[labels == c], gaussians.covariance(c).float()
        scale = sigma.diagonal().sqrt()
        # Five standard errors of a mean, and about that of a covariance, from 100,000 draws.
        assert ((rows.mean(0) - gaussians.mean[c]).abs() < 5 * scale / 100_000**0.5).all()
        assert ((covariance(rows) - sigma).abs() < 0.03 * scale[:, None] * scale).all()


def test_pseudo_samples_follow_the_generator(generator: Callable[[int], torch.Generator]) -> None:
    gaussians, state = learned("full"), torch.get_rng_state()
    first, again, other = (gaussians.sample(torch.arange(3), 4, generator(seed))[0] for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert torch.equal(torch.get_rng_state(), state)
    none, labels = gaussians.sample(torch.zeros(0, dtype=torch.int64), 7, generator(0))
    assert (none.shape, labels.shape) == ((0, D), (0,))


@pytest.mark.parametrize("kind", KINDS)
def test_classes_of_one_sample(kind: Any, generator: Callable[[int], torch.Generator]) -> None:
    # Without any covariance the nearest mean answers, and pseudo-samples are near it.
    gaussians = ClassGaussians(3, kind, rank=1)
    means = torch.tensor([[1.0, 2.0, 3.0], [1.0, 2.0, 4.0]])
    gaussians.add_task(means, torch.tensor([0, 1]), range(2), 0)
    assert gaussians.log_likelihood(torch.tensor([[0.9, 2.1, 3.4], [5.0, 0.0, 3.6]])).argmax(1).tolist() == [0, 1]
    z, _ = gaussians.sample(torch.tensor([1]), 100, generator(0))
    assert (z - means[1]).abs().amax() < 0.1
    # And beside classes of many samples theirs is the common covariance's share.
    gaussians.add_task(torch.randn(30, 3), torch.full((30,), 2), range(2, 3), 1)
    assert gaussians.log_likelihood(means).isfinite().all()


@pytest.mark.parametrize("kind", KINDS)
def test_state_loads_into_empty_gaussians(kind: Any) -> None:
    saved = learned(kind)
    loaded = ClassGaussians(D, kind, rank=2)
    loaded.load_state_dict(saved.state_dict())
    x = torch.randn(5, D)
    assert torch.equal(loaded.log_likelihood(x), saved.log_likelihood(x))
    loaded.add_task(torch.randn(4, D), torch.full((4,), 3), range(3, 4), 2)
    assert loaded.task.tolist() == [0, 0, 1, 2]
    with pytest.raises(RuntimeError, match="size mismatch for mean"):
        ClassGaussians(5, kind, rank=2).load_state_dict(saved.state_dict())


def test_autocast_takes_nothing_off() -> None:
    gaussians, x = learned("full"), torch.randn(5, D)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(gaussians.log_likelihood(x), gaussians.log_likelihood(x.float()))
    assert gaussians.log_likelihood(x).dtype == torch.float32


@pytest.mark.parametrize(
    ("kind", "options", "message"),
    [
        ("half", {}, "ClassGaussians: kind must be full, shared, low-rank or diagonal, got 'half'"),
        ("low-rank", {"rank": 7}, r"ClassGaussians: rank must be in \[0, 6\], got 7"),
        ("full", {"shrinkage": 0.0}, r"ClassGaussians: shrinkage must be in \(0, 1\], got 0.0"),
    ],
)
def test_bad_settings(kind: Any, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=f"^{message}$"):
        ClassGaussians(D, kind, **options)
