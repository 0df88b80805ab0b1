"""Backbones by name: what is refused and how, that weights are those asked for, and what transforms do to images."""

import json
import pickle
import re
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor

from artsy_ext.demo import load_backbone
from artsy_ext.learner.backbones import ImageTransform, check_backbone, open_backbone
from artsy_ext.nn import RoutedViT

SMALL = "test_vit"  # timm's own smallest ViT: 160x160, 0.4 million parameters

GREY = ImageTransform((1, 28, 28), "bilinear", (0.3,), (0.3,), 1.0, "center")
COLOUR = ImageTransform((3, 32, 32), "bicubic", (0.5, 0.5, 0.5), (0.5, 0.5, 0.5), 0.9, "center")
SQUASHED = ImageTransform((3, 32, 32), "bicubic", (0.0, 0.0, 0.0), (1.0, 1.0, 1.0), 1.0, "squash")

MODES = ["1", "L", "LA", "La", "P", "PA", "RGB", "RGBA", "RGBX", "RGBa", "CMYK", "YCbCr", "LAB", "HSV", "I", "F"]
MODES += ["I;16", "I;16L", "I;16B"]


@pytest.fixture
def weight_file(tmp_path: Path) -> Callable[..., Path]:
    """weight_file(change=…): a file with fresh weights of the small ViT and a classifier, changed by a function."""

    def write(change: Callable[[dict[str, Tensor]], object] = lambda weights: None) -> Path:
        weights = timm.create_model(SMALL, num_classes=7).state_dict()
        change(weights)
        path = tmp_path / "weights.safetensors"
        save_file({name: value.contiguous() for name, value in weights.items()}, path)
        return path

    return write


def assert_refused(spec: str, message: str, error: type[Exception] = ValueError) -> None:
    """By both functions, in one line."""
    for function in (check_backbone, open_backbone):
        with pytest.raises(error, match=message) as caught:
            function(spec)
        assert str(caught.value).startswith("backbone: ")
        assert "\n" not in str(caught.value)


def test_the_demo() -> None:
    check_backbone("demo")
    backbone = open_backbone("demo")
    vit, statistics = load_backbone()
    assert backbone.name == "demo"
    assert RoutedViT(backbone.model).fingerprint() == RoutedViT(vit).fingerprint()
    assert backbone.statistics is not None
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(backbone.statistics, statistics, strict=True))
    assert backbone.transform == GREY


def test_the_demo_sees_what_it_was_trained_on_to_the_bit() -> None:
    images = torch.rand(20, 1, 28, 28, generator=torch.Generator().manual_seed(0))
    transform = open_backbone("demo").transform
    for image in images:
        before = image.clone()
        assert torch.equal(transform(image), (image - 0.3) / 0.3)
        assert torch.equal(image, before)


@pytest.mark.parametrize("name", ["test_vit", "test_vit.r160_in1k", "vit_tiny_patch16_224", "deit_tiny_patch16_224"])
def test_random_weights_are_the_same_everywhere(name: str) -> None:
    spec = f"{name}:random"
    torch.manual_seed(1)
    check_backbone(spec)
    first = open_backbone(spec)
    after = torch.rand(3)
    torch.manual_seed(1)
    assert torch.equal(torch.rand(3), after)
    torch.manual_seed(2)
    second = open_backbone(spec)
    assert RoutedViT(first.model).fingerprint() == RoutedViT(second.model).fingerprint()

    model = first.model
    assert (first.name, first.statistics, model.num_classes) == (spec, None, 0)
    assert not any(part.training for part in model.modules())
    assert all(p.dtype == torch.float32 and not p.requires_grad for p in model.parameters())
    assert first.transform == second.transform
    assert model(first.transform(Image.new("RGB", (50, 40)))[None]).shape == (1, model.embed_dim)


def test_the_transform_is_timms() -> None:
    config = timm.data.resolve_model_data_config(timm.create_model("vit_tiny_patch16_224"))
    image = Image.effect_noise((300, 260), 80).convert("RGB")
    ours = open_backbone("vit_tiny_patch16_224:random").transform(image)
    assert torch.equal(ours, timm.data.create_transform(**config, is_training=False)(image))


def test_the_tag_decides_about_the_transform() -> None:
    assert open_backbone("vit_tiny_patch16_224:random").transform.mean == (0.5, 0.5, 0.5)
    assert open_backbone("vit_small_patch16_224.dino:random").transform.mean == (0.485, 0.456, 0.406)


