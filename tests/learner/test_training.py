"""The training loop: shifts worked by hand, random numbers apart by purpose, and what is trained."""

import dataclasses
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor
from torch.utils.data import TensorDataset

from artsy_ext.learner import LearnerConfig, training
from artsy_ext.learner.progress import Progress
from artsy_ext.learner.training import (
    CosineHead,
    LinearHead,
    generator,
    new_bank,
    own_features,
    random_shift,
    train_adapter,
    train_subnetwork,
)
from artsy_ext.nn import RoutedViT

SILENT = Progress.silent()


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> Callable[[list[int], list[int]], None]:
    """drawn(dy, dx): the offsets that random_shift draws next, 0 to 2·pixels per image."""

    def fix(dy: list[int], dx: list[int]) -> None:
        offsets = torch.tensor([dy, dx])[..., None]
        monkeypatch.setattr(training.torch, "randint", lambda *_, **__: offsets)

    return fix


def test_shift_by_hand(drawn: Callable[[list[int], list[int]], None]) -> None:
    image = torch.tensor([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]])
    drawn([1, 0, 2, 1], [1, 1, 1, 2])  # nothing; a row down; a row up; a column to the left
    shifted = random_shift(image.expand(4, 1, 2, 3), 1, torch.Generator())
    expected = torch.tensor(
        [
            [[1, 2, 3], [4, 5, 6]],
            [[1, 2, 3], [1, 2, 3]],
            [[4, 5, 6], [4, 5, 6]],
            [[2, 3, 3], [5, 6, 6]],
        ]
    )
    assert torch.equal(shifted[:, 0], expected.float())


def test_shift_by_more_than_one_pixel_in_both_directions(drawn: Callable[[list[int], list[int]], None]) -> None:
    image = torch.arange(25.0).view(1, 1, 5, 5)
    drawn([4], [0])  # two up, two to the right
    shifted = random_shift(image, 2, torch.Generator())[0, 0]
    assert torch.equal(shifted[:3, 2:], image[0, 0, 2:, :3])
    assert torch.equal(shifted[3:], shifted[2].expand(2, 5))  # the edge is repeated
    assert torch.equal(shifted[:, :2], shifted[:, 2:3].expand(5, 2))


def test_no_shift() -> None:
    images = torch.randn(4, 3, 5, 7)
    assert torch.equal(random_shift(images, 0, torch.Generator()), images)


def test_shift_is_drawn_for_each_image_and_moves_channels_together() -> None:
    H, W, pixels = 6, 7, 2
    image = torch.arange(float(H * W)).view(1, 1, H, W)
    images = torch.cat([image, image + 1000], 1).expand(400, 2, H, W)
    shifted = random_shift(images, pixels, torch.Generator().manual_seed(0))
    assert shifted.shape == images.shape
    assert torch.equal(shifted[:, 1], shifted[:, 0] + 1000)
    # A pixel in the middle tells where an image went: each of the 25 shifts came, about as often as the others.
    moved = shifted[:, 0, 3, 3] - image[0, 0, 3, 3]
    counts = torch.stack([(moved == dy * W + dx).sum() for dy in range(-2, 3) for dx in range(-2, 3)])
    assert counts.sum() == 400
    assert counts.min() >= 4
    assert counts.max() <= 36


def numbers(*args: Any) -> list[int]:
    return torch.randint(2**40, (4,), generator=generator(*args)).tolist()


def test_generators_are_apart_by_seed_purpose_and_task() -> None:
    streams = [numbers(*key) for key in [(0, "a"), (1, "a"), (0, "b"), (0, "a", 1), (0, "b", 1), (1, "a", 1)]]
    assert len({tuple(stream) for stream in streams}) == len(streams)
    assert numbers(0, "a") == numbers(0, "a", 0) == streams[0]


def test_generators_leave_the_global_random_state_alone() -> None:
    state = torch.get_rng_state()
    numbers(0, "a")
    assert torch.equal(torch.get_rng_state(), state)


def test_heads_by_hand() -> None:
    random = torch.Generator().manual_seed(0)
    cosine, linear = CosineHead(2, 3, 16.0, random), LinearHead(2, 3, random)
    weight = torch.tensor([[2.0, 0.0], [0.0, -5.0], [3.0, 4.0]])
    for head in (cosine, linear):
        assert head.weight.shape == (3, 2)
        head.weight.data = weight
    x = torch.tensor([[6.0, 8.0]])
    torch.testing.assert_close(cosine(x), torch.tensor([[9.6, -12.8, 16.0]]))
    linear.bias.data = torch.tensor([1.0, 2.0, 3.0])
    torch.testing.assert_close(linear(x), torch.tensor([[13.0, -38.0, 53.0]]))


