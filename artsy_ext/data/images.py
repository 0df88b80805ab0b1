"""Images with labels: `ImageSet` as a source has them, `Images` as a learner is shown a part of them."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor
from torch.utils.data import Dataset

__all__ = ["ImageSet", "Images", "digest_of"]

Transform = Callable[[Any], Tensor]

# Wraps a loop for a progress bar: the items, and what stands before the bar.
Track = Callable[[Iterable[Any], str], Iterable[Any]]


def untracked(items: Iterable[Any], description: str) -> Iterable[Any]:
    """A `Track` without a bar."""
    return items


@dataclass(frozen=True, eq=False)
class ImageSet:
    """Images as they were found, before any transform; nothing is read before it is asked for.

    Attributes:
        images: PIL images, or tensors [channels, height, width] float32 in [0, 1].
        labels: [n] int64, indexes of the source's class names.
        digest: hexadecimal SHA-256 of the images' content. Sets with the same digest hold the same images.
    """

    images: Sequence[Any]
    labels: Tensor
    digest: str

    def __len__(self) -> int:
        return len(self.images)


def digest_of(*tensors: Tensor) -> str:
    """SHA-256 of the content of tensors: dtypes, shapes, values."""
    digest = hashlib.sha256()
    for tensor in tensors:
        digest.update(f"{tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


class Images(Dataset[tuple[Tensor, Tensor]]):
    """Some images of an `ImageSet`, transformed: (image [channels, height, width] float32, label int64) pairs.

    Args:
        source: where they come from.
        indices: [n] int64, which of them, in this order.
        labels: [n] int64, what they are called here; by default as in the source.
        transform: from an image of the source to a tensor, the same at every call; None for the image as it is.

    Attributes:
        source, indices, labels, transform: as given.
    """

    def __init__(
        self, source: ImageSet, indices: Tensor, labels: Tensor | None = None, transform: Transform | None = None
    ) -> None:
        self.source, self.indices, self.transform = source, indices, transform
        self.labels = source.labels[indices] if labels is None else labels
        self._held: Tensor | None = None

    @classmethod
    def of_tensors(cls, images: Tensor, labels: Tensor) -> Images:
        """All of these: images [n, channels, height, width] that need no transform, labels [n] int64."""
        found = cls(ImageSet(cast(Sequence[Tensor], images), labels, digest_of(images)), torch.arange(len(labels)))
        found._held = images
        return found

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        image = self._transformed(int(self.indices[index])) if self._held is None else self._held[index]
        return image, self.labels[index]

    @property
    def tensors(self) -> tuple[Tensor, Tensor]:
        """Images [n, channels, height, width] and labels [n], all at once, as those of a `TensorDataset`."""
        if self._held is not None:
            return self._held, self.labels
        images = [self._transformed(i) for i in self.indices.tolist()]
        return (torch.stack(images) if images else torch.empty(0)), self.labels

    def hold(self) -> Images:
        """The same, its images read and transformed once and held in memory."""
        if self._held is not None:
            return self
        held = Images(self.source, self.indices, self.labels, self.transform)
        held._held = self.tensors[0]
        return held

    def _transformed(self, index: int) -> Tensor:
        image = self.source.images[index]
        return cast(Tensor, image) if self.transform is None else self.transform(image)
