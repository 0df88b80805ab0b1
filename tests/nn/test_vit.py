"""RoutedViT: E0 is timm's ViT to the bit, and a plan of pairs is what a plain loop over the sub-networks computes."""

from collections.abc import Callable
from typing import Any

import pytest
import timm
import torch
import torch.nn.functional as F
from timm.models.eva import Eva
from timm.models.vision_transformer import ParallelScalingBlock, ResPostBlock, VisionTransformer
from torch import Tensor, nn

from artsy_ext.nn import RoutedViT, SubNetworkBank
from artsy_ext.ops import plan_routes

ACTIVATIONS = {"relu": F.relu, "gelu": F.gelu, "gelu_tanh": lambda x: F.gelu(x, approximate="tanh")}


def run_alone(vit: VisionTransformer, bank: SubNetworkBank, s: int, images: Tensor) -> Tensor:
    """[B, D]: sub-network s over all images, as EASE describes it: an adapter parallel to each block's MLP.

    The adapter reads what the MLP's norm reads, and its scaled output is added to the residual stream.
    """
    x = vit.norm_pre(vit._pos_embed(vit.patch_embed(images)))
    for block, adapters in zip(vit.blocks, bank.adapters, strict=True):
        x = x + block.ls1(block.attn(block.norm1(x)))
        act = ACTIVATIONS[adapters.activation]
        hidden = act(x @ adapters.down[s].t() + adapters.down_bias[s])
        adapted = hidden @ adapters.up[s].t() + adapters.up_bias[s]
        x = x + block.ls2(block.mlp(block.norm2(x))) + adapters.scale * adapted
    return vit.forward_head(vit.norm(x), pre_logits=True)


@torch.no_grad()
def test_base_features_are_timms(
    any_vit: VisionTransformer, images_for: Callable[[VisionTransformer, int], Tensor]
) -> None:
    routed, images = RoutedViT(any_vit), images_for(any_vit, 4)
    h0 = routed.base_features(routed.embed(images))
    assert (routed.depth, routed.dim) == (len(any_vit.blocks), h0.shape[1])
    torch.testing.assert_close(
        h0, any_vit.forward_head(any_vit.forward_features(images), pre_logits=True), rtol=0, atol=0
    )


@torch.no_grad()
def test_pairs_equal_each_subnetwork_alone(
    any_vit: VisionTransformer,
    make_bank: Callable[..., SubNetworkBank],
    images_for: Callable[[VisionTransformer, int], Tensor],
) -> None:
    routed, images = RoutedViT(any_vit), images_for(any_vit, 6)
    bank = make_bank(routed, 3)
    # None, some and all sub-networks for a sample; sub-network 1 has one pair only.
    mask = torch.tensor([[1, 0, 1], [0, 0, 0], [1, 1, 1], [0, 0, 1], [1, 0, 0], [0, 0, 1]], dtype=torch.bool)
    routes = plan_routes(mask)
    features = routed.subnetwork_features(routed.embed(images), bank, routes)
    alone = torch.stack([run_alone(any_vit, bank, s, images) for s in range(3)])
    torch.testing.assert_close(features, alone[routes.subnetwork, routes.sample], rtol=1e-4, atol=1e-4)
    # The sub-networks differ by far more than that, so a mistaken pair would show.
    assert (alone[0] - alone[1]).abs().amax() > 0.1


# As timm registers them, with random weights; only the larger ones are shallower or see smaller images here.
TIMM_VITS: dict[str, dict[str, Any]] = {
    "vit_tiny_patch16_224": {},
    "deit_tiny_patch16_224": {},
    "deit_tiny_distilled_patch16_224": {},  # two tokens are averaged
    "vit_wee_patch16_reg1_gap_256": {},  # a register token, no class token
    "vit_small_patch14_reg4_dinov2": {"img_size": 56, "depth": 3},  # class and register tokens, layer scale
    "vit_base_patch16_siglip_224": {"img_size": 64, "depth": 2},  # attention pooling
    "vit_xsmall_patch16_clip_224": {"img_size": 64, "depth": 2},  # a norm before the blocks
    "vit_tiny_r_s16_p8_224": {"img_size": 64, "depth": 2},  # convolutions before the tokens
    "beit3_base_patch16_224": {"img_size": 64, "depth": 2},  # norms within attention and MLP
    "aimv2_large_patch14_224": {"img_size": 56, "depth": 2},  # root-mean-square norms, SwiGLU
}


