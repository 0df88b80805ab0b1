"""Backbones by name: what `--backbone` takes, opened as a frozen ViT with the transform that its images need."""

from __future__ import annotations

import difflib
from collections.abc import Callable
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, cast

import numpy as np
import timm
import torch
from PIL import Image, ImageCms
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from timm.data import create_transform, resolve_model_data_config
from timm.models import get_deprecated_models, is_model_pretrained
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from artsy_ext.nn import RoutedViT

__all__ = ["Backbone", "ImageTransform", "check_backbone", "open_backbone"]

_DEMO = "demo"
_RANDOM = "random"
_SUFFIX = ".safetensors"
_VIT_MODULES = ("vision_transformer", "deit", "vision_transformer_hybrid")
_CLASSIFIERS = ("head.", "head_dist.")
_LUMA = (0.299, 0.587, 0.114)


@dataclass(frozen=True)
class ImageTransform:
    """From an image to the input of a backbone: to its number of channels, then as timm evaluates the model.

    The same image gives the same bits, the repr says all there is to it, and it can be pickled. Images are PIL images
    of any mode, or tensors [1 or 3, height, width] float32 in [0, 1]; colour becomes grey by Pillow's luma weights,
    alpha is dropped, and integers wider than 8 bits are taken as 16 bits.

    Attributes:
        input_size: (channels, height, width) of the result; channels is 1 or 3.
        interpolation: for resizing: "bilinear" or "bicubic".
        mean, std: one number for each channel; the result is (image - mean) / std.
        crop_pct: side of the crop over that of the resized image.
        crop_mode: timm's: "center" crops the shorter side's square, "squash" does not keep the aspect ratio.

    Raises:
        ValueError: when called with a tensor of other shape or dtype.
    """

    input_size: tuple[int, int, int]
    interpolation: str
    mean: tuple[float, ...]
    std: tuple[float, ...]
    crop_pct: float
    crop_mode: str
    _evaluate: Callable[[Any], Tensor] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        settings = {setting.name: getattr(self, setting.name) for setting in fields(self) if setting.init}
        object.__setattr__(self, "_evaluate", create_transform(**settings, is_training=False))

    @classmethod
    def of(cls, model: VisionTransformer) -> ImageTransform:
        """The one that timm's data configuration of a model describes."""
        config = resolve_model_data_config(model)
        # The size that the model was built with: timm's configuration is wrong for vitamin_xlarge_336.
        config["input_size"] = (config["input_size"][0], *model.patch_embed.img_size)
        return cls(**{setting.name: config[setting.name] for setting in fields(cls) if setting.init})

    def __call__(self, image: Image.Image | Tensor) -> Tensor:
        """[channels, height, width] float32 of `input_size`."""
        channels = self.input_size[0]
        if isinstance(image, Tensor):
            return self._evaluate(_with_channels(image, channels))
        image = _as_rgb(image)
        return self._evaluate(image if channels == 3 else image.convert("L"))


def _with_channels(image: Tensor, channels: int) -> Tensor:
    if image.ndim != 3 or image.shape[0] not in (1, 3) or image.dtype != torch.float32:
        raise ValueError(
            "ImageTransform: image must be [1 or 3, height, width] float32, "
            f"got {list(image.shape)} {str(image.dtype).removeprefix('torch.')}"
        )
    if len(image) == channels:
        return image
    if channels == 3:
        return image.expand(3, -1, -1)
    return (image * image.new_tensor(_LUMA)[:, None, None]).sum(0, keepdim=True)


def _as_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I"):
        # Pillow's own conversion cuts everything above 255 off: a 16-bit image would turn white.
        values = np.asarray(image).clip(0, 65535)
        image = Image.fromarray(np.round(values / 257).astype(np.uint8))
    elif image.mode == "LAB":
        lab, rgb = ImageCms.createProfile("LAB"), ImageCms.createProfile("sRGB")
        image = cast(Image.Image, ImageCms.profileToProfile(image, lab, rgb, outputMode="RGB"))
    elif image.mode in ("P", "La"):
        image = image.convert("RGBA" if image.mode == "P" else "LA")
    return image.convert("RGB")


