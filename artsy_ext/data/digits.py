"""scikit-learn's handwritten digits as 28x28 images: the data under the `digits` and `rotated` streams.

This module only makes images; `artsy_ext.data` cuts them into tasks.
"""

from __future__ import annotations

import torch
from torch.nn import functional as F
from torch.utils.data import TensorDataset

TEST_FRACTION = 0.3


def handwritten_digits(seed: int) -> tuple[TensorDataset, TensorDataset]:
    """The 1797 digits of `sklearn.datasets.load_digits`, split 70/30 and stratified by digit.

    The 8x8 images are enlarged to 20x20 (bilinear), padded to 28x28 and normalised by (x - 0.3) / 0.3, as the
    demo backbone expects.

    Args:
        seed: decides the split; 0 <= seed < 2**32.

    Returns:
        (train, test), each with images [n, 1, 28, 28] float32 and labels [n] int64, the digit.

    Raises:
        ValueError: if the seed is out of range.
    """
    if not 0 <= seed < 2**32:
        raise ValueError(f"handwritten_digits: seed must be in [0, 2**32), got {seed}")
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    source = load_digits()
    images = torch.from_numpy(source.images).float().unsqueeze(1) / 16
    images = F.pad(F.interpolate(images, size=(20, 20), mode="bilinear"), (4, 4, 4, 4))
    images = (images - 0.3) / 0.3
    labels = torch.from_numpy(source.target).long()

    train, test = train_test_split(
        range(len(labels)), test_size=TEST_FRACTION, random_state=seed, stratify=source.target
    )
    return TensorDataset(images[train], labels[train]), TensorDataset(images[test], labels[test])


def with_quarter_turns(digits: TensorDataset) -> TensorDataset:
    """The digits, then every one of them turned by 90 degrees counter-clockwise as class digit + 10."""
    images, labels = digits.tensors
    return TensorDataset(torch.cat([images, images.rot90(1, (2, 3))]), torch.cat([labels, labels + 10]))
