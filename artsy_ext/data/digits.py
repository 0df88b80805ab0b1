"""scikit-learn's handwritten digits as 28x28 images: the built-in sources `digits`, `rotated`, `domains`, `long`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from artsy_ext.data.images import ImageSet, digest_of
from artsy_ext.data.sources import Source

__all__ = ["DOMAINS", "digits", "domains", "long", "rotated"]

DOMAINS = ("stripes", "sparse", "photos", "negative")
"""How `domains` shows every digit."""

_LONG = 20


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


def domains() -> Source:
    """The digits in four domains: 10 classes in each, and a domain's classes come together.

    - stripes: vertical stripes of 2 pixels (0 and 0.8) minus the mirrored digit, absolute, plus noise of 0.22;
    - sparse: turned by 90 degrees counter-clockwise, 40 % of the pixels are black;
    - photos: half of it a patch of one of scikit-learn's two sample photographs, the other half the digit turned by 270
      degrees, plus noise of 0.1. Training images have patches of the photographs' left halves, test images of the right
      ones;
    - negative: 1 minus the transposed digit, plus noise of 0.4.

    Noise is Gaussian, and what leaves [0, 1] is clipped. An image's rendering does not depend on the seed of a stream;
    a digit's four renderings stay together in a split. The domains were chosen so that features of a network that has
    seen letters alone fall far short of those of a network trained on them.
    """
    images, labels = _handwritten_digits()
    labels = torch.cat([labels + 10 * domain for domain in range(len(DOMAINS))])
    train, test = (
        _image_set(torch.cat(_rendered(images, columns)), labels) for columns in (slice(0, 320), slice(320, 640))
    )
    names = tuple(f"{digit} {domain}" for domain in DOMAINS for digit in range(10))
    return Source("domains", names, train, test, paired=True, renderings=len(DOMAINS), domains=DOMAINS, increment=10)


def long() -> Source:
    """The digits in 20 domains: cut into 4x4 pieces of 7x7 pixels that lie in an order of each domain's own.

    200 classes, by default 100 tasks of 2. Those of a domain come together, so that there are 20 groups of 5 tasks that
    are alike. A digit's 20 renderings stay together in a split.
    """
    images, labels = _handwritten_digits()
    random, pieces = np.random.RandomState(0), torch.arange(28 * 28).view(4, 7, 4, 7).transpose(1, 2).reshape(16, 49)
    pixels = images.flatten(1)
    rendered = []
    for _ in range(_LONG):
        image = torch.empty_like(pixels)
        image[:, pieces.flatten()] = pixels[:, pieces[random.permutation(16)].flatten()]
        rendered.append(image.view_as(images))
    names = tuple(f"{digit} shuffle{domain + 1}" for domain in range(_LONG) for digit in range(10))
    return Source(
        "long",
        names,
        _image_set(torch.cat(rendered), torch.cat([labels + 10 * domain for domain in range(_LONG)])),
        renderings=_LONG,
        domains=tuple(f"shuffle{domain + 1}" for domain in range(_LONG)),
        increment=2,
    )


def _rendered(images: Tensor, columns: slice) -> list[Tensor]:
    """Images [n, 1, 28, 28] in each of `DOMAINS`; columns: those of the photographs that patches are taken from."""
    # Its streams are frozen by NumPy, so the images are the same in every version.
    random = np.random.RandomState(0)

    def noise(scale: float) -> Tensor:
        return torch.from_numpy(scale * random.standard_normal(images.shape)).float()

    stripes = 0.8 * (torch.arange(28) // 2 % 2)
    rendered = [
        (stripes - images.flip(3)).abs() + noise(0.22),
        images.rot90(1, (2, 3)) * torch.from_numpy(random.random_sample(images.shape) < 0.6),
        0.5 * _patches(len(images), columns, random) + 0.5 * images.rot90(3, (2, 3)) + noise(0.1),
        1 - images.transpose(2, 3) + noise(0.4),
    ]
    return [domain.clamp(0, 1) for domain in rendered]


def _patches(count: int, columns: slice, random: np.random.RandomState) -> Tensor:
    """Grey patches [count, 1, 28, 28] in [0, 1] of scikit-learn's photographs, half of them mirrored."""
    from sklearn.datasets import load_sample_images

    grey = np.stack([photo[:, columns].mean(2) / 255 for photo in load_sample_images().images])
    windows = np.lib.stride_tricks.sliding_window_view(grey, (28, 28), axis=(1, 2))
    photo, row, column = (random.randint(limit, size=count) for limit in windows.shape[:3])
    patches = torch.from_numpy(windows[photo, row, column]).float().unsqueeze(1)
    mirrored = torch.from_numpy(random.random_sample((count, 1, 1, 1)) < 0.5)
    return torch.where(mirrored, patches.flip(3), patches)


def _handwritten_digits() -> tuple[Tensor, Tensor]:
    """Images [1797, 1, 28, 28] float32 in [0, 1], and labels [1797] int64."""
    from sklearn.datasets import load_digits

    source = load_digits()
    images = torch.from_numpy(source.images).float().unsqueeze(1) / 16
    images = F.pad(F.interpolate(images, size=(20, 20), mode="bilinear"), (4, 4, 4, 4))
    return images, torch.from_numpy(source.target).long()


def _image_set(images: Tensor, labels: Tensor) -> ImageSet:
    return ImageSet(cast(Sequence[Tensor], images), labels, digest_of(images))
