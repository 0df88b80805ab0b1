"""Covariances, and the whitening of features by them."""

import torch
from torch import Tensor, nn


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