def test_weights_from_a_file(weight_file: Callable[..., Path]) -> None:
    path = weight_file()
    spec = f"{SMALL}:{path}"
    check_backbone(spec)
    state = open_backbone(spec).model.state_dict()
    saved = load_file(path)
    assert saved.keys() - state.keys() == {"head.weight", "head.bias"}
    assert all(torch.equal(value, saved[name]) for name, value in state.items())


def test_half_precision_weights_become_float32(weight_file: Callable[..., Path]) -> None:
    path = weight_file(lambda weights: weights.update({name: value.half() for name, value in weights.items()}))
    state = open_backbone(f"{SMALL}:{path}").model.state_dict()
    assert all(torch.equal(value, load_file(path)[name].float()) for name, value in state.items())


def test_a_distilled_deit_leaves_both_classifiers(tmp_path: Path) -> None:
    name, path = "deit_tiny_distilled_patch16_224", tmp_path / "weights.safetensors"
    save_file(timm.create_model(name).state_dict(), path)
    assert "head_dist.weight" in load_file(path)
    assert open_backbone(f"{name}:{path}").model.num_classes == 0


def test_a_file_in_the_home_folder(weight_file: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(weight_file().parent))
    check_backbone(f"{SMALL}:~/weights.safetensors")


def turned(weights: dict[str, Tensor]) -> None:
    weights["blocks.0.mlp.fc1.weight"] = weights["blocks.0.mlp.fc1.weight"].T


def counted(weights: dict[str, Tensor]) -> None:
    weights["norm.bias"] = weights["norm.bias"].to(torch.int8)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda weights: weights.pop("blocks.1.norm1.weight"), r" lacks blocks\.1\.norm1\.weight of test_vit$"),
        (lambda weights: weights.update(mask_token=torch.zeros(3)), r" has mask_token, which is not in test_vit$"),
        (turned, r"blocks\.0\.mlp\.fc1\.weight in .* must be \[192, 64\] for test_vit, got \[64, 192\]$"),
        (counted, r"norm\.bias in .* must be floating-point, got I8$"),
    ],
)
def test_other_weights_are_refused(
    weight_file: Callable[..., Path], change: Callable[[dict[str, Tensor]], object], message: str
) -> None:
    assert_refused(f"{SMALL}:{weight_file(change)}", message)


@pytest.mark.parametrize("content", [b"", b"not a weight file", None])
def test_damaged_weights_are_refused(weight_file: Callable[..., Path], content: bytes | None) -> None:
    path = weight_file()
    path.write_bytes(path.read_bytes()[:-1] if content is None else content)
    assert_refused(f"{SMALL}:{path}", rf"^backbone: {path} can't be read as a \.safetensors file: ")


def test_a_pickle_is_never_opened(tmp_path: Path) -> None:
    path = tmp_path / "weights.pth"
    torch.save(timm.create_model(SMALL).state_dict(), path)
    assert_refused(f"{SMALL}:{path}", rf"expected test_vit:random, or test_vit:FILE with .*, got 'test_vit:{path}'$")
    renamed = path.rename(tmp_path / "weights.safetensors")
    assert_refused(f"{SMALL}:{renamed}", r"can't be read as a \.safetensors file: ")


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "weights.safetensors"
    assert_refused(f"{SMALL}:{path}", f"^backbone: there is no file {path}$", FileNotFoundError)
    path.mkdir()
    assert_refused(f"{SMALL}:{path}", f"^backbone: there is no file {path}$", FileNotFoundError)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("vit_tinny_patch16_224", r"got 'vit_tinny_patch16_224' \(did you mean vit_tiny_patch16_224\?\)$"),
        ("VIT_BASE_PATCH16_224:random", r"\(did you mean vit_base_patch16_224\?\)$"),
        ("dema", r"expected demo or a timm ViT such as vit_base_patch16_224, got 'dema' \(did you mean demo\?\)$"),
        ("vit_base_patch16_224_in21k", r"\(did you mean vit_base_patch16_224\.augreg_in21k\?\)$"),  # its former name
        ("7", r"got '7'$"),
        ("", r"got ''$"),
        ("hf-hub:timm/vit_tiny_patch16_224", r"got 'hf-hub'$"),
        ("demo:random", r"demo has its own weights, got 'demo:random'$"),
        ("test_vit:", r"expected test_vit:random, or test_vit:FILE with a \.safetensors file, got 'test_vit:'$"),
        ("test_vit:randm", r"got 'test_vit:randm'$"),
        ("vit_tiny_patch16_224.augreg", r"has no pretrained tag 'augreg'; known: .*\baugreg_in21k\b"),
        ("vit_tiny_patch16_224.augreg:random", r"vit_tiny_patch16_224 has no pretrained tag 'augreg'"),
        ("vit_tiny_patch16_224.:random", r"vit_tiny_patch16_224 has no pretrained tag ''"),
        (
            "vit_base_patch32_plus_256",
            r"no pretrained weights for vit_base_patch32_plus_256: use vit_base\S+:random, or",
        ),
        ("resnet50", r"resnet50 must be a timm VisionTransformer, got ResNet$"),
        ("swin_tiny_patch4_window7_224:random", r"must be a timm VisionTransformer, got SwinTransformer$"),
        ("eva02_tiny_patch14_224:random", r"must be a timm VisionTransformer, got Eva$"),
        ("vit_relpos_small_patch16_224:random", r"must be a timm VisionTransformer, got VisionTransformerRelPos$"),
        ("vit_base_patch16_rpn_224:random", r"must have standard pre-norm blocks, got ResPostBlock$"),
        ("vit_small_patch16_18x2_224:random", r"must have standard pre-norm blocks, got ParallelThingsBlock$"),
    ],
)
def test_other_names_are_refused(spec: str, message: str) -> None:
    assert_refused(spec, message)