@pytest.mark.parametrize("name", TIMM_VITS)
def test_models_of_timm(
    name: str,
    make_bank: Callable[..., SubNetworkBank],
    randomise: Callable[..., Any],
    images_for: Callable[[VisionTransformer, int], Tensor],
) -> None:
    model = randomise(timm.create_model(name, num_classes=0, **TIMM_VITS[name]), std=0.02).eval()
    routed, images = RoutedViT(model), images_for(model, 2)
    with torch.no_grad():
        tokens = routed.embed(images)
        assert tokens.shape == (2, routed.num_tokens, routed.dim)
        h0 = model.forward_head(model.forward_features(images), pre_logits=True)
        torch.testing.assert_close(routed.base_features(tokens), h0, rtol=0, atol=0)

    bank = make_bank(routed, 2)
    routes = plan_routes(torch.tensor([[1, 0], [1, 1]], dtype=torch.bool))
    features = routed.subnetwork_features(tokens, bank, routes)
    with torch.no_grad():
        alone = torch.stack([run_alone(model, bank, s, images) for s in range(2)])
    torch.testing.assert_close(features, alone[routes.subnetwork, routes.sample], rtol=1e-4, atol=1e-4)
    assert (alone[0] - alone[1]).abs().amax() > 0.1

    features.square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in bank.parameters())
    assert all(p.grad is None for p in model.parameters())


