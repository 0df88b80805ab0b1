"""The demo's pre-synaptic network E0 and the statistics of its features, read from the package's weight file.

The learner starts here: it keeps the network frozen and whitens its feature h0 with the statistics. The file
is made by `artsy_ext.demo.pretrain`.
"""

from __future__ import annotations

import hashlib
import os
from importlib import resources
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from timm.models.vision_transformer import VisionTransformer

WEIGHT_FILE = "backbone.safetensors"
WEIGHT_SHA256 = "938730b65cffffe1ae76577d9abebb49a9bab1bb49565ac934a2a2eda3427b53"

_BACKBONE = "backbone."
_STATISTICS = "statistics."

# As timm describes a model's input, for `timm.data.resolve_model_data_config`.
_DATA_CONFIG = {
    "input_size": (1, 28, 28),
    "interpolation": "bilinear",
    "crop_pct": 1.0,
    "mean": (0.3,),
    "std": (0.3,),
}


class FeatureStatistics(NamedTuple):
    """Mean and within-class covariance of h0 over pre-training samples; D features.

    The layer norm that ends in h0 ties its features by one linear relation, so the covariance is positive
    semi-definite of rank D - 1, up to rounding: shrink it before it is inverted.

    Attributes:
        mean: [D] float32.
        within_covariance: [D, D] float32, symmetric; around the class means, pooled over the classes.
    """

    mean: torch.Tensor
    within_covariance: torch.Tensor


def create_backbone() -> VisionTransformer:
    """The demo's architecture with random weights: images [B, 1, 28, 28] to features h0 [B, 96].

    Images are bright strokes on black, normalised by (x - 0.3) / 0.3, as its timm data configuration says.
    """
    backbone: Any = VisionTransformer(
        img_size=28,
        patch_size=7,
        in_chans=1,
        num_classes=0,
        global_pool="avg",
        class_token=False,
        embed_dim=96,
        depth=4,
        num_heads=4,
        mlp_ratio=2.0,
    )
    backbone.pretrained_cfg = dict(_DATA_CONFIG)
    return backbone


def load_backbone(path: str | os.PathLike[str] | None = None) -> tuple[VisionTransformer, FeatureStatistics]:
    """The pre-trained backbone and the statistics of its features h0.

    Args:
        path: a file that `artsy_ext.demo.pretrain` wrote; by default the one in the package, whose SHA-256 is
            checked.

    Returns:
        The network, on the CPU in float32 and eval mode, with no parameter that requires a gradient; and its
        statistics. h0 is vit.forward_head(vit.forward_features(images), pre_logits=True), also vit(images).

    Raises:
        OSError: if the file can't be read, or the package's is damaged.
        ValueError: if `path` is not such a file.
    """
    if path is None:
        content = resources.files("artsy_ext.demo").joinpath("weights").joinpath(WEIGHT_FILE).read_bytes()
        found = hashlib.sha256(content).hexdigest()
        if found != WEIGHT_SHA256:
            raise OSError(
                f"load_backbone: {WEIGHT_FILE} is damaged: its SHA-256 must be {WEIGHT_SHA256}, got {found}; "
                "reinstall artsy_ext"
            )
    else:
        content = Path(path).read_bytes()

    # The initial weights are only a placeholder: they must not move the random stream that the caller seeded.
    with torch.random.fork_rng(devices=[]):
        backbone = create_backbone()
    try:
        tensors = load(content)
        backbone.load_state_dict(_named(tensors, _BACKBONE))
        statistics = FeatureStatistics(**_named(tensors, _STATISTICS))
    except (SafetensorError, RuntimeError, TypeError) as error:
        raise ValueError(
            f"load_backbone: path must be a file that artsy_ext.demo.pretrain wrote, got {path}"
        ) from error
    return backbone.requires_grad_(False).eval(), statistics


def pack_backbone(backbone: VisionTransformer, statistics: FeatureStatistics) -> bytes:
    """The content of a weight file: the weights in float16, the statistics in float32."""
    tensors = {f"{_BACKBONE}{name}": tensor.half() for name, tensor in backbone.state_dict().items()}
    tensors |= {f"{_STATISTICS}{name}": tensor.contiguous() for name, tensor in statistics._asdict().items()}
    return save(tensors)


def _named(tensors: dict[str, torch.Tensor], prefix: str) -> dict[str, torch.Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