def test_a_model_that_is_too_large_to_build_is_checked_all_the_same() -> None:
    torch.manual_seed(0)
    check_backbone("vit_gigantic_patch14_clip_224")
    after = torch.rand(3)
    torch.manual_seed(0)
    assert torch.equal(torch.rand(3), after)


@pytest.fixture
def no_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of an empty cache; the hub can't be reached."""
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    return tmp_path


@pytest.mark.usefixtures("no_hub")
def test_weights_that_cannot_be_downloaded_are_named_at_once() -> None:
    check_backbone("vit_tiny_patch16_224")
    start = time.perf_counter()
    with pytest.raises(OSError, match=r"^backbone: the pretrained weights of vit_tiny_patch16_224 can't be had: ") as e:
        open_backbone("vit_tiny_patch16_224")
    assert time.perf_counter() - start < 10
    message = str(e.value)
    assert "use vit_tiny_patch16_224:random, or vit_tiny_patch16_224:FILE with a .safetensors file (" in message
    assert "\n" not in message


def test_downloaded_weights_need_no_hub(no_hub: Path, weight_file: Callable[..., Path]) -> None:
    path = weight_file()
    folder = no_hub / "models--timm--test_vit.r160_in1k"
    (folder / "refs").mkdir(parents=True)
    (folder / "refs" / "main").write_text("0" * 40)
    (folder / "snapshots" / ("0" * 40)).mkdir(parents=True)
    path.rename(folder / "snapshots" / ("0" * 40) / "model.safetensors")
    # Whatever random state the caller is in: nothing of the network is left to chance.
    first, second = open_backbone("test_vit").model, open_backbone("test_vit.r160_in1k").model
    saved = load_file(folder / "snapshots" / ("0" * 40) / "model.safetensors")
    for model in (first, second):
        assert all(torch.equal(value, saved[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize("size", [(28, 28), (1, 1), (3, 90), (70, 41)])
@pytest.mark.parametrize("mode", MODES)
def test_every_mode_and_size_of_a_pil_image(mode: str, size: tuple[int, int]) -> None:
    image = Image.new(mode, size)
    for transform in (GREY, COLOUR, SQUASHED):
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            result = transform(image)
        assert (tuple(result.shape), result.dtype) == (transform.input_size, torch.float32)
        assert result.isfinite().all()


@pytest.mark.parametrize("size", [(28, 28), (1, 1), (90, 3), (41, 70)])
@pytest.mark.parametrize("channels", [1, 3])
def test_every_size_of_a_tensor(channels: int, size: tuple[int, int]) -> None:
    for transform in (GREY, COLOUR, SQUASHED):
        result = transform(torch.rand(channels, *size))
        assert (tuple(result.shape), result.dtype) == (transform.input_size, torch.float32)
        assert result.isfinite().all()


def test_white_is_white_in_every_mode() -> None:
    white = Image.new("RGB", (28, 28), "white")
    images = [white.convert(mode) for mode in ("1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr", "HSV", "F")]
    images += [Image.new(mode, (28, 28), 65535) for mode in ("I", "I;16", "I;16L", "I;16B")]
    images += [Image.new("LAB", (28, 28), (255, 128, 128)), Image.new("La", (28, 28), (255, 255))]
    for image in images:
        torch.testing.assert_close(GREY(image), torch.full((1, 28, 28), 0.7 / 0.3), rtol=0, atol=0.01, msg=image.mode)
        torch.testing.assert_close(COLOUR(image), torch.ones(3, 32, 32), rtol=0, atol=0.01, msg=image.mode)


def test_16_bits_keep_their_greys(tmp_path: Path) -> None:
    greys = np.arange(784, dtype=np.uint16).reshape(28, 28) % 256
    expected = GREY(Image.fromarray(greys.astype(np.uint8)))
    Image.fromarray(greys * 257).save(tmp_path / "deep.png")
    with Image.open(tmp_path / "deep.png") as deep:
        assert torch.equal(GREY(deep), expected)


def test_a_palette_with_transparency_warns_of_nothing(tmp_path: Path) -> None:
    image = Image.new("RGB", (28, 28), "white").convert("P")
    image.save(tmp_path / "palette.png", transparency=bytes(range(256)))
    with Image.open(tmp_path / "palette.png") as palette, warnings.catch_warnings():
        warnings.simplefilter("error")
        assert torch.equal(GREY(palette), GREY(Image.new("L", (28, 28), 255)))


def test_colour_becomes_grey_as_pillow_does_it() -> None:
    pixels = np.random.default_rng(0).integers(256, size=(28, 28, 3), dtype=np.uint8)
    image, tensor = Image.fromarray(pixels), torch.from_numpy(pixels).permute(2, 0, 1) / 255
    torch.testing.assert_close(GREY(tensor), GREY(image), rtol=0, atol=0.51 / 255 / 0.3)


def test_grey_becomes_three_equal_channels() -> None:
    red, green, blue = COLOUR(torch.rand(1, 40, 30))
    assert torch.equal(red, green)
    assert torch.equal(green, blue)


@pytest.mark.parametrize(
    ("image", "came"),
    [
        (torch.rand(28, 28), "[28, 28] float32"),
        (torch.rand(4, 28, 28), "[4, 28, 28] float32"),
        (torch.zeros(1, 28, 28, dtype=torch.uint8), "[1, 28, 28] uint8"),
    ],
)
def test_other_tensors_are_refused(image: Tensor, came: str) -> None:
    message = f"ImageTransform: image must be [1 or 3, height, width] float32, got {came}"
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        GREY(image)


@pytest.mark.parametrize("transform", [GREY, COLOUR, SQUASHED])
def test_a_transform_is_known_by_its_repr_and_travels(transform: ImageTransform) -> None:
    for twin in (eval(repr(transform)), pickle.loads(pickle.dumps(transform))):
        assert twin == transform
        assert repr(twin) == repr(transform)
        image = Image.effect_noise((50, 40), 90)
        assert torch.equal(twin(image), transform(image))


def test_vit_base_learns_and_answers_within_8_gib() -> None:
    """One training step of a sub-network, and h0 and the functional pairs of three, over 8 images of 224x224."""
    script = """
import json, resource, torch
from torch.utils.data import TensorDataset
from artsy_ext.learner.backbones import open_backbone
from artsy_ext.learner.config import LearnerConfig
from artsy_ext.learner.progress import Progress
from artsy_ext.learner.training import new_bank, train_subnetwork
from artsy_ext.nn import RoutedViT
from artsy_ext.ops import plan_routes

vit = RoutedViT(open_backbone("vit_base_patch16_224:random").model)
images, labels = torch.rand(8, 3, 224, 224), torch.arange(8) % 2
config = LearnerConfig(epochs=1, batch_size=8)
trained, _ = train_subnetwork(
    vit, TensorDataset(images, labels), torch.arange(2), config, seed=0, task=0, progress=Progress.silent()
)
bank = new_bank(vit, config, 2)
bank.append(trained)
mask = torch.eye(3, dtype=torch.bool)[torch.arange(8) % 3]
with torch.no_grad():
    tokens = vit.embed(images)
    h0, features = vit.base_features(tokens), vit.subnetwork_features(tokens, bank, plan_routes(mask))
print(json.dumps({
    "blocks": vit.depth,
    "moved": all(bool(adapters.up.any()) for adapters in trained.adapters),
    "shapes": [list(h0.shape), list(features.shape)],
    "finite": bool(h0.isfinite().all() and features.isfinite().all()),
    "peak": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
}))
"""
    done = subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, text=True, timeout=600)
    result = json.loads(done.stdout)
    assert result.pop("peak") <= 8 * 2**30
    assert result == {"blocks": 12, "moved": True, "shapes": [[8, 768], [8, 768]], "finite": True}
