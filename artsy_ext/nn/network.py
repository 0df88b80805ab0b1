"""ArtsyNetwork: E0, the sub-networks, their synapses and the answer, put together for inference."""

import torch
from torch import Tensor, nn

from artsy_ext.nn.bank import SubNetworkBank
from artsy_ext.nn.head import PrototypeHead
from artsy_ext.nn.statistics import Whitening
from artsy_ext.nn.synapses import SynapseBank
from artsy_ext.nn.vit import FirstBlock, RoutedViT
from artsy_ext.ops import plan_routes


class ArtsyNetwork(nn.Module):
    """E0 looks at every sample, the synapses at E0's features; only functional sub-networks run.

    Args:
        vit: E0.
        bank: S sub-networks.
        whitening: from E0's features to what the synapses read.
        synapses: one for each sub-network.
        head: prototypes of all classes.
    """

    def __init__(
        self, vit: RoutedViT, bank: SubNetworkBank, whitening: Whitening, synapses: SynapseBank, head: PrototypeHead
    ) -> None:
        super().__init__()
        self.vit, self.bank, self.whitening, self.synapses, self.head = vit, bank, whitening, synapses, head

    def forward(self, images: Tensor, *, mask: Tensor | None = None, capacity: int | None = None) -> Tensor:
        """[B, channels, height, width] -> logits [B, C].

        Args:
            images: as the backbone takes them.
            mask: [B, S] bool, which sub-networks run; None for what the synapses say.
            capacity: room for so many functional pairs, for static shapes; see `artsy_ext.ops.plan_routes`.

        Returns:
            Sum of two cosines, in [−2, 2]; −inf for classes of silent sub-networks. A sample without a functional
            sub-network (`fallback="none"`) is answered by E0's prototypes alone.
        """
        first, h0 = self.base(images)
        if mask is None:
            mask = self.functional(h0)
        return self.answer(first, h0, mask, capacity=capacity)

    def base(self, images: Tensor) -> tuple[FirstBlock, Tensor]:
        """E0's look at the images: what it shares with the sub-networks, and its features h0 [B, D]."""
        first = self.vit.first_block(self.vit.embed(images))
        return first, self.vit.base_features(first)

    def functional(self, h0: Tensor) -> Tensor:
        """[B, D] -> [B, S] bool: the sub-networks that the synapses make functional."""
        return self.synapses.mask(self.whitening(h0))

    def answer(self, tokens: Tensor | FirstBlock, h0: Tensor, mask: Tensor, *, capacity: int | None = None) -> Tensor:
        """Logits [B, C], running the sub-networks in mask [B, S] on what `base` or `RoutedViT.embed` gave."""
        routes = plan_routes(mask, capacity=capacity)
        features = self.vit.subnetwork_features(tokens, self.bank, routes)
        logits = self.head(features, routes, h0)
        return torch.where(mask.any(1, keepdim=True), logits, self.head.base_logits(h0))

    def synapse_mask(self, images: Tensor) -> Tensor:
        """[B, channels, height, width] -> [B, S] bool: the functional sub-networks."""
        return self.functional(self.base(images)[1])