@pytest.mark.parametrize("cosine", [False, True])
def test_training_lowers_the_loss_and_changes_bank_and_head_alone(
    cosine: bool,
    build_vit: Callable[..., VisionTransformer],
    tiny_config: LearnerConfig,
    make_data: Callable[..., TensorDataset],
) -> None:
    vit = RoutedViT(build_vit())
    config = dataclasses.replace(tiny_config, epochs=4)
    random = generator(0, "test")
    bank = new_bank(vit, config, 1, random)
    head = CosineHead(vit.dim, 3, 16.0, random) if cosine else LinearHead(vit.dim, 3, random)
    data = make_data((0, 1, 2))
    images, labels = data.tensors

    def loss() -> float:
        with torch.no_grad():
            return F.cross_entropy(head(own_features(vit, bank, images)), labels).item()

    frozen = {name: value.clone() for name, value in vit.state_dict().items()}
    trained = [p.clone() for p in (*bank.parameters(), *head.parameters())]
    state, before = torch.get_rng_state(), loss()
    train_adapter(
        vit,
        bank,
        head,
        data,
        lambda y: y,
        config,
        learning_rate=1e-2,
        generator=random,
        progress=SILENT,
        description="test",
    )
    assert loss() < 0.8 * before
    assert torch.equal(torch.get_rng_state(), state)
    torch.testing.assert_close(dict(vit.state_dict()), frozen, rtol=0, atol=0)
    assert all(p.grad is None for p in vit.parameters())
    after = [*bank.parameters(), *head.parameters()]
    assert not any(torch.equal(a, b) for a, b in zip(after, trained, strict=True))


