"""ArtsyNetwork: the parts put together equal a loop over samples and sub-networks, compiled or not."""

import copy
from collections.abc import Callable, Iterator

import pytest
import torch
import torch.nn.functional as F
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from artsy_ext.nn import (
    ArtsyNetwork,
    ClassStatistics,
    PrototypeHead,
    RoutedViT,
    STDPSynapses,
    SubNetworkBank,
    Whitening,
    covariance,
)
from artsy_ext.ops import plan_routes

CLASSES = (2, 3, 1)  # of each task


@pytest.fixture(scope="module")
def images(vit: RoutedViT, images_for: Callable[[VisionTransformer, int], Tensor]) -> Tensor:
    """Eight of each class: random images around one of the class."""
    centres = 2 * images_for(vit.backbone, sum(CLASSES)).repeat_interleave(8, 0)
    return centres + images_for(vit.backbone, len(centres))


@pytest.fixture(scope="module")
def learned(vit: RoutedViT, make_bank: Callable[..., SubNetworkBank], images: Tensor) -> ArtsyNetwork:
    """Three sub-networks with random adapters; synapses and prototypes learned from the images."""
    labels = torch.arange(sum(CLASSES)).repeat_interleave(8)
    with torch.no_grad():
        tokens = vit.embed(images)
        h0 = vit.base_features(tokens)
        whitening = Whitening(h0.mean(0), covariance(h0))
        bank, head = make_bank(vit, 3), PrototypeHead(h0.mean(0))
        synapses = STDPSynapses(vit.dim, on=0.12, off=0.08, quantile=0.1)
        network = ArtsyNetwork(vit, bank.requires_grad_(False), whitening, synapses, head)
        statistics, first = ClassStatistics(vit.dim), 0
        for t, count in enumerate(CLASSES):
            classes = range(first, first + count)
            rows = (labels >= classes.start) & (labels < classes.stop)
            routes = plan_routes(F.one_hot(torch.full((int(rows.sum()),), t), 3).bool())
            head.add_task(h0[rows], vit.subnetwork_features(tokens[rows], bank, routes), labels[rows], classes)
            statistics.add_task(whitening(h0[rows]), labels[rows], classes)
            random = torch.Generator().manual_seed(t)
            synapses.fit_task(whitening(h0[rows]), labels[rows], statistics, random)
            first += count
    return network


@pytest.fixture
def network(learned: ArtsyNetwork) -> Iterator[ArtsyNetwork]:
    """Tests may change thresholds and fallback."""
    synapses = learned.synapses
    thresholds, fallback = synapses.thresholds.clone(), synapses.fallback
    yield learned
    synapses.thresholds, synapses.fallback = thresholds, fallback


def loop_logits(network: ArtsyNetwork, images: Tensor, mask: Tensor) -> Tensor:
    """[B, C]: per class its cosine in E0's space plus that in its own sub-network's; −inf where that is silent."""
    B, S = mask.shape
    h0 = network.vit.base_features(network.vit.embed(images))
    task_of_class = torch.arange(S).repeat_interleave(torch.tensor(CLASSES)).tolist()
    head, rows = network.head, []
    for b in range(B):
        base = [F.cosine_similarity(h0[b] - head.mean, p, dim=0) for p in head.base_prototypes]
        if not mask[b].any():
            rows.append(torch.stack(base))
            continue
        row = torch.full((len(task_of_class),), -torch.inf)
        for s in mask[b].nonzero().flatten().tolist():
            alone = plan_routes(F.one_hot(torch.tensor([s]), S).bool())
            own = network.vit.subnetwork_features(network.vit.embed(images[b : b + 1]), network.bank, alone)[0]
            for c, task in enumerate(task_of_class):
                if task == s:
                    row[c] = base[c] + F.cosine_similarity(own - head.mean, head.prototypes[s, c], dim=0)
        rows.append(row)
    return torch.stack(rows)


MASK = torch.tensor([[1, 0, 1], [0, 1, 0], [1, 1, 1], [0, 0, 1], [0, 0, 0]], dtype=torch.bool)


@torch.no_grad()
def test_forward_with_a_mask(network: ArtsyNetwork, images: Tensor) -> None:
    logits = network(images[:5], mask=MASK)
    torch.testing.assert_close(logits, loop_logits(network, images[:5], MASK), rtol=1e-4, atol=1e-4)
    task_of_class = torch.arange(3).repeat_interleave(torch.tensor(CLASSES))
    assert torch.equal(logits.isfinite(), MASK[:, task_of_class] | ~MASK.any(1, keepdim=True))
    assert (logits[logits.isfinite()].abs() <= 2).all()


