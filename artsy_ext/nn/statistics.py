"""What is kept of a task: Gaussian statistics of its classes in E0's whitened features. No image."""

from typing import ClassVar

import torch
from torch import Tensor, nn

from artsy_ext.nn._growing import Growing


def covariance(x: Tensor) -> Tensor:
    """[n, D] -> [D, D], unbiased; 0 for a single row."""
    centred = x - x.mean(0)
    return centred.t() @ centred / max(len(x) - 1, 1)


def within_class_covariance(x: Tensor, labels: Tensor) -> Tensor:
    """[n, D], [n] -> [D, D]: the classes' covariances, weighted by their sizes."""
    total = x.new_zeros(x.shape[1], x.shape[1])
    for label in labels.unique():
        rows = x[labels == label]
        total += covariance(rows) * (len(rows) / len(x))
    return total


class Whitening(nn.Module):
    """z = Σ_w^(−1/2) · (h0 − µ): features in which classes are about equally wide in every direction.

    Args:
        mean: [D], µ.
        within_covariance: [D, D], Σ_w.
        shrinkage: s in (1 − s)·Σ_w + s·v·I, v the mean variance, which stands for Σ_w.
    """

    mean: Tensor
    matrix: Tensor

    def __init__(self, mean: Tensor, within_covariance: Tensor, shrinkage: float = 0.05) -> None:
        super().__init__()
        D = len(mean)
        identity = torch.eye(D, dtype=torch.float64)
        sigma = within_covariance.double().cpu()
        sigma = (1 - shrinkage) * sigma + shrinkage * sigma.diagonal().mean() * identity
        values, vectors = torch.linalg.eigh(sigma)
        root = vectors @ torch.diag(values.clamp(min=1e-6).rsqrt()) @ vectors.t()
        self.register_buffer("mean", mean.clone())
        self.register_buffer("matrix", root.to(mean))

    def forward(self, features: Tensor) -> Tensor:
        """[B, D] -> [B, D]."""
        return (features - self.mean) @ self.matrix


class ClassStatistics(Growing):
    """Mean and covariance of z for each class seen, and the task it came with.

    The covariance is 0.9·S + 0.1·diag(S) + 1e-4·I, so that pseudo-samples can be drawn from few samples' statistics.
    """

    growing: ClassVar = {"mean": (0,), "covariance": (0,), "task": (0,)}
    mean: Tensor
    covariance: Tensor
    task: Tensor

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(0, dim))
        self.register_buffer("covariance", torch.zeros(0, dim, dim))
        self.register_buffer("task", torch.zeros(0, dtype=torch.int64))

    @property
    def num_classes(self) -> int:
        """C, the classes seen so far."""
        return len(self.task)

    @torch.no_grad()
    def add_task(self, z: Tensor, labels: Tensor, classes: range) -> None:
        """Adds the next classes. z: [n, D]; labels: [n] in `classes`, which continue those seen."""
        task = int(self.task[-1]) + 1 if self.num_classes else 0
        rows = [z[labels == c] for c in classes]
        sigmas = torch.stack([covariance(r) for r in rows])
        diagonals = torch.diag_embed(sigmas.diagonal(dim1=1, dim2=2))
        identity = torch.eye(z.shape[1], dtype=z.dtype, device=z.device)
        self.mean = torch.cat([self.mean, torch.stack([r.mean(0) for r in rows])])
        self.covariance = torch.cat([self.covariance, 0.9 * sigmas + 0.1 * diagonals + 1e-4 * identity])
        self.task = torch.cat([self.task, self.task.new_full((len(classes),), task)])

    def sample(self, classes: Tensor, per_class: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Pseudo-samples of z from the classes' Gaussians: [len(classes)·per_class, D] and their labels."""
        noise = torch.randn(len(classes), per_class, self.mean.shape[1], generator=generator).to(self.mean)
        factors = torch.linalg.cholesky(self.covariance[classes])
        z = self.mean[classes, None] + noise @ factors.transpose(1, 2)
        return z.flatten(0, 1), classes.repeat_interleave(per_class)
