"""Inference with S sub-networks: one pass over the functional pairs beside EASE's S passes over the batch.

    python bench/end_to_end.py                                  # ViT-S and ViT-B, on one thread
    python bench/end_to_end.py --models vit_small_patch16_224 --rounds 5

The weights are random: they do not change the time. EASE's passes are alike, so one is timed and counts S times; they
share the patch embedding. *routed* is the pass over the pairs; *whole* is everything that an answer takes: E0's pass,
the synapses and the prototypes too. With f functional sub-networks per sample, work alone would make them S/f and
S/(1+f) times as fast as EASE.
"""

import argparse
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import timm
import torch
from interleave import compare
from torch import Tensor, nn

from artsy_ext.nn import ArtsyNetwork, PrototypeHead, RoutedViT, STDPSynapses, SubNetworkBank, Whitening
from artsy_ext.ops import plan_routes

CLASSES_PER_TASK = 5


def build(backbone: nn.Module, S: int, rank: int) -> ArtsyNetwork:
    """A network as S tasks leave it, with random numbers in place of what they learned."""
    torch.manual_seed(0)
    vit = RoutedViT(backbone)
    D, C = vit.dim, CLASSES_PER_TASK * S
    bank = SubNetworkBank(vit.depth, D, rank=rank, num_subnetworks=S).requires_grad_(False)
    for adapters in bank.adapters:
        adapters.up.normal_(std=0.1)
    head = PrototypeHead(torch.zeros(D))
    head.base_prototypes, head.prototypes = torch.randn(C, D), torch.randn(S, C, D)
    head.weight = torch.eye(S).repeat_interleave(CLASSES_PER_TASK, 1)
    synapses = STDPSynapses(D, on=0.5, off=0.1)
    synapses.weight = torch.rand(S, CLASSES_PER_TASK, 2 * D + 1)
    synapses.functional = synapses.weight > 0.3
    synapses.unit_class = torch.arange(C).view(S, CLASSES_PER_TASK)
    synapses.thresholds = torch.zeros(S)
    return ArtsyNetwork(vit, bank, Whitening(torch.zeros(D), torch.eye(D)), synapses, head).eval()


def functional(B: int, S: int, f: float) -> Tensor:
    """[B, S] bool: one sub-network for each sample, and more for some, f on average."""
    generator = torch.Generator().manual_seed(0)
    mask = nn.functional.one_hot(torch.randint(S, (B,), generator=generator), S).bool()
    silent = (~mask).flatten().nonzero().flatten()
    more = silent[torch.randperm(len(silent), generator=generator)[: round(B * f) - B]]
    return mask.flatten().index_fill(0, more, True).view(B, S)


def ease_pass(network: ArtsyNetwork, tokens: Tensor, s: int) -> Tensor:
    """[B, D]: sub-network s over the whole batch, its adapters as plain matrix products."""
    x, v = tokens, network.vit.backbone
    for block, adapters in zip(v.blocks, network.bank.adapters, strict=True):
        x = x + block.attn(block.norm1(x))
        rows = x.flatten(0, 1)
        hidden = torch.addmm(adapters.down_bias[s], rows, adapters.down[s].t()).relu_()
        adapted = torch.addmm(adapters.up_bias[s], hidden, adapters.up[s].t())
        x = torch.add(x, block.mlp(block.norm2(x))).add_(adapted.view_as(x), alpha=adapters.scale)
    return v.forward_head(v.norm(x), pre_logits=True)


def whole(network: ArtsyNetwork, images: Tensor, mask: Tensor) -> Tensor:
    """An answer with a given mask; the synapses are asked all the same."""
    first, h0 = network.base(images)
    network.functional(h0)
    return network.answer(first, h0, mask)


@contextmanager
def adapter_seconds(network: ArtsyNetwork) -> Iterator[list[float]]:
    """CPU time of the adapters' calls."""
    spent, begun = [0.0], [0.0]

    def begin(*_: Any) -> None:
        begun[0] = time.process_time()

    def end(*_: Any) -> None:
        spent[0] += time.process_time() - begun[0]

    handles = [a.register_forward_pre_hook(begin) for a in network.bank.adapters]
    handles += [a.register_forward_hook(end) for a in network.bank.adapters]
    yield spent
    for handle in handles:
        handle.remove()


@torch.no_grad()
def assert_same_features(network: ArtsyNetwork, images: Tensor, mask: Tensor) -> None:
    routes = plan_routes(mask)
    tokens = network.vit.embed(images)
    found = network.vit.subnetwork_features(tokens, network.bank, routes)
    for s in range(mask.shape[1]):
        own = routes.subnetwork == s
        if own.any():
            expected = ease_pass(network, tokens[routes.sample[own]], s)
            torch.testing.assert_close(found[own], expected, rtol=0, atol=1e-5 * float(expected.abs().amax()))


@torch.no_grad()
def measure(name: str, backbone: nn.Module, *, B: int, S: int, rank: int, means: list[float], rounds: int) -> None:
    network = build(backbone, S, rank)
    images = torch.randn(B, 3, *network.vit.backbone.patch_embed.img_size)
    tokens = network.vit.embed(images)
    for f in means:
        mask = functional(B, S, f)
        assert_same_features(network, images, mask)

        def routed(mask: Tensor = mask) -> Tensor:
            routes = plan_routes(mask)
            return network.vit.subnetwork_features(network.vit.embed(images), network.bank, routes)

        peers = {"pass": lambda: ease_pass(network, tokens, 0), "whole": lambda m=mask: whole(network, images, m)}
        found = compare(routed, peers, rounds=rounds, seconds=0)
        speedup = S / found.ratios["pass"].cpu
        answer = S * found.peers["pass"].cpu / found.peers["whole"].cpu
        with adapter_seconds(network) as spent:
            before = time.process_time()
            routed()
            share = spent[0] / (time.process_time() - before)
        shown = f"{speedup:9.2f} {speedup * f / S:11.2f} {answer:9.2f} {answer * (1 + f) / S:15.2f} {share:10.1%}"
        print(f"{name:24} {f:4} {shown}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=["vit_small_patch16_224", "vit_base_patch16_224"])
    parser.add_argument("--functional", type=float, nargs="+", default=[1, 1.5, 2], help="f, on average")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--subnetworks", type=int, default=20)
    parser.add_argument("--rank", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--img-size", type=int, default=224)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    columns = f"{'routed':>9} {'of S/f':>11} {'whole':>9} {'of S/(1+f)':>15} {'adapters':>10}"
    print(f"{'times as fast as EASE':24} {'f':>4} {columns}")
    for model in given.models:
        backbone = timm.create_model(model, pretrained=False, num_classes=0, img_size=given.img_size)
        measure(
            model, backbone, B=given.batch, S=given.subnetworks, rank=given.rank, means=given.functional,
            rounds=given.rounds,
        )  # fmt: skip


if __name__ == "__main__":
    main()