@dataclass(frozen=True, eq=False)
class Backbone:
    """A pre-synaptic network E0 and what belongs to it.

    Attributes:
        name: the specification as given.
        model: frozen, in evaluation mode, float32, on the CPU, without a classifier.
        statistics: mean [D] and within-class covariance [D, D] of its features over its pre-training data, where
            they are known (demo only).
        transform: from an image to its input.
    """

    name: str
    model: VisionTransformer
    statistics: tuple[Tensor, Tensor] | None
    transform: Callable[[Image.Image | Tensor], Tensor]


def check_backbone(spec: str) -> None:
    """Refuses what `open_backbone` can't open, without reading weights, downloading or taking memory for a network.

    Of a weight file, names and shapes are checked. Whether pre-trained weights can be downloaded is not.

    Raises:
        ValueError: as `open_backbone`.
        FileNotFoundError: as `open_backbone`.
    """
    if spec != _DEMO:
        _check(*_split(spec))


def open_backbone(spec: str) -> Backbone:
    """The backbone that a specification names. The caller's random state stays as it is.

    Args:
        spec: one of
            demo: the network that comes with the package, for images of bright strokes on black, 28x28, one channel;
                others are resized and turned grey, but dark strokes on white are not inverted.
            NAME: a timm ViT by its name, with or without a pretrained tag; its weights are downloaded once.
            NAME:random: the same with random weights, the same ones in every process.
            NAME:FILE: the same with the weights in a local .safetensors file, named as timm names them. A
                classifier in the file is ignored.

    Raises:
        ValueError: unknown name or pretrained tag; a model that `RoutedViT` can't run; no pretrained weights; a weight
            file of another format, damaged, or whose names or shapes are not those of the model.
        FileNotFoundError: there is no such weight file.
        OSError: the pretrained weights can't be downloaded.
    """
    if spec == _DEMO:
        from artsy_ext.demo import load_backbone

        demo, statistics = load_backbone()
        return Backbone(spec, demo, statistics, ImageTransform.of(demo))

    name, weights = _split(spec)
    _check(name, weights)
    if weights is None:
        model = _pretrained(name)
    else:
        model = _create(name)
        if weights != _RANDOM:
            _load(model, _path(weights))
    model.eval().requires_grad_(False)
    return Backbone(spec, model, None, ImageTransform.of(model))


def _split(spec: str) -> tuple[str, str | None]:
    """(NAME, None | "random" | FILE)."""
    name, colon, weights = spec.partition(":")
    if name == _DEMO:
        raise ValueError(f"backbone: {_DEMO} has its own weights, got {spec!r}")
    return name, weights if colon else None


def _path(weights: str) -> Path:
    # A shell leaves the ~ of NAME:~/FILE as it is.
    return Path(weights).expanduser()


def _check(name: str, weights: str | None) -> None:
    _check_name(name)
    # Without memory for its weights, any model of timm is built within a second.
    with torch.device("meta"):
        model = timm.create_model(name, num_classes=0)
    try:
        RoutedViT(model)
    except (TypeError, ValueError) as error:
        raise ValueError(f"backbone: {name} {str(error).removeprefix('RoutedViT: backbone ')}") from error

    if weights is None:
        if not is_model_pretrained(name):
            raise ValueError(f"backbone: timm has no pretrained weights for {name}: use {_instead(name)}")
    elif weights != _RANDOM:
        if not weights.endswith(_SUFFIX):
            raise ValueError(f"backbone: expected {_instead(name)}, got '{name}:{weights}'")
        _check_file(_path(weights), name, model)


