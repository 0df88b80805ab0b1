"""E0's features: computed once per image set, kept on disk under everything that they depend on."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor

from artsy_ext.data import Images
from artsy_ext.info import versions
from artsy_ext.learner.features import Features
from artsy_ext.nn import RoutedViT


class Negated:
    def __call__(self, image: Tensor) -> Tensor:
        return -image

    def __repr__(self) -> str:
        return "Negated()"


class Counting(RoutedViT):
    """Counts the images that pass through E0."""

    passed = 0

    def base_features(self, tokens: Tensor) -> Tensor:
        self.passed += len(tokens)
        return super().base_features(tokens)


@pytest.fixture
def vit(tiny_vit: VisionTransformer) -> Counting:
    return Counting(tiny_vit)


@pytest.fixture
def images(make_data: Callable[..., object]) -> Images:
    return Images.of_tensors(*make_data((0, 1, 2), per_class=7).tensors)  # type: ignore[attr-defined]


def part(images: Images, *indices: int) -> Images:
    return Images(images.source, torch.tensor(indices), transform=images.transform)


@torch.no_grad()
def test_features_are_e0s_in_the_order_asked_for(vit: Counting, images: Images) -> None:
    expected = vit.base_features(vit.embed(images.tensors[0]))
    torch.testing.assert_close(Features(vit).h0(part(images, 5, 0, 20)), expected[[5, 0, 20]])


def test_an_image_passes_through_e0_once(vit: Counting, images: Images) -> None:
    features = Features(vit)
    for indices in ((0, 1), (1, 2), (20, 0)):
        features.h0(part(images, *indices))
    assert vit.passed == len(images)


def test_features_are_kept_on_disk(vit: Counting, images: Images, tmp_path: Path) -> None:
    first = Features(vit, tmp_path).h0(images)
    assert torch.equal(Features(vit, tmp_path).h0(images), first)
    assert vit.passed == len(images)
    (file,) = (tmp_path / "features").iterdir()
    assert file.suffix == ".safetensors"


def test_other_images_transforms_and_backbones_have_features_of_their_own(
    vit: Counting, images: Images, tmp_path: Path, build_vit: Callable[..., VisionTransformer]
) -> None:
    Features(vit, tmp_path).h0(images)
    other_pixels = images.tensors[0].clone()
    other_pixels[3, 0, 0, 0] += 1e-3
    Features(vit, tmp_path).h0(Images.of_tensors(other_pixels, images.labels))
    Features(vit, tmp_path).h0(Images(images.source, images.indices, transform=Negated()))
    other_weights = build_vit()
    with torch.no_grad():
        other_weights.blocks[0].mlp.fc1.bias[0] += 1e-3
    Features(RoutedViT(other_weights), tmp_path).h0(images)
    other_heads = build_vit()
    other_heads.blocks[0].attn.num_heads, other_heads.blocks[0].attn.head_dim = 4, 4
    Features(RoutedViT(other_heads), tmp_path).h0(images)
    assert len(list((tmp_path / "features").iterdir())) == 5


@pytest.mark.parametrize("fact", ["artsy_ext", "torch", "timm", "torchvision", "pillow", "processor"])
def test_another_version_or_machine_has_features_of_its_own(
    fact: str, vit: Counting, images: Images, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Features(vit, tmp_path).h0(images)
    changed = {**versions(), fact: "another"}
    monkeypatch.setattr("artsy_ext.learner.features.versions", lambda: changed)
    Features(vit, tmp_path).h0(images)
    assert vit.passed == 2 * len(images)


def test_a_transform_without_a_name_is_not_kept(vit: Counting, images: Images, tmp_path: Path) -> None:
    Features(vit, tmp_path).h0(Images(images.source, images.indices, transform=lambda image: -image))
    assert not (tmp_path / "features").exists()


def test_labels_do_not_matter(vit: Counting, images: Images, tmp_path: Path) -> None:
    Features(vit, tmp_path).h0(images)
    Features(vit, tmp_path).h0(Images.of_tensors(images.tensors[0], images.labels + 1))
    assert vit.passed == len(images)


@pytest.mark.parametrize("damage", ["truncated", "empty", "of another shape"])
def test_a_damaged_file_is_made_anew(damage: str, vit: Counting, images: Images, tmp_path: Path) -> None:
    good = Features(vit, tmp_path).h0(images)
    (file,) = (tmp_path / "features").iterdir()
    content = file.read_bytes()
    if damage == "of another shape":
        other = Images.of_tensors(images.tensors[0][:3], images.labels[:3])
        Features(vit, tmp_path / "other").h0(other)
        (short,) = (tmp_path / "other" / "features").iterdir()
        file.write_bytes(short.read_bytes())
    else:
        file.write_bytes(b"" if damage == "empty" else content[:-5])
    assert torch.equal(Features(vit, tmp_path).h0(images), good)
    assert file.read_bytes() == content


def test_nothing_half_written(vit: Counting, images: Images, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(tensors: object, path: Path) -> None:
        path.write_bytes(b"half")
        raise OSError("disk full")

    monkeypatch.setattr("safetensors.torch.save_file", fails)
    with pytest.warns(UserWarning, match=r"^cache_dir: features are not kept in .*: disk full$"):
        Features(vit, tmp_path).h0(images)
    assert list((tmp_path / "features").iterdir()) == []


def test_seconds_grow_with_the_images(vit: Counting, images: Images) -> None:
    features = Features(vit)
    one = features.seconds(part(images, 0))
    assert one > 0
    assert features.seconds(images) == pytest.approx(len(images) * one)
