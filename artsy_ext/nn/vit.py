"""RoutedViT: a frozen timm ViT (E0) that also runs as sub-networks, one pass over all functional pairs."""

import hashlib
from typing import Any

import torch
from torch import Tensor, nn

from artsy_ext.nn.bank import SubNetworkBank
from artsy_ext.ops import Routes


class RoutedViT(nn.Module):
    """The pre-synaptic network E0 and, with the adapters of a `SubNetworkBank`, the sub-networks beside it.

    E0 is frozen and stays in evaluation mode.

    Args:
        backbone: a timm VisionTransformer with pre-norm blocks; anything in its classifier head is left out.

    Raises:
        TypeError: backbone is no timm VisionTransformer, or its blocks are not the standard ones.
        ValueError: backbone does not pool its tokens into one feature vector, or is not float32.
    """

    def __init__(self, backbone: nn.Module) -> None:
        from timm.models.vision_transformer import Block, VisionTransformer  # the rest of artsy_ext.nn needs torch only

        super().__init__()
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

    def base_features(self, tokens: Tensor) -> Tensor:
        """h0 [B, D]: E0's features."""
        return self._pool(self.backbone.blocks(tokens))

    def subnetwork_features(self, tokens: Tensor, bank: SubNetworkBank, routes: Routes) -> Tensor:
        """[P, D]: for each functional pair the features of its sub-network; only these pairs are computed.

        Args:
            tokens: [B, N, D] from `embed`.
            bank: S sub-networks for this backbone.
            routes: the plan for B samples and S sub-networks.
        """
        x = tokens[routes.sample]
        for block, adapters in zip(self.backbone.blocks, bank.adapters, strict=True):
            b: Any = block
            x = x + b.drop_path1(b.ls1(b.attn(b.norm1(x))))
            x = adapters(x, routes, base=x + b.drop_path2(b.ls2(b.mlp(b.norm2(x)))))
        return self._pool(x)

    def _pool(self, x: Tensor) -> Tensor:
        v: Any = self.backbone
        pooled: Tensor = v.forward_head(v.norm(x), pre_logits=True)
        return pooled
