"""A tiny problem that every part of the learner can be run on in a second: random backbone, synthetic images."""

import dataclasses
from collections.abc import Callable, Sequence

import pytest
import torch
import torch.nn.functional as F
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor
from torch.utils.data import TensorDataset

from artsy_ext.data import Images, Stream, Task
from artsy_ext.learner import LearnerConfig

IMAGE = (1, 12, 12)


def make_vit(dim: int = 16, depth: int = 2) -> VisionTransformer:
    """Random weights, the same at every call; images [B, 1, 12, 12]."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        vit = VisionTransformer(
            img_size=12,
            patch_size=4,
            in_chans=1,
            num_classes=0,
            global_pool="avg",
            class_token=False,
            embed_dim=dim,
            depth=depth,
            num_heads=2,
            mlp_ratio=2.0,
        )
        with torch.no_grad():
            for parameter in vit.parameters():
                parameter += 0.1 * torch.randn_like(parameter)
    return vit


def draw_images(labels: Tensor, noise: float, seed: int) -> Tensor:
    """[n, 1, 12, 12]: each class has a picture, known from its label alone, under noise."""
    generator = torch.Generator().manual_seed(seed)
    blots = torch.randn(16, 1, 3, 3, generator=torch.Generator().manual_seed(99))
    pictures = 1.5 * F.interpolate(blots, IMAGE[1:], mode="bilinear")  # smooth: still known when shifted by a pixel
    return pictures[labels] + noise * torch.randn(len(labels), *IMAGE, generator=generator)


@pytest.fixture(scope="session")
def build_vit() -> Callable[..., VisionTransformer]:
    """build_vit(dim=16, depth=2): a new backbone, always with the same weights."""
    return make_vit


@pytest.fixture(scope="session")
def tiny_vit() -> VisionTransformer:
    return make_vit()


@pytest.fixture(scope="session")
def tiny_config() -> LearnerConfig:
    return dataclasses.replace(
        LearnerConfig(), rank=4, epochs=2, batch_size=16, shift=1, stdp_epochs=2, mlp_hidden=8, mlp_steps=20
    )


@pytest.fixture(scope="session")
def make_data() -> Callable[..., TensorDataset]:
    """make_data(labels, per_class=20, noise=0.3, seed=0): images of these classes, labels below 16."""

    def make(labels: Sequence[int], per_class: int = 20, noise: float = 0.3, seed: int = 0) -> TensorDataset:
        y = torch.tensor(labels, dtype=torch.int64).repeat(per_class)
        return TensorDataset(draw_images(y, noise, seed), y)

    return make


@pytest.fixture(scope="session")
def tiny_stream(make_data: Callable[..., TensorDataset]) -> Stream:
    """Three tasks of two, three and one classes."""
    classes = ((0, 1), (2, 3, 4), (5,))
    tasks = tuple(
        Task(
            c,
            Images.of_tensors(*make_data(c, seed=1).tensors),
            Images.of_tensors(*make_data(c, per_class=8, seed=2).tensors),
        )
        for c in classes
    )
    return Stream("tiny", tasks, tuple("abcdef"))