@torch.no_grad()
def test_forward_without_a_mask_asks_the_synapses(network: ArtsyNetwork, images: Tensor) -> None:
    h0 = network.vit.base_features(network.vit.embed(images))
    mask = network.synapses.mask(network.whitening(h0))
    assert torch.equal(network.synapse_mask(images), mask)
    # Every sub-network is functional for some and silent for others, so that the mask matters.
    assert mask.any(0).all()
    assert not mask.all(0).any()
    logits = network(images)
    assert torch.equal(logits, network(images, mask=mask))
    torch.testing.assert_close(logits, loop_logits(network, images, mask), rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_fallback_none_answers_by_e0_alone(network: ArtsyNetwork, images: Tensor) -> None:
    network.synapses.fallback = "none"
    # Half of the samples miss every threshold.
    scores = network.synapses.scores(network.whitening(network.vit.base_features(network.vit.embed(images))))
    network.synapses.thresholds = scores.amax(1).median().expand(3).clone()
    mask = network.synapse_mask(images)
    nobody = ~mask.any(1)
    assert 0 < nobody.sum() < len(images)
    logits = network(images)
    h0 = network.vit.base_features(network.vit.embed(images))
    torch.testing.assert_close(logits[nobody], network.head.base_logits(h0)[nobody])
    assert logits[nobody].isfinite().all()
    torch.testing.assert_close(logits, loop_logits(network, images, mask), rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_nobody_is_functional_for_anyone(network: ArtsyNetwork, images: Tensor) -> None:
    network.synapses.fallback = "none"
    network.synapses.thresholds = torch.ones(3)
    h0 = network.vit.base_features(network.vit.embed(images))
    torch.testing.assert_close(network(images), network.head.base_logits(h0))


@torch.no_grad()
def test_no_images(network: ArtsyNetwork, images: Tensor) -> None:
    assert network(images[:0]).shape == (0, 6)
    assert network.synapse_mask(images[:0]).shape == (0, 3)


@torch.no_grad()
def test_capacity(network: ArtsyNetwork, images: Tensor) -> None:
    pairs = int(network.synapse_mask(images).sum())
    exact = network(images)
    for capacity in (pairs, pairs + 7, 3 * len(images)):
        torch.testing.assert_close(network(images, capacity=capacity), exact, rtol=1e-4, atol=1e-4)
    with pytest.raises(ValueError, match="capacity"):
        network(images, capacity=pairs - 1)


@torch.no_grad()
@pytest.mark.parametrize("fallback", ["top", "none"])
def test_compiled_without_graph_breaks(network: ArtsyNetwork, images: Tensor, fallback: str) -> None:
    network.synapses.fallback = fallback  # type: ignore[assignment]
    if fallback == "none":
        network.synapses.thresholds = torch.full((3,), -0.1)
    torch._dynamo.reset()
    compiled = torch.compile(network, fullgraph=True, backend="aot_eager")
    capacity = 2 * len(images)
    for batch in (images, images.flip(0)[:11], images[:30]):
        torch.testing.assert_close(
            compiled(batch, capacity=capacity), network(batch, capacity=capacity), rtol=1e-4, atol=1e-4
        )
    torch._dynamo.reset()


@torch.no_grad()
def test_autocast(network: ArtsyNetwork, images: Tensor) -> None:
    logits = network(images[:5], mask=MASK)
    with torch.autocast("cpu", torch.bfloat16):
        short = network(images[:5], mask=MASK)
    assert torch.equal(short.isfinite(), logits.isfinite())
    torch.testing.assert_close(short.float(), logits, rtol=0, atol=0.05)
    assert not torch.equal(short.float(), logits)


class WithCapacity(nn.Module):
    def __init__(self, network: ArtsyNetwork, capacity: int) -> None:
        super().__init__()
        self.network, self.capacity = network, capacity

    def forward(self, images: Tensor) -> Tensor:
        return self.network(images, capacity=self.capacity)


@torch.no_grad()
def test_exports(network: ArtsyNetwork, images: Tensor) -> None:
    batch = torch.export.Dim("batch", min=2)
    inference = WithCapacity(network.eval(), 2 * len(images))
    program = torch.export.export(inference, (images[:6],), dynamic_shapes=({0: batch},))
    for inputs in (images[:6], images.flip(0)[:11]):
        torch.testing.assert_close(program.module()(inputs), inference(inputs), rtol=1e-4, atol=1e-4)


def test_gradient_of_the_whole_network(network: ArtsyNetwork, images: Tensor) -> None:
    # Finite differences of the loss for one weight of an adapter, through everything behind it.
    double = copy.deepcopy(network).double()
    images = images[:5].double()

    def loss() -> Tensor:
        logits = double(images, mask=MASK)
        return logits[logits.isfinite()].square().sum()

    adapter, step = double.bank.adapters[0], 1e-5
    for weight, at in ((adapter.down, (2, 1, 3)), (adapter.up, (0, 5, 2))):
        weight.requires_grad_()
        (gradient,) = torch.autograd.grad(loss(), [weight])
        with torch.no_grad():
            weight[at] += step
            above = loss()
            weight[at] -= 2 * step
            below = loss()
            weight[at] += step
        assert gradient[at].abs() > 1e-4
        torch.testing.assert_close(gradient[at], (above - below) / (2 * step), rtol=1e-5, atol=1e-8)


@torch.no_grad()
def test_state_loads_into_an_empty_network(network: ArtsyNetwork, images: Tensor, vit: RoutedViT) -> None:
    D = vit.dim
    empty = ArtsyNetwork(
        vit,
        SubNetworkBank(vit.depth, D, rank=5, scale=0.7),
        Whitening(torch.zeros(D), torch.eye(D)),
        STDPSynapses(D, on=0.12, off=0.08, quantile=0.1),
        PrototypeHead(torch.zeros(D)),
    )
    empty.load_state_dict(network.state_dict())
    assert torch.equal(empty(images), network(images))
