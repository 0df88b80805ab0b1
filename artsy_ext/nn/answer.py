"""Answer: which class a sample has, decided among its functional sub-networks, the oldest first."""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from artsy_ext.nn.gaussians import ClassGaussians, Kind
from artsy_ext.ops import Routes


class Answer(nn.Module):
    """Gaussians of all classes in E0's features, and in each sub-network's of its own and all younger classes.

    Sub-network s has met its own task and, while they were at hand, the samples of every later one. So it can say how
    likely a sample is its task's, given that it is no older one's:

        p_s(c) = softmax over the classes c of task s and of the younger functional sub-networks of
                 log N(x_s; c) / temperature, with x_s = [z; z_s]

    and what it leaves to the younger ones is multiplied on:

        p(c) = p_s(c) · Π over functional r < s of (1 − Σ over c' of task r of p_r(c'))       s the task of c

    Args:
        dim: D, of E0's whitened features z and of a sub-network's z_s.
        statistics: the kind of `ClassGaussians` in the sub-networks' spaces.
        base_statistics: the same in E0's space.
        rank: of both, where they are low-rank.
        shrinkage: of both.
        temperature: likelihoods are taken to the power 1/temperature, as features are not quite Gaussian.
        base_features: whether x_s holds z; else it is z_s alone.
        negatives: whether older sub-networks meet the samples of later tasks; else E0's Gaussians say what is a task's.
    """

    def __init__(
        self,
        dim: int,
        *,
        statistics: Kind = "low-rank",
        base_statistics: Kind = "full",
        rank: int = 4,
        shrinkage: float = 0.8,
        temperature: float = 4.0,
        base_features: bool = True,
        negatives: bool = True,
    ) -> None:
        super().__init__()
        if not temperature > 0:
            raise ValueError(f"Answer: temperature must be positive, got {temperature}")
        self.dim, self.temperature = dim, temperature
        self.base_features, self.negatives = base_features, negatives
        self._own: dict[str, Any] = {"kind": statistics, "rank": rank, "shrinkage": shrinkage}
        self.base = ClassGaussians(dim, base_statistics, rank=rank, shrinkage=shrinkage)
        self.own = nn.ModuleList()

    @property
    def num_classes(self) -> int:
        """C."""
        return self.base.num_classes

    @property
    def num_bytes(self) -> int:
        """Of the classes' statistics in all spaces."""
        return self.base.num_bytes + sum(own.num_bytes for own in self.spaces)

    @property
    def spaces(self) -> list[ClassGaussians]:
        """The Gaussians in the sub-networks' spaces, the oldest first."""
        return [own for own in self.own if isinstance(own, ClassGaussians)]

    def add_task(self, z: Tensor, features: Sequence[Tensor], labels: Tensor, classes: range) -> None:
        """Adds the next sub-network and its classes.

        Args:
            z: [n, D] the task's samples in E0's whitened features.
            features: [n, D] the samples in the whitened features of each sub-network, the new one last; of the new one
                alone without `negatives`.
            labels: [n] in `classes`, which continue those known.
        """
        task = len(self.own)
        self.base.add_task(z, labels, classes, task)
        self._add_space()
        for own, z_s in zip(self.spaces if self.negatives else self.spaces[-1:], features, strict=True):
            own.add_task(self._space(z, z_s), labels, classes, task)

    def forward(self, features: Tensor, routes: Routes, z: Tensor, mask: Tensor) -> Tensor:
        """Log-probabilities of the classes.

        Args:
            features: [P, D] whitened, in route order.
            routes: the plan of `mask`.
            z: [B, D] E0's whitened features.
            mask: [B, S] bool, the functional sub-networks.

        Returns:
            [B, C], −inf for the classes of silent sub-networks. Where no sub-network is functional E0's Gaussians
            answer, for all classes.
        """
        base = self.base.log_likelihood(z) / self.temperature
        sample, s, task = routes.sample, routes.subnetwork, self.base.task
        pairs = self._pairs(features, routes, z, base)
        own, younger = task == s[:, None], mask[sample][:, task] & (task > s[:, None])
        log_p = pairs.masked_fill(~(own | younger), -torch.inf).log_softmax(1)
        # Rows that only fill a plan's capacity up have no sub-network to speak for.
        used = torch.arange(len(s), device=s.device) < routes.offsets[-1]
        leaves = younger.any(1) & used  # the youngest leaves nothing, and nobody comes after it
        rest = log_p.masked_fill(~younger & leaves[:, None], -torch.inf).logsumexp(1)
        left = torch.zeros_like(mask, dtype=log_p.dtype)
        left = left.index_put((sample, s), torch.where(leaves, rest, 0.0), accumulate=True)
        left = F.pad(left, (1, 0))[:, :-1].cumsum(1)
        log_p = torch.where(own & used[:, None], log_p + left[sample, s][:, None], -torch.inf)
        answer = base.new_full(base.shape, -torch.inf)
        answer = answer.scatter_reduce(0, sample[:, None].expand_as(log_p), log_p.to(base), "amax")
        return torch.where(mask.any(1, keepdim=True), answer, base.log_softmax(1))

    def _pairs(self, features: Tensor, routes: Routes, z: Tensor, base: Tensor) -> Tensor:
        """[P, C] log N(x_s; c) / temperature, −inf for classes older than the sub-network."""
        logits = base.new_full((len(features), base.shape[1]), -torch.inf)
        # Pairs are sorted by sub-network; a compiled program has static shapes instead and looks at all of them.
        bounds = None if torch.compiler.is_compiling() else routes.offsets.tolist()
        for s in range(len(self.own)):
            rows = slice(None) if bounds is None else slice(bounds[s], bounds[s + 1])
            if bounds is not None and rows.start == rows.stop:
                continue
            sample = routes.sample[rows]
            scores = self._of_space(s, self._space(z[sample], features[rows]), base[sample])
            mine = (routes.subnetwork[rows] == s)[:, None]
            logits[rows] = torch.where(mine, scores.to(logits), logits[rows])
        return logits

    def _of_space(self, s: int, x: Tensor, base: Tensor) -> Tensor:
        """[p, C] of the rows of one sub-network."""
        own, mine = self.spaces[s], self.base.task == s
        scores = torch.full_like(base, -torch.inf).index_copy(1, own.label, own.log_likelihood(x).to(base))
        scores = scores / self.temperature
        if self.negatives:
            return scores
        # It has met its own task alone: E0 says whether the sample is that task's, the sub-network which class.
        within = scores.masked_fill(~mine, -torch.inf).log_softmax(1)
        return torch.where(mine, within + base.masked_fill(~mine, -torch.inf).logsumexp(1, keepdim=True), base)

    def _space(self, z: Tensor, z_s: Tensor) -> Tensor:
        return torch.cat([z, z_s], 1) if self.base_features else z_s

    def _add_space(self) -> None:
        dim = (2 if self.base_features else 1) * self.dim
        self.own.append(ClassGaussians(dim, **self._own).to(self.base.mean))

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        while f"{prefix}own.{len(self.own)}.mean" in state_dict:
            self._add_space()
        super()._load_from_state_dict(state_dict, prefix, *args)
