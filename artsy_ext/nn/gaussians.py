"""ClassGaussians: what is kept of classes in a space of features, in as many bytes as one is ready to spend."""

from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from artsy_ext.nn._growing import Growing
from artsy_ext.nn.statistics import covariance

Kind = Literal["full", "shared", "low-rank", "diagonal"]


class ClassGaussians(Growing):
    """Mean and covariance of C classes; how likely they make a sample, and samples drawn from them.

    The covariance of a class is Q_c = (1 − s)·Σ_c + s·Σ̄, with Σ̄ the classes' covariances weighted by their degrees of
    freedom (98 % of it, 2 % of its diagonal, and 1e-4 of its mean variance), as one class's samples are few beside D².
    What Σ_c is depends on the kind:

    - full: the class's covariance, stored as its upper triangle;
    - low-rank: v_c·Σ̄ + F_c·F_cᵀ, where F_c holds the `rank` directions in which the class is widest beside Σ̄ when it
      comes, and v_c is how wide it is in the others;
    - shared: Σ̄, for all classes (linear discriminant analysis);
    - diagonal: the variances alone, of Σ̄, too.

    Args:
        dim: D.
        kind, rank: what is stored of a class beside its mean.
        shrinkage: s.

    Attributes:
        label, task: [C] int64 the classes' indexes, and the tasks that they came with.

    Raises:
        ValueError: an argument is out of its range.
    """

    growing: ClassVar = {"mean": (0,), "freedom": (0,), "own": (0,), "width": (0,), "label": (0,), "task": (0,)}
    mean: Tensor
    freedom: Tensor
    pooled: Tensor
    own: Tensor
    width: Tensor
    label: Tensor
    task: Tensor
    whiten: Tensor
    factor: Tensor
    offset: Tensor
    log_det: Tensor

    def __init__(self, dim: int, kind: Kind = "full", *, rank: int = 4, shrinkage: float = 0.8) -> None:
        super().__init__()
        if kind not in ("full", "shared", "low-rank", "diagonal"):
            raise ValueError(f"ClassGaussians: kind must be full, shared, low-rank or diagonal, got {kind!r}")
        if kind == "low-rank" and not 0 <= rank <= dim:
            raise ValueError(f"ClassGaussians: rank must be in [0, {dim}], got {rank}")
        if not 0 < shrinkage <= 1:
            raise ValueError(f"ClassGaussians: shrinkage must be in (0, 1], got {shrinkage}")
        self.dim, self.kind, self.shrinkage = dim, kind, shrinkage
        self.rank = rank if kind == "low-rank" else 0
        triangle = dim * (dim + 1) // 2
        stored = {"full": triangle, "shared": 0, "low-rank": self.rank * dim, "diagonal": dim}[kind]
        self.register_buffer("mean", torch.zeros(0, dim))
        self.register_buffer("freedom", torch.zeros(0))  # of each class: samples less one
        self.register_buffer("pooled", torch.zeros(dim if kind == "diagonal" else triangle))
        self.register_buffer("own", torch.zeros(0, stored))
        self.register_buffer("width", torch.zeros(0))
        self.register_buffer("label", torch.zeros(0, dtype=torch.int64))
        self.register_buffer("task", torch.zeros(0, dtype=torch.int64))
        for name in ("whiten", "factor", "offset", "log_det"):  # follow from what is stored
            self.register_buffer(name, torch.zeros(0), persistent=False)
        self.register_load_state_dict_post_hook(_prepare)

    @property
    def num_classes(self) -> int:
        """C."""
        return len(self.mean)

    @property
    def num_bytes(self) -> int:
        """Of the numbers that describe the classes, as they are stored."""
        described = (self.mean, self.freedom, self.pooled, self.own, self.width)
        return sum(t.numel() * t.element_size() for t in described)

    @torch.no_grad()
    def add_task(self, x: Tensor, labels: Tensor, classes: range, task: int) -> None:
        """Adds the classes of a task. x: [n, D]; labels: [n] in `classes`, each of which has a sample."""
        rows = [x[labels == c] for c in classes]
        centred = [r - r.mean(0) for r in rows]
        freedom = torch.tensor([float(len(r) - 1) for r in rows]).to(self.mean)
        before, total = self.freedom.sum(), (self.freedom.sum() + freedom.sum()).clamp(min=1)
        everyone = torch.cat(centred)
        self.pooled = self.pooled * (before / total) + self._packed(everyone.t() @ everyone / total)
        width = torch.ones_like(freedom)
        if self.kind == "low-rank":
            own, width = self._widest(centred)
        elif self.kind == "shared":
            own = x.new_zeros(len(rows), 0)
        else:
            own = self._packed(torch.stack([covariance(r) for r in rows]))
        self.mean = torch.cat([self.mean, torch.stack([r.mean(0) for r in rows])])
        self.freedom = torch.cat([self.freedom, freedom])
        self.label = torch.cat([self.label, torch.arange(classes.start, classes.stop).to(self.label)])
        self.task = torch.cat([self.task, self.task.new_full((len(rows),), task)])
        self.own, self.width = torch.cat([self.own, own]), torch.cat([self.width, width])
        _prepare(self)

    def log_likelihood(self, x: Tensor) -> Tensor:
        """[B, D] -> [B, C], but for a constant that all classes share."""
        with torch.autocast(x.device.type, enabled=False):  # squared distances want all the digits there are
            return self._log_likelihood(x.to(self.mean))

    def _log_likelihood(self, x: Tensor) -> Tensor:
        if self.kind == "full":
            distance = torch.einsum("bd,cde->cbe", x, self.factor) - self.offset[:, None]
            return -0.5 * (distance.square().sum(2).t() + self.log_det)
        if self.kind == "diagonal":
            distance = x.square() @ self.factor.t() - 2 * x @ (self.factor * self.mean).t() + self.offset
            return -0.5 * (distance + self.log_det)
        # ‖y‖² as Σ̄ whitens the sample, less what the class's own directions take off.
        y, centres = x @ self.whiten, self.mean @ self.whiten
        distance = y.square().sum(1, keepdim=True) - 2 * y @ centres.t() + centres.square().sum(1)
        along = torch.einsum("bd,crd->bcr", y, self.factor) - self.offset
        return -0.5 * (distance / self._isotropic() - along.square().sum(2) + self.log_det)

    def sample(self, classes: Tensor, per_class: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Pseudo-samples from the classes' Gaussians: [len(classes)·per_class, D] and their labels."""
        noise = torch.randn(len(classes), per_class, self.dim, generator=generator).to(self.mean)
        for row, c in enumerate(classes.tolist()):
            noise[row] = noise[row] @ torch.linalg.cholesky(self.covariance(c)).t().to(noise) + self.mean[c]
        return noise.flatten(0, 1), classes.repeat_interleave(per_class)

    def covariance(self, c: int) -> Tensor:
        """[D, D] Q_c of class c, float64."""
        s, pooled = self.shrinkage, self._pooled()
        own = self.own[c].double()
        if self.kind == "full":
            sigma = self._unpacked(own)
        elif self.kind == "diagonal":
            sigma = torch.diag(own)
        else:
            directions = own.view(self.rank, self.dim)
            sigma = self.width[c] * pooled + directions.t() @ directions
        return (1 - s) * sigma + s * pooled

    def _isotropic(self) -> Tensor:
        """[C] how much of Σ̄ is in Q_c beside the class's own directions."""
        return (1 - self.shrinkage) * self.width + self.shrinkage

    def _pooled(self) -> Tensor:
        """[D, D] Σ̄, float64, never singular."""
        sigma = torch.diag(self.pooled.double()) if self.kind == "diagonal" else self._unpacked(self.pooled.double())
        variances = sigma.diagonal()
        return 0.98 * sigma + torch.diag(0.02 * variances + 1e-4 * variances.mean().clamp(min=1e-8))

    def _widest(self, centred: list[Tensor]) -> tuple[Tensor, Tensor]:
        """From the samples [n, D] of K classes, less their means: factors [K, rank·D] and the widths [K]."""
        root = torch.linalg.cholesky(self._pooled())
        factors, widths = [], []
        for rows in centred:
            whitened = torch.linalg.solve_triangular(root, rows.double().t(), upper=False)
            vectors, values, _ = torch.linalg.svd(whitened, full_matrices=False)
            values = values.square() / max(len(rows) - 1, 1)
            r = min(self.rank, len(values))  # a class of few samples has no more directions
            width = values[r:].sum() / max(self.dim - self.rank, 1)
            wide = root @ (vectors[:, :r] * (values[:r] - width).clamp(min=0).sqrt())
            factors.append(F.pad(wide.t(), (0, 0, 0, self.rank - r)).flatten())
            widths.append(width)
        return torch.stack(factors).to(self.mean), torch.stack(widths).to(self.mean)

    def _packed(self, sigma: Tensor) -> Tensor:
        """[..., D, D] -> what is stored of it: the upper triangle, or the diagonal."""
        if self.kind == "diagonal":
            return sigma.diagonal(dim1=-2, dim2=-1)
        row, column = torch.triu_indices(self.dim, self.dim, device=sigma.device)
        return sigma[..., row, column]

    def _unpacked(self, triangle: Tensor) -> Tensor:
        row, column = torch.triu_indices(self.dim, self.dim, device=triangle.device)
        sigma = triangle.new_zeros(self.dim, self.dim)
        sigma[row, column] = triangle
        sigma[column, row] = triangle
        return sigma


@torch.no_grad()
def _prepare(gaussians: ClassGaussians, *_: object) -> None:
    """What `log_likelihood` needs, from what is stored."""
    g, C, D = gaussians, gaussians.num_classes, gaussians.dim
    if not C:
        return
    identity = torch.eye(D, dtype=torch.float64, device=g.mean.device)
    if g.kind == "full":
        roots = [torch.linalg.cholesky(g.covariance(c)) for c in range(C)]
        inverse = torch.stack([torch.linalg.solve_triangular(r, identity, upper=False).t().to(g.mean) for r in roots])
        g.factor, g.offset = inverse, torch.einsum("cd,cde->ce", g.mean, inverse)
        g.log_det = torch.stack([2 * r.diagonal().log().sum() for r in roots]).to(g.mean)
    elif g.kind == "diagonal":
        variance = (1 - g.shrinkage) * g.own + g.shrinkage * g._pooled().diagonal().to(g.mean)
        g.factor, g.log_det = 1 / variance, variance.log().sum(1)
        g.offset = (g.factor * g.mean.square()).sum(1)
    else:
        root = torch.linalg.cholesky(g._pooled())
        g.whiten = torch.linalg.solve_triangular(root, identity, upper=False).t().to(g.mean)
        # Woodbury: (v·I + G·Gᵀ)⁻¹ = (I − H·Hᵀ)/v, H = G·chol(v·I + GᵀG)⁻ᵀ.
        isotropic = g._isotropic().double()[:, None, None]
        wide = (1 - g.shrinkage) ** 0.5 * g.own.view(C, g.rank, D) @ g.whiten
        wide = wide.double()
        inner = torch.linalg.cholesky(
            isotropic * torch.eye(g.rank, dtype=torch.float64, device=wide.device) + wide @ wide.transpose(1, 2)
        )
        g.factor = (torch.linalg.solve_triangular(inner, wide, upper=False) / isotropic.sqrt()).to(g.mean)
        g.offset = torch.einsum("cd,crd->cr", g.mean @ g.whiten, g.factor)
        log_det = (D - g.rank) * isotropic[:, 0, 0].log() + 2 * inner.diagonal(dim1=1, dim2=2).log().sum(1)
        g.log_det = log_det.to(g.mean)
