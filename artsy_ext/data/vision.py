"""torchvision's data sets, from their published files: the sources `cifar10`, `cifar100`, `mnist` and `fashionmnist`.

The files are looked for where `torchvision.datasets` looks for them. What is missing is downloaded, checked, and only
then moved there; archives are unpacked elsewhere, so that a folder of data may be read-only.
"""

from __future__ import annotations

import http.client
import os
import socket
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.hub
import torchvision.datasets
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torchvision.datasets.mnist import read_image_file, read_label_file
from torchvision.datasets.utils import check_integrity, extract_archive

from artsy_ext.data.images import ImageSet, Track, digest_of, untracked
from artsy_ext.data.sources import Source

__all__ = ["torchvision_source"]

_TIMEOUT = 20.0  # seconds without an answer


def torchvision_source(name: str, data_dir: Path, track: Track = untracked) -> Source:
    """A data set of torchvision, with its own training and test images.

    Args:
        name: "cifar10", "cifar100", "mnist" or "fashionmnist".
        data_dir: torchvision's `root`. Where files are missing they are downloaded, and the folder is made.
        track: wraps the loop over the files to download.

    Returns:
        A source of PIL images: mode "L", 28x28, for the two kinds of MNIST; "RGB", 32x32, for CIFAR.

    Raises:
        OSError: files are missing and can't be downloaded; the message says which files belong where.
        ValueError: a file is damaged.
    """
    data_dir = data_dir.expanduser()
    read, dataset, increment = _DATASETS[name]
    try:
        train, test, classes = read(name, dataset, data_dir, track)
    except OSError as error:
        if error.strerror is None:
            raise
        raise type(error)(f"data: {name}: {error.filename or data_dir} can't be read: {error.strerror}") from None
    return Source(name, tuple(classes), _image_set(*train), _image_set(*test), increment=increment)


class _Arrays(Sequence[Any]):
    """PIL images by index, from pixels [n, height, width] or [n, height, width, 3] uint8."""

    def __init__(self, pixels: NDArray[np.uint8]) -> None:
        self.pixels = pixels

    def __len__(self) -> int:
        return len(self.pixels)

    def __getitem__(self, index: Any) -> Any:
        return Image.fromarray(self.pixels[index])


class _Remote(NamedTuple):
    """A file as it is published: its path under the folder of data, its MD5, and where to get it."""

    path: Path
    md5: str
    urls: list[str]


_Part = tuple[NDArray[np.uint8], Tensor]


def _image_set(pixels: NDArray[np.uint8], labels: Tensor) -> ImageSet:
    return ImageSet(_Arrays(pixels), labels, digest_of(torch.from_numpy(pixels)))


def _mnist(name: str, dataset: Any, data_dir: Path, track: Track) -> tuple[_Part, _Part, Sequence[str]]:
    folder = data_dir / dataset.__name__ / "raw"
    files = [
        _Remote(folder / file, md5, [mirror + file for mirror in dataset.mirrors]) for file, md5 in dataset.resources
    ]
    missing = [file for file in files if not file.path.exists() and not _plain(file.path).exists()]
    _download(name, data_dir, missing, track)
    train_images, train_labels, test_images, test_labels = (file.path for file in files)
    parts = []
    for images, labels in ((train_images, train_labels), (test_images, test_labels)):
        pixels, y = _read_idx(images, read_image_file), _read_idx(labels, read_label_file)
        if len(pixels) != len(y) or int(y.max()) >= len(dataset.classes):
            raise ValueError(
                f"data: {labels} does not fit its images: expected {len(pixels)} labels below "
                f"{len(dataset.classes)}, got {len(y)} up to {int(y.max())}"
            )
        parts.append((pixels.numpy(), y))
    return parts[0], parts[1], dataset.classes


def _plain(path: Path) -> Path:
    """The path of a file without its .gz."""
    return path.with_suffix("")


def _read_idx(path: Path, read: Callable[[str], Tensor]) -> Tensor:
    """What is in an archive, or in the same file unpacked.

    The archive comes first, because it has a checksum. It need not be torchvision's to the bit: it may have been packed
    again, as those of Debian's packages are.
    """
    path = path if path.exists() else _plain(path)
    with tempfile.TemporaryDirectory() as scratch, _damaged(path):
        content = read(extract_archive(str(path), scratch) if path.suffix == ".gz" else str(path))
        if not len(content):
            raise ValueError("it is empty")
    return content


