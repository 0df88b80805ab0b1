"""SubNetworkBank: sub-networks begin as E0, stay as they are once others are added, and load into an empty bank."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor

from artsy_ext.nn import RoutedViT, SubNetworkBank
from artsy_ext.ops import plan_routes

MakeBank = Callable[..., SubNetworkBank]
FORM: dict[str, Any] = {"depth": 2, "dim": 24, "rank": 5, "scale": 0.7, "activation": "relu"}


def features_of(vit: RoutedViT, bank: SubNetworkBank, s: int, images: Tensor) -> Tensor:
    """[B, D]: sub-network s for every image."""
    mask = torch.zeros(len(images), bank.num_subnetworks, dtype=torch.bool)
    mask[:, s] = True
    return vit.subnetwork_features(vit.embed(images), bank, plan_routes(mask))


@pytest.fixture
def images(vit: RoutedViT, images_for: Callable[[VisionTransformer, int], Tensor]) -> Tensor:
    return images_for(vit.backbone, 4)


@torch.no_grad()
@pytest.mark.parametrize("activation", ["relu", "gelu", "gelu_tanh"])
def test_new_subnetworks_compute_exactly_what_e0_does(vit: RoutedViT, images: Tensor, activation: str) -> None:
    bank = SubNetworkBank(vit.depth, vit.dim, num_subnetworks=3, activation=activation)
    h0 = vit.base_features(vit.embed(images))
    for s in range(3):
        torch.testing.assert_close(features_of(vit, bank, s, images), h0, rtol=0, atol=0)


def test_initial_weights_come_from_the_generator() -> None:
    def down(seed: int) -> Tensor:
        bank = SubNetworkBank(2, 24, rank=5, num_subnetworks=3, generator=torch.Generator().manual_seed(seed))
        return torch.stack([block.down for block in bank.adapters]).detach()

    state = torch.get_rng_state()
    first = down(1)
    assert torch.equal(first, down(1))
    assert not torch.equal(first, down(2))
    assert torch.equal(torch.get_rng_state(), state)
    # Each matrix is torch.nn.Linear's: uniform up to 1/√D, whatever S is.
    largest = first.abs().amax((2, 3))
    assert (largest <= 24**-0.5).all()
    assert (largest > 0.9 * 24**-0.5).all()


@torch.no_grad()
def test_append_freezes_and_keeps_the_older_ones_bit_for_bit(
    vit: RoutedViT, images: Tensor, make_bank: MakeBank
) -> None:
    bank = make_bank(vit, 0)
    trainees = [make_bank(vit, 1, seed=1), make_bank(vit, 2, seed=2), make_bank(vit, 1, seed=3)]
    expected: list[Tensor] = []
    for trainee in trainees:
        expected += [features_of(vit, trainee, s, images) for s in range(trainee.num_subnetworks)]
        bank.append(trainee)
        assert bank.num_subnetworks == len(expected)
        assert not any(parameter.requires_grad for parameter in bank.parameters())
        for s, features in enumerate(expected):
            torch.testing.assert_close(features_of(vit, bank, s, images), features, rtol=0, atol=0)


@torch.no_grad()
def test_append_copies(vit: RoutedViT, images: Tensor, make_bank: MakeBank) -> None:
    bank, trainee = make_bank(vit, 0), make_bank(vit, 1)
    bank.append(trainee)
    before = features_of(vit, bank, 0, images)
    for parameter in trainee.parameters():
        parameter.add_(1)
    assert torch.equal(features_of(vit, bank, 0, images), before)


@pytest.mark.parametrize(
    "other",
    [{"depth": 3}, {"dim": 16}, {"rank": 4}, {"scale": 0.5}, {"activation": "gelu"}],
    ids=lambda o: next(iter(o)),
)
def test_append_of_another_form_is_refused(other: dict[str, Any]) -> None:
    bank, stranger = SubNetworkBank(**FORM, num_subnetworks=1), SubNetworkBank(**{**FORM, **other}, num_subnetworks=1)
    name, value = next(iter(other.items()))
    with pytest.raises(ValueError, match=rf"^SubNetworkBank.append: other must have .*, got .*'{name}': {value!r}"):
        bank.append(stranger)
    assert bank.num_subnetworks == 1
    assert all(parameter.requires_grad for parameter in bank.parameters())


@pytest.mark.parametrize("own", [0, 1, 5], ids=lambda own: f"into S={own}")
def test_state_loads_into_a_bank_of_any_number(own: int, vit: RoutedViT, images: Tensor, make_bank: MakeBank) -> None:
    saved, bank = make_bank(vit, 3, seed=1), make_bank(vit, own, seed=2)
    bank.load_state_dict(saved.state_dict())
    assert bank.num_subnetworks == 3
    torch.testing.assert_close(bank.state_dict(), saved.state_dict(), rtol=0, atol=0)
    with torch.no_grad():
        assert torch.equal(features_of(vit, bank, 2, images), features_of(vit, saved, 2, images))
    assert all(parameter.requires_grad for parameter in bank.parameters())


@pytest.mark.parametrize(("name", "value"), [("dim", 16), ("rank", 4)])
@pytest.mark.parametrize("own", [0, 3])
def test_state_of_another_width_is_an_error(name: str, value: int, own: int) -> None:
    saved = SubNetworkBank(**{**FORM, name: value}, num_subnetworks=3)
    with pytest.raises(RuntimeError, match=r"size mismatch for blocks\.0\.down"):
        SubNetworkBank(**FORM, num_subnetworks=own).load_state_dict(saved.state_dict())


def test_a_missing_tensor_is_an_error() -> None:
    state = SubNetworkBank(**FORM, num_subnetworks=3).state_dict()
    del state["blocks.1.up"]
    with pytest.raises(RuntimeError, match=r"Missing key.*blocks\.1\.up"):
        SubNetworkBank(**FORM).load_state_dict(state)


def test_parameters_are_seen_by_the_module() -> None:
    bank = SubNetworkBank(**FORM, num_subnetworks=3)
    # Per block and sub-network: down and up 24·5 each, their biases 5 and 24.
    assert sum(p.numel() for p in bank.parameters()) == 2 * 3 * (2 * 24 * 5 + 5 + 24)
    assert {p.dtype for p in bank.to(torch.float64).parameters()} == {torch.float64}
