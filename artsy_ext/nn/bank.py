"""SubNetworkBank: the adapters of all sub-networks, stacked for the routed ops."""

import math
from typing import ClassVar

import torch
from torch import Tensor, nn

from artsy_ext.nn._growing import Growing
from artsy_ext.ops import Routes, routed_adapter


class AdapterBank(Growing):
    """The adapters of S sub-networks in one block; parameters as `artsy_ext.ops.routed_adapter` takes them."""

    growing: ClassVar = {"down": (0,), "down_bias": (0,), "up": (0,), "up_bias": (0,)}

    def __init__(
        self,
        dim: int,
        rank: int,
        num_subnetworks: int,
        *,
        scale: float,
        activation: str,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        self.scale, self.activation = scale, activation
        self.down = nn.Parameter(torch.empty(num_subnetworks, rank, dim))
        self.down_bias = nn.Parameter(torch.zeros(num_subnetworks, rank))
        self.up = nn.Parameter(torch.zeros(num_subnetworks, dim, rank))  # a new sub-network computes what E0 does
        self.up_bias = nn.Parameter(torch.zeros(num_subnetworks, dim))
        for weight in self.down.data:
            nn.init.kaiming_uniform_(weight, a=math.sqrt(5), generator=generator)

    def forward(self, x: Tensor, routes: Routes, base: Tensor) -> Tensor:
        """x: [P, N, D] in route order. Returns base + the adapters' outputs."""
        weights = (self.down, self.down_bias, self.up, self.up_bias)
        return routed_adapter(x, routes, *weights, scale=self.scale, activation=self.activation, base=base)


class SubNetworkBank(nn.Module):
    """S sub-networks: for every block of a ViT an adapter parallel to its MLP, as in EASE (Zhou et al., CVPR 2024).

    Args:
        depth: blocks of the backbone.
        dim: D, its width.
        rank: R, the bottleneck.
        num_subnetworks: S to begin with; `append` adds more.
        scale: factor of the adapters' outputs.
        activation: "relu", "gelu" or "gelu_tanh".
        generator: for the initial weights.
    """

    def __init__(
        self,
        depth: int,
        dim: int,
        *,
        rank: int = 16,
        num_subnetworks: int = 0,
        scale: float = 0.1,
        activation: str = "relu",
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(
            AdapterBank(dim, rank, num_subnetworks, scale=scale, activation=activation, generator=generator)
            for _ in range(depth)
        )

    @property
    def num_subnetworks(self) -> int:
        """S."""
        return len(self.adapters[0].down)

    @property
    def adapters(self) -> list[AdapterBank]:
        """The blocks' adapters, from the first block to the last."""
        return [block for block in self.blocks if isinstance(block, AdapterBank)]

    @torch.no_grad()
    def append(self, other: "SubNetworkBank") -> None:
        """Adds the sub-networks of `other`, frozen, behind the present ones, which are frozen, too.

        Raises:
            ValueError: `other` is for another backbone or has another bottleneck, scale or activation.
        """
        mine, theirs = self._form(), other._form()
        if mine != theirs:
            raise ValueError(f"SubNetworkBank.append: other must have {mine}, got {theirs}")
        for own, new in zip(self.adapters, other.adapters, strict=True):
            for name in AdapterBank.growing:
                own.resize(name, torch.cat([getattr(own, name), getattr(new, name)]))
        self.requires_grad_(False)

    def _form(self) -> dict[str, object]:
        block = self.adapters[0]
        _, rank, dim = block.down.shape
        return {
            "depth": len(self.blocks),
            "dim": dim,
            "rank": rank,
            "scale": block.scale,
            "activation": block.activation,
        }
