"""Small vision transformers and banks whose weights are all random, so that no part can be left out unnoticed."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from artsy_ext.demo import create_backbone
from artsy_ext.nn import RoutedViT, SubNetworkBank

TINY: dict[str, Any] = {"img_size": 16, "patch_size": 8, "embed_dim": 24, "depth": 2, "num_heads": 3, "num_classes": 5}

VITS: dict[str, dict[str, Any]] = {
    "class token": {},
    "register tokens": {"reg_tokens": 2, "no_embed_class": True},
    "no class token": {"class_token": False, "global_pool": "avg"},
    "mean without the class token": {"global_pool": "avg"},
    "attention pooling": {"class_token": False, "global_pool": "map"},
    "layer scale": {"init_values": 0.5},
    "qk_norm": {"qk_norm": True},
    "norm before the blocks": {"pre_norm": True},
    "no final norm": {"final_norm": False},
    # Anything random is off in evaluation mode.
    "dropout": {
        "drop_rate": 0.5,
        "pos_drop_rate": 0.5,
        "proj_drop_rate": 0.5,
        "attn_drop_rate": 0.5,
        "drop_path_rate": 0.5,
        "patch_drop_rate": 0.5,
    },
}


@torch.no_grad()
def randomised(module: nn.Module, seed: int = 0, std: float = 0.2) -> Any:
    """Fresh modules hold many zeros and ones (biases, `up`, norms); a mistake there would not show."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in module.parameters():
        parameter += torch.randn(parameter.shape, generator=generator) * std
    return module


def tiny_vit(**options: Any) -> VisionTransformer:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return randomised(VisionTransformer(**{**TINY, **options}))


@pytest.fixture(scope="session")
def randomise() -> Callable[..., Any]:
    """randomise(module, seed=…, std=…): the same module, noise added to all its parameters."""
    return randomised


@pytest.fixture(scope="session")
def build_vit() -> Callable[..., VisionTransformer]:
    """A new tiny ViT with random weights; options as timm's VisionTransformer."""
    return tiny_vit


@pytest.fixture(scope="session", params=["demo", *VITS])
def any_vit(request: pytest.FixtureRequest) -> VisionTransformer:
    """One of every form that RoutedViT takes."""
    if request.param != "demo":
        return tiny_vit(**VITS[request.param])
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return randomised(create_backbone())


@pytest.fixture(scope="session")
def vit() -> RoutedViT:
    return RoutedViT(tiny_vit())


@pytest.fixture(scope="session")
def make_bank() -> Callable[..., SubNetworkBank]:
    """make_bank(vit, S, seed=…, **options): a bank for this backbone, every tensor of it random."""

    def make(vit: RoutedViT, num_subnetworks: int, seed: int = 0, **options: Any) -> SubNetworkBank:
        generator = torch.Generator().manual_seed(seed)
        options = {"rank": 5, "scale": 0.7, **options}
        bank = SubNetworkBank(vit.depth, vit.dim, num_subnetworks=num_subnetworks, generator=generator, **options)
        return randomised(bank, seed)

    return make


@pytest.fixture(scope="session")
def images_for() -> Callable[[VisionTransformer, int], Tensor]:
    """images_for(vit, B): random images of the size that a ViT takes."""

    def images(vit: VisionTransformer, count: int) -> Tensor:
        generator = torch.Generator().manual_seed(count)
        return torch.randn(count, vit.in_chans, *vit.patch_embed.img_size, generator=generator)

    return images


@pytest.fixture(scope="session")
def generator() -> Callable[[int], torch.Generator]:
    return lambda seed: torch.Generator().manual_seed(seed)
