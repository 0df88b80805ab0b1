"""PrototypeHead: the answer, cosine similarity to class prototypes in E0's and the sub-networks' spaces."""

from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from artsy_ext.nn._growing import Growing
from artsy_ext.ops import Routes, prototype_logits


def class_prototypes(features: Tensor, labels: Tensor, classes: range) -> Tensor:
    """[n, D] -> [K, D]: the mean direction of each class."""
    directions = F.normalize(features, dim=1)
    return F.normalize(torch.stack([directions[labels == c].mean(0) for c in classes]), dim=1)


class PrototypeHead(Growing):
    """Prototypes of C classes in E0's space and in the spaces of S sub-networks.

    Features are centred by `mean` before their direction is taken.

    Args:
        mean: [D].
        reduce: "max" or "sum" over the functional sub-networks that have a say on a class.
    """

    growing: ClassVar = {"base_prototypes": (0,), "prototypes": (0, 1), "weight": (0, 1)}
    mean: Tensor
    base_prototypes: Tensor
    prototypes: Tensor
    weight: Tensor

    def __init__(self, mean: Tensor, reduce: Literal["max", "sum"] = "max") -> None:
        super().__init__()
        D = len(mean)
        self.reduce = reduce
        self.register_buffer("mean", mean.clone())
        self.register_buffer("base_prototypes", mean.new_zeros(0, D))
        self.register_buffer("prototypes", mean.new_zeros(0, 0, D))
        self.register_buffer("weight", mean.new_zeros(0, 0))

    @property
    def num_classes(self) -> int:
        """C."""
        return len(self.base_prototypes)

    @torch.no_grad()
    def add_task(self, base_features: Tensor, features: Tensor, labels: Tensor, classes: range) -> None:
        """Adds the next sub-network and its classes: it has a say on them alone.

        base_features, features: [n, D] of the task's samples in E0's and in the sub-network's own space; labels: [n].
        """
        S, C, _ = self.prototypes.shape
        K = len(classes)
        self.base_prototypes = torch.cat(
            [self.base_prototypes, class_prototypes(base_features - self.mean, labels, classes)]
        )
        self.prototypes = F.pad(self.prototypes, (0, 0, 0, K, 0, 1))
        self.prototypes[S, C:] = class_prototypes(features - self.mean, labels, classes)
        self.weight = F.pad(self.weight, (0, K, 0, 1))
        self.weight[S, C:] = 1

    def forward(self, features: Tensor, routes: Routes, base_features: Tensor) -> Tensor:
        """features [P, D] in route order, base_features [B, D] -> logits [B, C].

        −inf for classes on which no functional sub-network has a say.
        """
        return prototype_logits(
            features - self.mean,
            routes,
            self.prototypes,
            self.weight,
            base_features=base_features - self.mean,
            base_prototypes=self.base_prototypes,
            reduce=self.reduce,
        )

    def base_logits(self, base_features: Tensor) -> Tensor:
        """[B, D] -> [B, C]: cosine in E0's space alone."""
        return F.normalize(base_features - self.mean, dim=1) @ self.base_prototypes.t()