@contextmanager
def _damaged(path: Path) -> Iterator[None]:
    """Whatever a reader stumbles over in a file is one error that names the file."""
    try:
        yield
    except Exception as error:
        if isinstance(error, OSError) and error.errno is not None:  # it can't be read at all, or the disk is full
            raise
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ValueError(f"data: {path} is damaged: {reason}; remove it to have it downloaded again") from None


def _cifar(name: str, dataset: Any, data_dir: Path, track: Track) -> tuple[_Part, _Part, Sequence[str]]:
    folder = data_dir / dataset.base_folder
    archive = _Remote(data_dir / dataset.filename, dataset.tgz_md5, [dataset.url])
    files = [*dataset.train_list, *dataset.test_list, (dataset.meta["filename"], dataset.meta["md5"])]
    wrong = [file for file, md5 in files if not check_integrity(str(folder / file), md5)]
    with tempfile.TemporaryDirectory() as scratch:
        root = str(data_dir)
        if wrong:
            if folder.exists() and not archive.path.exists():
                raise ValueError(
                    f"data: {folder / wrong[0]} is missing or damaged; remove {folder} to have it downloaded again"
                )
            _download(name, data_dir, [] if archive.path.exists() else [archive], track)
            with _damaged(archive.path):
                if not check_integrity(str(archive.path), archive.md5):
                    raise ValueError("its checksum is wrong")
                extract_archive(str(archive.path), scratch)
            root = scratch
        train, test = (dataset(root, train=part) for part in (True, False))
    # torchvision's array is a view of channels first.
    parts = [(np.ascontiguousarray(part.data), torch.tensor(part.targets)) for part in (train, test)]
    return parts[0], parts[1], train.classes


# By name: what reads it, torchvision's class, and the usual number of classes per task.
_DATASETS: dict[str, tuple[Callable[..., tuple[_Part, _Part, Sequence[str]]], Any, int]] = {
    "cifar10": (_cifar, torchvision.datasets.CIFAR10, 2),
    "cifar100": (_cifar, torchvision.datasets.CIFAR100, 10),
    "mnist": (_mnist, torchvision.datasets.MNIST, 2),
    "fashionmnist": (_mnist, torchvision.datasets.FashionMNIST, 2),
}


def _download(name: str, data_dir: Path, files: Sequence[_Remote], track: Track) -> None:
    """Get files and put them where they belong, all or none.

    Raises:
        OSError: that failed.
    """
    if not files:
        return
    existing = next(parent for parent in (data_dir.absolute(), *data_dir.absolute().parents) if parent.exists())
    if not existing.is_dir():
        raise NotADirectoryError(f"data_dir: {existing} is a file; expected a folder")
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(_TIMEOUT)
    try:
        # Beside the folder, not in the system's own for such files: a rename within a file system is all or nothing.
        with tempfile.TemporaryDirectory(prefix=".artsy-", dir=existing) as staging:
            for file, _ in zip(files, track([str(file.path) for file in files], f"downloading {name}"), strict=True):
                _fetch(file, Path(staging))
            for file in files:
                file.path.parent.mkdir(parents=True, exist_ok=True)
                os.replace(Path(staging) / file.path.name, file.path)
    except (OSError, RuntimeError, http.client.HTTPException) as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        names = [file.path.name for file in files]
        listed = " and ".join(filter(None, [", ".join(names[:-1]), names[-1]]))
        raise OSError(
            f"data: {name} is not all in {data_dir} and can't be downloaded ({reason}); put {listed} into "
            f"{files[0].path.parent}, or name another folder with --data-dir"
        ) from None
    finally:
        socket.setdefaulttimeout(before)


def _fetch(file: _Remote, folder: Path) -> None:
    """Download a file from the first of its addresses that has it.

    Raises:
        OSError, HTTPException: the last of them does not.
    """
    for url in file.urls:
        try:
            # torchvision's own writes a progress bar wherever stderr goes.
            torch.hub.download_url_to_file(url, str(folder / file.path.name), progress=False)
            if not check_integrity(str(folder / file.path.name), file.md5):
                raise OSError(f"what came from {url} has a wrong checksum")
            return
        except (OSError, http.client.HTTPException):
            if url == file.urls[-1]:
                raise
