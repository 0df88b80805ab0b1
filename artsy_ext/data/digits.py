"""scikit-learn's handwritten digits as 28x28 images: the built-in sources `digits` and `rotated`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor
from torch.nn import functional as F

from artsy_ext.data.images import ImageSet, digest_of
from artsy_ext.data.sources import Source

__all__ = ["digits", "rotated"]


def digits() -> Source:
    """The 1797 digits of `sklearn.datasets.load_digits`: enlarged from 8x8 to 20x20 (bilinear), padded to 28x28."""
    images, labels = _handwritten_digits()
    return Source("digits", tuple(map(str, range(10))), _image_set(images, labels), increment=2)


def rotated() -> Source:
    """The digits, and each turned by 90 degrees counter-clockwise as 10 more classes.

    A digit's two orientations stay together in a split, so no test digit is seen in training in the other one.
    """
    images, labels = _handwritten_digits()
    both = _image_set(torch.cat([images, images.rot90(1, (2, 3))]), torch.cat([labels, labels + 10]))
    names = tuple(f"{digit}{turn}" for turn in ("", " turned") for digit in range(10))
    return Source("rotated", names, both, renderings=2, increment=2)


def _handwritten_digits() -> tuple[Tensor, Tensor]:
    """Images [1797, 1, 28, 28] float32 in [0, 1], and labels [1797] int64."""
    from sklearn.datasets import load_digits

    source = load_digits()
    images = torch.from_numpy(source.images).float().unsqueeze(1) / 16
    images = F.pad(F.interpolate(images, size=(20, 20), mode="bilinear"), (4, 4, 4, 4))
    return images, torch.from_numpy(source.target).long()


def _image_set(images: Tensor, labels: Tensor) -> ImageSet:
    return ImageSet(cast(Sequence[Tensor], images), labels, digest_of(images))