@torch.no_grad()
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_activation_of_the_adapters(
    vit: RoutedViT,
    activation: str,
    make_bank: Callable[..., SubNetworkBank],
    images_for: Callable[[VisionTransformer, int], Tensor],
) -> None:
    bank, images = make_bank(vit, 1, activation=activation), images_for(vit.backbone, 3)
    features = vit.subnetwork_features(vit.embed(images), bank, plan_routes(torch.ones(3, 1, dtype=torch.bool)))
    torch.testing.assert_close(features, run_alone(vit.backbone, bank, 0, images), rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_padding_of_a_capacity_changes_nothing(
    vit: RoutedViT,
    make_bank: Callable[..., SubNetworkBank],
    images_for: Callable[[VisionTransformer, int], Tensor],
) -> None:
    bank, tokens = make_bank(vit, 2), vit.embed(images_for(vit.backbone, 3))
    mask = torch.tensor([[0, 1], [1, 1], [0, 0]], dtype=torch.bool)
    exact = vit.subnetwork_features(tokens, bank, plan_routes(mask))
    padded = vit.subnetwork_features(tokens, bank, plan_routes(mask, capacity=5))
    assert padded.shape == (5, vit.dim)
    torch.testing.assert_close(padded[:3], exact)


@torch.no_grad()
def test_chunks_change_nothing(
    build_vit: Callable[..., VisionTransformer],
    make_bank: Callable[..., SubNetworkBank],
    images_for: Callable[[VisionTransformer, int], Tensor],
) -> None:
    backbone = build_vit()
    mask = torch.rand(9, 4) < 0.6
    pairs = int(mask.sum())
    whole = RoutedViT(backbone)
    bank, tokens = make_bank(whole, 4), whole.embed(images_for(backbone, 9))
    expected = whole.subnetwork_features(tokens, bank, plan_routes(mask))
    sizes: list[int] = []
    bank.adapters[0].register_forward_hook(lambda _, args, y: sizes.append(len(y)))
    for limit, at_once in ((1, 1), (40_000, 5), (1 << 30, pairs + 3)):
        vit = RoutedViT(backbone, memory_limit=limit)
        for padding in (0, 3):
            sizes.clear()
            features = vit.subnetwork_features(tokens, bank, plan_routes(mask, capacity=pairs + padding))
            assert len(features) == sum(sizes) == pairs + padding
            assert set(sizes[:-1]) <= {at_once}
            assert sizes[-1] <= at_once
            torch.testing.assert_close(features[:pairs], expected, rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_the_first_block_runs_once_per_sample(
    vit: RoutedViT,
    make_bank: Callable[..., SubNetworkBank],
    images_for: Callable[[VisionTransformer, int], Tensor],
) -> None:
    bank, rows = make_bank(vit, 3), []
    handles = [
        block.attn.register_forward_hook(lambda _, args, y: rows.append(len(y))) for block in vit.backbone.blocks
    ]
    tokens = vit.embed(images_for(vit.backbone, 4))
    routes = plan_routes(torch.ones(4, 3, dtype=torch.bool))
    first = vit.first_block(tokens)
    shared = vit.base_features(first), vit.subnetwork_features(first, bank, routes)
    assert rows == [4, 4, 12]  # the first block for both, the second for E0 and for every pair
    alone = vit.base_features(tokens), vit.subnetwork_features(tokens, bank, routes)
    for handle in handles:
        handle.remove()
    torch.testing.assert_close(shared, alone, rtol=0, atol=0)


def test_a_memory_limit_that_is_none_is_refused(build_vit: Callable[..., Any]) -> None:
    with pytest.raises(ValueError, match=r"^RoutedViT: memory_limit must be positive, got 0$"):
        RoutedViT(build_vit(), memory_limit=0)


@torch.no_grad()
def test_no_pair_at_all(
    vit: RoutedViT,
    make_bank: Callable[..., SubNetworkBank],
    images_for: Callable[[VisionTransformer, int], Tensor],
) -> None:
    tokens = vit.embed(images_for(vit.backbone, 3))
    routes = plan_routes(torch.zeros(3, 2, dtype=torch.bool))
    assert vit.subnetwork_features(tokens, make_bank(vit, 2), routes).shape == (0, vit.dim)


def test_frozen_and_in_evaluation_mode_also_in_training(
    build_vit: Callable[..., VisionTransformer], images_for: Callable[[VisionTransformer, int], Tensor]
) -> None:
    backbone = build_vit(drop_path_rate=0.9, proj_drop_rate=0.9).train()
    routed = RoutedViT(backbone)
    images = images_for(backbone, 2)
    before = routed.base_features(routed.embed(images))
    for module in (routed, nn.Sequential(routed)):  # also as a part of something that is trained
        module.train()
        assert module.training
        assert not any(part.training for part in backbone.modules())
    assert not any(parameter.requires_grad for parameter in routed.parameters())
    torch.testing.assert_close(routed.base_features(routed.embed(images)), before, rtol=0, atol=0)


def test_only_the_trainee_gets_gradients(
    vit: RoutedViT,
    make_bank: Callable[..., SubNetworkBank],
    images_for: Callable[[VisionTransformer, int], Tensor],
) -> None:
    trainee = make_bank(vit, 1)
    routes = plan_routes(torch.ones(4, 1, dtype=torch.bool))
    vit.subnetwork_features(vit.embed(images_for(vit.backbone, 4)), trainee, routes).square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in trainee.parameters())
    assert all(p.grad is None for p in vit.parameters())

    frozen = make_bank(vit, 0)
    frozen.append(trainee)
    features = vit.subnetwork_features(vit.embed(images_for(vit.backbone, 4)), frozen, routes)
    assert not features.requires_grad


class _Reversed(VisionTransformer):
    def forward_features(self, x: Tensor, **options: Any) -> Tensor:
        return super().forward_features(x.flip(-1), **options)


def _with_block(block: type[nn.Module]) -> VisionTransformer:
    return VisionTransformer(img_size=16, patch_size=8, embed_dim=24, depth=1, num_heads=3, block_fn=block)


@pytest.mark.parametrize(
    ("backbone", "word"),
    [
        (lambda: nn.Linear(3, 3), "Linear"),
        (lambda: Eva(img_size=16, patch_size=8, embed_dim=24, depth=1, num_heads=3), "Eva"),
        (lambda: _Reversed(img_size=16, patch_size=8, embed_dim=24, depth=1, num_heads=3), "_Reversed"),
        (lambda: _with_block(ResPostBlock), "ResPostBlock"),
        (lambda: _with_block(ParallelScalingBlock), "ParallelScalingBlock"),
    ],
)
def test_other_backbones_are_refused(backbone: Callable[[], nn.Module], word: str) -> None:
    with pytest.raises(TypeError, match=rf"^RoutedViT: backbone must .*, got {word}$"):
        RoutedViT(backbone())


def test_the_fingerprint_leaves_the_classifier_out() -> None:
    model = timm.create_model("deit_tiny_distilled_patch16_224", depth=1, img_size=32)
    with_head = RoutedViT(model).fingerprint()
    model.reset_classifier(0)
    assert RoutedViT(model).fingerprint() == with_head
    model.dist_token.add_(1)
    assert RoutedViT(model).fingerprint() != with_head


def test_a_backbone_that_does_not_pool_is_refused(build_vit: Callable[..., Any]) -> None:
    with pytest.raises(ValueError, match=r"^RoutedViT: backbone must pool its tokens, got global_pool=''$"):
        RoutedViT(build_vit(global_pool=""))
