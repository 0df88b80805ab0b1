"""RoutedViT: a frozen timm ViT (E0) that also runs as sub-networks, one pass over all functional pairs."""

import hashlib
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from artsy_ext.nn.bank import SubNetworkBank
from artsy_ext.ops import Routes


class FirstBlock(NamedTuple):
    """What E0 and all sub-networks have in common: the first block up to the adapters, once per sample."""

    attended: Tensor
    """[B, N, D] the tokens after attention, which the first adapters read."""
    output: Tensor
    """[B, N, D] after the MLP: E0's output, to which the adapters add theirs."""


class RoutedViT(nn.Module):
    """The pre-synaptic network E0 and, with the adapters of a `SubNetworkBank`, the sub-networks beside it.

    E0 is frozen and stays in evaluation mode.

    Args:
        backbone: a timm VisionTransformer with pre-norm blocks; anything in its classifier head is left out.
        memory_limit: bytes that the activations of the pairs may take, about; more pairs than that allows are computed
            in chunks. Without effect on what is kept for gradients, and in compiled and exported programs, where the
            capacity of the plan is the limit.

    Raises:
        TypeError: backbone is no timm VisionTransformer, or its blocks are not the standard ones.
        ValueError: backbone does not pool its tokens into one feature vector, or is not float32; memory_limit is not
            positive.
    """

    def __init__(self, backbone: nn.Module, *, memory_limit: int = 1 << 30) -> None:
        from timm.models.vision_transformer import Block, VisionTransformer  # the rest of artsy_ext.nn needs torch only

        super().__init__()
        if memory_limit <= 0:
            raise ValueError(f"RoutedViT: memory_limit must be positive, got {memory_limit}")
        self.memory_limit = memory_limit
        if not isinstance(backbone, VisionTransformer):
            raise TypeError(f"RoutedViT: backbone must be a timm VisionTransformer, got {type(backbone).__name__}")
        if type(backbone).forward_features is not VisionTransformer.forward_features:
            raise TypeError(
                f"RoutedViT: backbone must run its blocks one after the other, got {type(backbone).__name__}"
            )
        for block in backbone.blocks:
            if type(block) is not Block:
                raise TypeError(f"RoutedViT: backbone must have standard pre-norm blocks, got {type(block).__name__}")
        if not backbone.global_pool:
            raise ValueError("RoutedViT: backbone must pool its tokens, got global_pool=''")
        dtype = next(backbone.parameters()).dtype
        if dtype != torch.float32:
            raise ValueError(f"RoutedViT: backbone must be float32 (autocast computes in less), got {dtype}")
        self.backbone = backbone.eval().requires_grad_(False)

    def train(self, mode: bool = True) -> "RoutedViT":
        """E0 stays in evaluation mode."""
        super().train(mode)
        self.backbone.eval()
        return self

    @property
    def depth(self) -> int:
        """Number of blocks."""
        return len(self.backbone.blocks)

    @property
    def dim(self) -> int:
        """D, the width of the features."""
        return int(self.backbone.embed_dim)

    @property
    def num_tokens(self) -> int:
        """N, class and register tokens included, of images of the size that the backbone was made for."""
        return int(self.backbone.patch_embed.num_patches + self.backbone.num_prefix_tokens)

    @property
    def device(self) -> torch.device:
        """Where E0 is."""
        return next(self.backbone.parameters()).device

    def fingerprint(self) -> str:
        """SHA-256 of E0's weights, names and shapes without its classifier: tells one backbone from another."""
        digest = hashlib.sha256()
        for name, value in self.backbone.state_dict().items():
            if name.startswith(("head.", "head_dist.")):
                continue
            digest.update(f"{name} {value.dtype} {tuple(value.shape)}\n".encode())
            digest.update(value.contiguous().flatten().view(torch.uint8).cpu().numpy())
        return digest.hexdigest()

    def structure(self) -> str:
        """What E0 computes from its weights, as text: with the fingerprint it tells E0's features."""
        v: Any = self.backbone
        heads = [block.attn.num_heads for block in v.blocks]
        blocks = f"heads {heads}, pool {v.global_pool}, prefix tokens {v.num_prefix_tokens}"
        return f"{blocks}\n{v.patch_embed}\n{v.blocks}\n{v.norm}\n{v.fc_norm}"

    def embed(self, images: Tensor) -> Tensor:
        """Tokens [B, N, D] before the first block, shared by E0 and all sub-networks."""
        v: Any = self.backbone
        return v.norm_pre(v.patch_drop(v._pos_embed(v.patch_embed(images))))

    def first_block(self, tokens: Tensor) -> FirstBlock:
        """[B, N, D] from `embed` -> the part of the first block that comes before any adapter."""
        return FirstBlock(*_without_adapters(self.backbone.blocks[0], tokens))

    def base_features(self, tokens: Tensor | FirstBlock) -> Tensor:
        """h0 [B, D]: E0's features, from `embed` or `first_block`."""
        x = self._first(tokens).output
        for block in self.backbone.blocks[1:]:
            _, x = _without_adapters(block, x)
        return self._pool(x)

    def subnetwork_features(self, tokens: Tensor | FirstBlock, bank: SubNetworkBank, routes: Routes) -> Tensor:
        """[P, D]: for each functional pair the features of its sub-network; only these pairs are computed.

        Args:
            tokens: of B samples, from `embed` or `first_block`.
            bank: S sub-networks for this backbone.
            routes: the plan for B samples and S sub-networks.
        """
        first, pairs = self._first(tokens), routes.sample.shape[0]
        if torch.compiler.is_compiling() or pairs <= (most := self._pairs_at_once(first)):
            return self._run(first, bank, routes)
        chunks = (routes.part(begin, min(begin + most, pairs)) for begin in range(0, pairs, most))
        return torch.cat([self._run(first, bank, chunk) for chunk in chunks])

    def _first(self, tokens: Tensor | FirstBlock) -> FirstBlock:
        return tokens if isinstance(tokens, FirstBlock) else self.first_block(tokens)

    def _pairs_at_once(self, first: FirstBlock) -> int:
        _, N, D = first.output.shape
        mlp: Any = self.backbone.blocks[0].mlp
        hidden = max(layer.out_features for layer in mlp.modules() if isinstance(layer, nn.Linear))
        # Residual stream, its sums and norms, queries, keys, values; the hidden layer before and after its activation.
        bytes_per_pair = N * (8 * D + 2 * hidden) * first.output.element_size()
        return max(1, self.memory_limit // bytes_per_pair)

    def _run(self, first: FirstBlock, bank: SubNetworkBank, routes: Routes) -> Tensor:
        x, base = first.attended[routes.sample], first.output[routes.sample]
        for i, adapters in enumerate(bank.adapters):
            if i:
                x, base = _without_adapters(self.backbone.blocks[i], x)
            x = adapters(x, routes, base=base)
        return self._pool(x)

    def _pool(self, x: Tensor) -> Tensor:
        v: Any = self.backbone
        pooled: Tensor = v.forward_head(v.norm(x), pre_logits=True)
        return pooled


def _without_adapters(block: Any, x: Tensor) -> tuple[Tensor, Tensor]:
    """A block's tokens after attention, and its output."""
    x = x + block.drop_path1(block.ls1(block.attn(block.norm1(x))))
    return x, x + block.drop_path2(block.ls2(block.mlp(block.norm2(x))))
