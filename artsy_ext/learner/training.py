"""The one training loop: an adapter of a frozen ViT with a linear or cosine head, for sub-networks and baselines."""

import math
import time
import zlib
from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from artsy_ext.learner.config import LearnerConfig
from artsy_ext.learner.progress import Progress
from artsy_ext.nn import RoutedViT, SubNetworkBank
from artsy_ext.ops import plan_routes


def generator(seed: int, purpose: str, task: int = 0) -> torch.Generator:
    """Random numbers of their own for each purpose and task, so that one method's use does not shift another's."""
    state = np.random.SeedSequence([seed, zlib.crc32(purpose.encode()), task]).generate_state(1, np.uint64)[0]
    return torch.Generator().manual_seed(int(state) >> 1)


def random_shift(images: Tensor, pixels: int, generator: torch.Generator) -> Tensor:
    """Shifts each image [B, C, H, W] by up to `pixels` in both directions; the edge is repeated."""
    B, _, H, W = images.shape
    padded = F.pad(images, (pixels,) * 4, mode="replicate")
    dy, dx = torch.randint(2 * pixels + 1, (2, B, 1), generator=generator).to(images.device)
    rows, columns = (d + torch.arange(n, device=images.device) for d, n in ((dy, H), (dx, W)))
    batch = torch.arange(B, device=images.device)[:, None, None]
    return padded[batch, :, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)


def random_crop(images: Tensor, smallest: float, generator: torch.Generator) -> Tensor:
    """Crops each image [B, C, H, W], resizes the crop to the whole (bilinear), and mirrors every other one, at random.

    A crop has between `smallest` and all of the image's area, and an aspect ratio of 3/4 to 4/3 of the image's own, or
    less where it would not fit.
    """
    B = len(images)
    area, ratio, right, below, mirror = torch.rand(5, B, generator=generator)
    area = smallest + (1 - smallest) * area
    ratio = ((-area.log()).clamp(max=math.log(4 / 3)) * (2 * ratio - 1)).exp()
    width, height = (area * ratio).sqrt(), (area / ratio).sqrt()
    flip = torch.where(mirror < 0.5, -1.0, 1.0)
    zero = torch.zeros(B)
    across = torch.stack([width * flip, zero, (1 - width) * (2 * right - 1)], 1)
    down = torch.stack([zero, height, (1 - height) * (2 * below - 1)], 1)
    grid = F.affine_grid(torch.stack([across, down], 1).to(images), list(images.shape), align_corners=False)
    return F.grid_sample(images, grid, padding_mode="border", align_corners=False)


def augmented(images: Tensor, config: LearnerConfig, generator: torch.Generator) -> Tensor:
    """Training images [B, C, H, W] as the learner is shown them this time."""
    if config.augmentation == "shift":
        return random_shift(images, config.shift, generator)
    return random_crop(images, config.crop, generator) if config.augmentation == "crop" else images


def images_per_batch(vit: RoutedViT) -> int:
    """How many images go through E0 at once where no gradient is needed: 512 small ones, or what takes about 200 MB."""
    return max(1, min(512, 2**22 // (vit.num_tokens * vit.dim)))


class CosineHead(nn.Module):
    """scale · cos(features, class weights)."""

    def __init__(self, dim: int, num_classes: int, scale: float, generator: torch.Generator) -> None:
        super().__init__()
        self.scale = scale
        self.weight = nn.Parameter(torch.randn(num_classes, dim, generator=generator) * 0.02)

    def forward(self, features: Tensor) -> Tensor:
        return self.scale * F.normalize(features, dim=1) @ F.normalize(self.weight, dim=1).t()


class LinearHead(nn.Module):
    """features · weightᵀ + bias."""

    def __init__(self, dim: int, num_classes: int, generator: torch.Generator) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(num_classes, dim, generator=generator) * 0.02)
        self.bias = nn.Parameter(torch.zeros(num_classes))

    def forward(self, features: Tensor) -> Tensor:
        return F.linear(features, self.weight, self.bias)


def own_features(vit: RoutedViT, bank: SubNetworkBank, images: Tensor) -> Tensor:
    """[B, D]: the features of a bank's only sub-network for every image."""
    routes = plan_routes(torch.ones(len(images), 1, dtype=torch.bool, device=images.device))
    return vit.subnetwork_features(vit.embed(images), bank, routes)


def train_adapter(
    vit: RoutedViT,
    bank: SubNetworkBank,
    head: nn.Module,
    dataset: Dataset[tuple[Tensor, ...]],
    encode_labels: Callable[[Tensor], Tensor],
    config: LearnerConfig,
    *,
    learning_rate: float,
    generator: torch.Generator,
    progress: Progress,
    description: str,
) -> None:
    """Trains a bank of one sub-network and its head by cross-entropy: AdamW, cosine decay over all steps.

    encode_labels: from the data set's labels to those of the head.
    """
    loader = DataLoader(dataset, config.batch_size, shuffle=True, generator=generator)
    parameters = [*bank.parameters(), *head.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=learning_rate, weight_decay=config.weight_decay, fused=True)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, config.epochs * len(loader))
    device = parameters[0].device
    for _ in progress.track(range(config.epochs), description):
        for images, labels in loader:
            images = augmented(images.to(device), config, generator)
            loss = F.cross_entropy(head(own_features(vit, bank, images)), encode_labels(labels).to(device))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()


def new_bank(
    vit: RoutedViT, config: LearnerConfig, num_subnetworks: int, generator: torch.Generator | None = None
) -> SubNetworkBank:
    """A bank with the settings of `config` on the device of the backbone."""
    bank = SubNetworkBank(
        vit.depth,
        vit.dim,
        rank=config.rank,
        num_subnetworks=num_subnetworks,
        scale=config.scale,
        generator=generator,
    )
    return bank.to(vit.device)


def train_subnetwork(
    vit: RoutedViT,
    dataset: Dataset[tuple[Tensor, ...]],
    labels: Tensor,
    config: LearnerConfig,
    *,
    seed: int,
    task: int,
    progress: Progress,
) -> tuple[SubNetworkBank, float]:
    """The sub-network of one task, a bank of one, and the seconds that its training took.

    It is trained on the task alone, with a cosine head that is then dropped.

    labels: the task's class labels, sorted, as they stand in the data set.
    """
    start = time.perf_counter()
    random = generator(seed, "sub-network", task)
    bank = new_bank(vit, config, 1, random)
    head = CosineHead(vit.dim, len(labels), config.head_scale, random).to(vit.device)
    train_adapter(
        vit,
        bank,
        head,
        dataset,
        lambda y: torch.searchsorted(labels, y),
        config,
        learning_rate=config.learning_rate,
        generator=random,
        progress=progress,
        description="sub-network",
    )
    return bank.requires_grad_(False), time.perf_counter() - start
