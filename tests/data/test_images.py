"""Images as a learner is shown them: chosen, relabelled, transformed, and kept in memory where that is possible."""

import pickle

import pytest
import torch
from torch.utils.data import DataLoader

from artsy_ext.data import Images, ImageSet
from artsy_ext.data.images import digest_of


class Counted(list[torch.Tensor]):
    """Images that count how often one is asked for."""

    asked = 0

    def __getitem__(self, index):  # type: ignore[no-untyped-def]
        self.asked += 1
        return super().__getitem__(index)


def halved(image: torch.Tensor) -> torch.Tensor:
    return image / 2


@pytest.fixture
def found() -> ImageSet:
    return ImageSet(Counted(torch.full((1, 2, 2), float(i)) for i in range(5)), torch.tensor([0, 0, 1, 1, 2]), "digest")


def test_of_tensors() -> None:
    pixels, labels = torch.rand(3, 1, 2, 2), torch.tensor([2, 0, 1])
    images = Images.of_tensors(pixels, labels)
    assert len(images) == 3
    assert torch.equal(images.tensors[0], pixels)
    assert torch.equal(images.tensors[1], labels)
    image, label = images[1]
    assert torch.equal(image, pixels[1])
    assert label == 0


def test_some_images_in_an_order_of_their_own(found: ImageSet) -> None:
    images = Images(found, torch.tensor([4, 1, 2]), transform=halved)
    assert images.labels.tolist() == [2, 0, 1]
    assert images.tensors[0][:, 0, 0, 0].tolist() == [2, 0.5, 1]
    assert [float(image[0, 0, 0]) for image, _ in images] == [2, 0.5, 1]  # type: ignore[attr-defined]


def test_labels_of_the_task_come_before_those_of_the_source(found: ImageSet) -> None:
    images = Images(found, torch.tensor([4, 1]), torch.tensor([7, 8]))
    assert [int(images[i][1]) for i in range(2)] == [7, 8]


def test_nothing_is_read_before_it_is_asked_for(found: ImageSet) -> None:
    images = Images(found, torch.arange(5))
    assert found.images.asked == 0  # type: ignore[attr-defined]
    images[3]
    assert found.images.asked == 1  # type: ignore[attr-defined]


def test_held_images_are_read_once(found: ImageSet) -> None:
    images = Images(found, torch.tensor([4, 1, 2]), torch.tensor([0, 1, 2]), halved)
    held = images.hold()
    asked = found.images.asked  # type: ignore[attr-defined]
    assert torch.equal(held.tensors[0], torch.stack([held[i][0] for i in range(3)]))
    assert torch.equal(held.tensors[1], images.labels)
    assert found.images.asked == asked  # type: ignore[attr-defined]
    assert torch.equal(held.tensors[0], images.tensors[0])


def test_tensors_are_held_as_they_are() -> None:
    images = Images.of_tensors(torch.rand(2, 1, 2, 2), torch.tensor([0, 1]))
    assert images.hold() is images
    assert images.tensors[0] is images.tensors[0]


def test_no_image_at_all(found: ImageSet) -> None:
    images = Images(found, torch.empty(0, dtype=torch.int64))
    assert len(images.hold()) == 0
    assert [len(tensor) for tensor in images.tensors] == [0, 0]


def test_batches_from_other_processes(found: ImageSet) -> None:
    images = pickle.loads(pickle.dumps(Images(found, torch.tensor([4, 0]), transform=halved)))
    ((batch, labels),) = DataLoader(images, batch_size=2, num_workers=1)
    assert batch[:, 0, 0, 0].tolist() == [2, 0]
    assert labels.tolist() == [2, 0]


def test_digest_is_that_of_the_content() -> None:
    images = torch.arange(6.0).view(2, 3)
    assert digest_of(images) == digest_of(images.clone()) == digest_of(images.T.contiguous().T)
    changed = images.clone()
    changed[1, 2] += 1
    others = [changed, images.T, images.flatten(), images.double(), images[:1], torch.empty(0)]
    assert len({digest_of(other) for other in (images, *others)}) == 1 + len(others)