def test_the_learning_rate_falls_to_zero_over_all_steps(
    tiny_vit: VisionTransformer,
    tiny_config: LearnerConfig,
    make_data: Callable[..., TensorDataset],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    rates: list[float] = []

    class Recording(torch.optim.AdamW):
        def step(self, *args: Any, **kwargs: Any) -> None:
            rates.append(self.param_groups[0]["lr"])
            assert self.param_groups[0]["weight_decay"] == tiny_config.weight_decay
            super().step(*args, **kwargs)

    monkeypatch.setattr(torch.optim, "AdamW", Recording)
    data = make_data((3, 5))
    train_subnetwork(RoutedViT(tiny_vit), data, torch.tensor([3, 5]), tiny_config, seed=0, task=0, progress=SILENT)
    steps = 2 * 3  # epochs, batches of 16 from 40
    half = tiny_config.learning_rate / 2
    expected = half * (1 + torch.cos(torch.arange(steps) / steps * torch.pi))
    assert rates == pytest.approx(expected.tolist())


def test_every_sample_is_shown_once_per_epoch_in_another_order(
    tiny_vit: VisionTransformer,
    tiny_config: LearnerConfig,
    make_data: Callable[..., TensorDataset],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    shown: list[Tensor] = []
    monkeypatch.setattr(training, "random_shift", lambda images, *_: shown.append(images) or images)
    data = make_data((3, 5))
    train_subnetwork(RoutedViT(tiny_vit), data, torch.tensor([3, 5]), tiny_config, seed=0, task=0, progress=SILENT)
    first, second = (torch.cat(shown[3 * epoch : 3 * epoch + 3]).flatten(1).tolist() for epoch in range(2))
    assert sorted(first) == sorted(second) == sorted(data.tensors[0].flatten(1).tolist())
    assert first != second


def test_labels_are_numbered_in_their_own_order(
    tiny_vit: VisionTransformer,
    tiny_config: LearnerConfig,
    make_data: Callable[..., TensorDataset],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # The head has three outputs, whatever the labels are.
    seen: list[tuple[Tensor, Tensor]] = []
    train = training.train_adapter

    def record(vit: RoutedViT, bank: Any, head: CosineHead, dataset: Any, encode: Any, *args: Any, **kw: Any) -> None:
        assert head.weight.shape == (3, vit.dim)
        labels = dataset.tensors[1]
        seen.append((labels, encode(labels)))
        train(vit, bank, head, dataset, encode, *args, **kw)

    monkeypatch.setattr(training, "train_adapter", record)
    data = make_data((11, 3, 7), per_class=4)
    train_subnetwork(RoutedViT(tiny_vit), data, torch.tensor([3, 7, 11]), tiny_config, seed=0, task=0, progress=SILENT)
    ((labels, encoded),) = seen
    assert labels[:3].tolist() == [11, 3, 7]
    assert encoded[:3].tolist() == [2, 0, 1]


def test_a_subnetwork_is_known_by_seed_and_task(
    tiny_vit: VisionTransformer, tiny_config: LearnerConfig, make_data: Callable[..., TensorDataset]
) -> None:
    data = make_data((3, 5))

    def trained(seed: int, task: int) -> dict[str, Tensor]:
        torch.manual_seed(seed + 10 * task)  # has no influence
        bank, _ = train_subnetwork(
            RoutedViT(tiny_vit), data, torch.tensor([3, 5]), tiny_config, seed=seed, task=task, progress=SILENT
        )
        assert bank.num_subnetworks == 1
        assert not any(p.requires_grad for p in bank.parameters())
        return bank.state_dict()

    first = trained(0, 0)
    torch.randn(100)
    torch.testing.assert_close(trained(0, 0), first, rtol=0, atol=0)
    for other in (trained(1, 0), trained(0, 1)):
        assert not torch.equal(other["blocks.0.down"], first["blocks.0.down"])


@torch.no_grad()
def test_own_features_are_those_of_the_only_subnetwork(
    tiny_vit: VisionTransformer, tiny_config: LearnerConfig, make_data: Callable[..., TensorDataset]
) -> None:
    vit = RoutedViT(tiny_vit)
    images, _ = make_data((0,)).tensors
    bank = new_bank(vit, tiny_config, 1)
    h0 = vit.base_features(vit.embed(images))
    torch.testing.assert_close(own_features(vit, bank, images), h0)  # it has learned nothing yet
    bank.adapters[-1].up_bias += torch.arange(16.0)
    assert not torch.allclose(own_features(vit, bank, images), h0)


@pytest.mark.parametrize("num_subnetworks", [0, 1, 3])
def test_new_banks_have_the_settings_of_the_config(num_subnetworks: int, tiny_vit: VisionTransformer) -> None:
    config = LearnerConfig(rank=7, scale=0.25)
    bank = new_bank(RoutedViT(tiny_vit), config, num_subnetworks)
    assert bank.num_subnetworks == num_subnetworks
    assert len(bank.adapters) == 2
    assert all(a.down.shape == (num_subnetworks, 7, 16) and a.scale == 0.25 for a in bank.adapters)


def test_defaults_are_those_of_the_demo() -> None:
    config = LearnerConfig()
    assert (config.rank, config.scale, config.epochs, config.batch_size, config.shift) == (16, 0.3, 20, 32, 2)
    assert (config.learning_rate, config.baseline_learning_rate, config.head_scale) == (2e-2, 1e-2, 16.0)
    assert (config.quantile, config.stdp_steps, config.stdp_rate, config.stdp_epochs) == (0.02, 8, 0.2, 5)
    assert (config.mlp_hidden, config.mlp_steps) == (32, 300)


# Augmentation by crops


def ramp(size: int = 32) -> Tensor:
    """[1, 2, size, size]: the column and the row of each pixel, in [−1, 1]."""
    at = (2 * torch.arange(size) + 1) / size - 1
    return torch.stack([at.expand(size, size), at[:, None].expand(size, size)])[None]


def test_crops_are_parts_of_the_image_of_the_promised_size() -> None:
    crops = training.random_crop(ramp().repeat(500, 1, 1, 1), 0.25, torch.Generator().manual_seed(0))
    assert crops.abs().amax() <= 1  # nothing from outside
    inner = slice(4, 28)  # at the border, interpolation repeats the edge
    width = (crops[:, 0, 16, 27] - crops[:, 0, 16, 4]).abs() / (2 * 23 / 32)
    height = (crops[:, 1, 27, 16] - crops[:, 1, 4, 16]) / (2 * 23 / 32)
    assert (height > 0).all()  # never upside down
    area, ratio = width * height, width / height
    assert 0.22 <= area.amin() < 0.3
    assert 0.95 < area.amax() <= 1.001
    assert 0.74 <= ratio.amin() < 0.8
    assert 1.25 < ratio.amax() <= 1.34
    mirrored = crops[:, 0, 16, 27] < crops[:, 0, 16, 4]
    assert 0.4 < mirrored.float().mean() < 0.6
    # Straight lines stay straight: every row of a crop sees the same columns.
    torch.testing.assert_close(crops[:, 0, inner, 16], crops[:, 0, 16:17, 16].expand(-1, 24), atol=1e-4, rtol=0)


def test_a_crop_of_everything_is_the_image_or_its_mirror() -> None:
    images = torch.rand(64, 3, 9, 9, generator=torch.Generator().manual_seed(1))
    for image, crop in zip(images, training.random_crop(images, 1.0, torch.Generator().manual_seed(0)), strict=True):
        error = min((crop - other).abs().amax() for other in (image, image.flip(2)))
        assert error < 1e-5


@pytest.mark.parametrize("augmentation", ["shift", "crop", "none"])
def test_augmentation_is_the_one_asked_for(augmentation: str, tiny_config: LearnerConfig) -> None:
    config = dataclasses.replace(tiny_config, augmentation=augmentation)
    images = torch.rand(8, 1, 12, 12)
    shown = training.augmented(images, config, torch.Generator().manual_seed(3))
    if augmentation == "none":
        assert torch.equal(shown, images)
    elif augmentation == "shift":
        assert torch.equal(shown, training.random_shift(images, config.shift, torch.Generator().manual_seed(3)))
    else:
        assert torch.equal(shown, training.random_crop(images, config.crop, torch.Generator().manual_seed(3)))


def test_batches_shrink_with_the_tokens() -> None:
    def size(num_tokens: int, dim: int) -> int:
        return training.images_per_batch(SimpleNamespace(num_tokens=num_tokens, dim=dim))  # type: ignore[arg-type]

    assert size(16, 96) == 512
    assert size(197, 768) == 27
    assert size(10**6, 10**4) == 1