def _check_name(name: str) -> None:
    architecture, _, tag = name.partition(".")
    if architecture not in timm.list_models():
        known = [_DEMO, *(model for module in _VIT_MODULES for model in timm.list_models(module=module))]
        renamed = get_deprecated_models().get(architecture)
        close = [renamed] if renamed else difflib.get_close_matches(architecture.lower(), known, 1)
        hint = f" (did you mean {close[0]}?)" if close else ""
        raise ValueError(f"backbone: expected {_DEMO} or a timm ViT such as vit_base_patch16_224, got {name!r}{hint}")
    tagged = timm.list_models(architecture, include_tags=True)
    if "." in name and name not in tagged:
        tags = [other.partition(".")[2] for other in tagged]
        raise ValueError(
            f"backbone: {architecture} has no pretrained tag {tag!r}; known: {', '.join(filter(None, tags)) or 'none'}"
        )


def _instead(name: str) -> str:
    return f"{name}:{_RANDOM}, or {name}:FILE with a {_SUFFIX} file"


def _create(name: str, **options: Any) -> VisionTransformer:
    """With random weights where no option says otherwise."""
    with torch.random.fork_rng(devices=[]), torch.device("cpu"):
        # Not torch.manual_seed, which would move the GPUs' random state too.
        torch.default_generator.manual_seed(0)
        return cast(VisionTransformer, timm.create_model(name, num_classes=0, **options))


def _pretrained(name: str) -> VisionTransformer:
    # Whatever timm, the hub's client and its HTTP library raise here is about the weights: the model was built before.
    try:
        _check_reachable(timm.get_pretrained_cfg(name))
        return _create(name, pretrained=True)
    except Exception as error:
        reason = " ".join(str(error).split()) or "no reason given"
        raise OSError(
            f"backbone: the pretrained weights of {name} can't be had: use {_instead(name)} "
            f"({type(error).__name__}: {reason})"
        ) from error


def _check_reachable(config: Any) -> None:
    """Raises at once where the hub does not answer and its cache is empty: a download would try for a minute."""
    if not config.hf_hub_id or config.hf_hub_filename:
        return
    from huggingface_hub import get_hf_file_metadata, hf_hub_url, try_to_load_from_cache
    from huggingface_hub.utils import EntryNotFoundError

    repository, _, revision = config.hf_hub_id.partition("@")
    # The names that timm looks for, in its order.
    files = ("model.safetensors", "pytorch_model.bin")
    if any(isinstance(try_to_load_from_cache(repository, file, revision=revision or None), str) for file in files):
        return
    try:
        get_hf_file_metadata(hf_hub_url(repository, files[0], revision=revision or None))
    except EntryNotFoundError:
        # It answers. Whether there is a file by another name is timm's to find out.
        return


def _check_file(path: Path, name: str, model: nn.Module) -> None:
    if not path.is_file():
        raise FileNotFoundError(f"backbone: there is no file {path}")
    try:
        with safe_open(path, "pt") as file:
            found = {key: file.get_slice(key) for key in file.keys()}  # noqa: SIM118 - it is no dict
            shapes = {key: list(value.get_shape()) for key, value in found.items()}
            kinds = {key: value.get_dtype() for key, value in found.items()}
    except (SafetensorError, OSError) as error:
        raise ValueError(f"backbone: {path} can't be read as a {_SUFFIX} file: {error}") from error

    expected = model.state_dict()
    for key, value in expected.items():
        if key not in shapes:
            raise ValueError(f"backbone: {path} lacks {key} of {name}")
        if shapes[key] != list(value.shape):
            raise ValueError(f"backbone: {key} in {path} must be {list(value.shape)} for {name}, got {shapes[key]}")
        if value.is_floating_point() and not kinds[key].startswith(("F", "BF")):
            raise ValueError(f"backbone: {key} in {path} must be floating-point, got {kinds[key]}")
    for key in shapes:
        if key not in expected and not key.startswith(_CLASSIFIERS):
            raise ValueError(f"backbone: {path} has {key}, which is not in {name}")


def _load(model: VisionTransformer, path: Path) -> None:
    try:
        weights = load_file(path)
    except (SafetensorError, OSError) as error:
        raise ValueError(f"backbone: {path} can't be read as a {_SUFFIX} file: {error}") from error
    model.load_state_dict({key: weights[key] for key in model.state_dict()})
