"""A user's own images, in one folder per class: the source `folder:PATH`.

Every file is decoded and hashed once before anything is trained. Later it is read again only when its image is asked
for, and must then still be what it was.
"""

from __future__ import annotations

import hashlib
import io
import os
import warnings
from bisect import bisect_right
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from itertools import accumulate, islice
from pathlib import Path
from typing import Any, BinaryIO, NoReturn

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError

from artsy_ext.data.images import ImageSet, Track
from artsy_ext.data.sources import FOLDER, Source

__all__ = ["ImageFiles", "domains_source", "folder_source"]

# Written into folders by Windows, as others write hidden files.
_NOT_DATA = ("thumbs.db", "desktop.ini")

_THREADS = min(8, os.cpu_count() or 1)
_CHUNK = 2**20


def folder_source(path: Path, track: Track) -> Source:
    """The images under a folder.

    `path` holds a folder per class, or folders `train` and `test` (or `val`, where `test` has no class folders) with a
    folder per class each. Classes and images are in the order of `torchvision.datasets.ImageFolder`, and like there an
    image may lie in a folder inside a class folder. Hidden files and folders are left out, and so is what lies beside
    the class folders; every other file of a class must be an image.

    Args:
        path: the folder.
        track: wraps the loop over the files.

    Returns:
        A source of PIL images: mode "L" where the file is grey, else "RGB"; upright by their EXIF orientation, the
        first of several frames, transparent parts white, 16-bit grey scaled to 8 bits. The digests are those of the
        files and of their paths inside the folder.

    Raises:
        ValueError: there are no class folders, a class is empty or lacks a part, or a file is no image.
        OSError: a file or folder can't be read; FileNotFoundError and NotADirectoryError if `path` is none.
    """
    path = path.expanduser()
    classes = _folders(path)
    tests = [name for name in ("test", "val") if name in classes]
    if "train" in classes and tests:
        test = next((name for name in tests if _folders(path / name)), tests[0])
        parts = [path / "train", path / test]
    elif "train" in classes and _folders(path / "train"):
        raise ValueError(f"data: {path} has class folders in train, so it must have them in test or val, too")
    else:
        parts = [path]
    classes = _common_classes(parts)
    # Every folder is listed before the first file is opened: the cheap errors come first.
    listed = [_listed(part, classes) for part in parts]
    sets = [_checked(part, *files, track) for part, files in zip(parts, listed, strict=True)]
    # Tables and pictures can't show a name that is not text.
    name = FOLDER + os.fsencode(Path(os.path.abspath(path)).name or str(path)).decode(errors="replace")
    return Source(name, tuple(classes), train=sets[0], test=sets[1] if len(sets) == 2 else None)


def domains_source(path: Path, domains: Sequence[str], track: Track) -> Source:
    """The images of the same classes in several domains: each folder `path`/domain as in `folder_source`.

    Args:
        path: the folder of all of them.
        domains: names of folders in it.
        track: wraps the loops over the files.

    Raises:
        ValueError, OSError: as in `folder_source`; ValueError also if domains come twice or differ in their classes, or
            if test images are set apart in some of them alone.
    """
    if len({*domains}) < len(domains):
        raise ValueError(f"domains: expected each once, got {', '.join(domains)}")
    sources = [folder_source(path / domain, track) for domain in domains]
    first = sources[0]
    for domain, source in zip(domains, sources, strict=True):
        if source.class_names != first.class_names:
            lacking = sorted({*source.class_names} ^ {*first.class_names})[0]
            raise ValueError(
                f"domains: {domain} must have the classes of {domains[0]}, but only one of them has {lacking!r}"
            )
        if (source.test is None) != (first.test is None):
            raise ValueError(f"domains: {domain} and {domains[0]} must both have train and test, or neither")

    def joined(sets: Sequence[ImageSet | None]) -> ImageSet | None:
        found = [images for images in sets if images is not None]
        if not found:
            return None
        labels = [images.labels + domain * len(first.class_names) for domain, images in enumerate(found)]
        digest = hashlib.sha256("\n".join(images.digest for images in found).encode()).hexdigest()
        return ImageSet(_Joined([images.images for images in found]), torch.cat(labels), digest)

    train = joined([source.train for source in sources])
    assert train is not None
    name = FOLDER + Path(os.path.abspath(path.expanduser())).name
    names = tuple(f"{label} {domain}" for domain in domains for label in first.class_names)
    test = joined([source.test for source in sources])
    return Source(name, names, train, test, domains=tuple(domains), increment=len(first.class_names))


class _Joined(Sequence[Any]):
    """Several sequences, one after the other."""

    def __init__(self, parts: Sequence[Sequence[Any]]) -> None:
        self.parts = parts
        self.ends = list(accumulate(map(len, parts)))

    def __len__(self) -> int:
        return self.ends[-1]

    def __getitem__(self, index: Any) -> Any:
        part = bisect_right(self.ends, index)
        return self.parts[part][index - (self.ends[part - 1] if part else 0)]


class _Files(Sequence[Any]):
    """PIL images by index, read from their files each time they are asked for.

    Args:
        root: the folder of all files.
        names: their paths in it.
        digests: SHA-256 of what they held when they were checked.
    """

    def __init__(self, root: Path, names: list[str], digests: list[bytes]) -> None:
        self.root, self.names, self.digests = os.path.abspath(root), names, digests

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index: Any) -> Any:
        path = os.path.join(self.root, self.names[index])
        try:
            content = Path(path).read_bytes()
        except OSError as error:
            raise OSError(f"data: {path} can't be read any more: {error.strerror}") from None
        if hashlib.sha256(content).digest() != self.digests[index]:
            raise OSError(f"data: {path} has changed since it was checked")
        return _decoded(io.BytesIO(content))


class ImageFiles(Sequence[Any]):
    """PIL images of files without a class, as those of `folder_source`; read when they are asked for.

    Args:
        paths: files, and folders for everything visible in them.

    Attributes:
        names: the paths of the files, those of a folder sorted by theirs inside it.

    Raises:
        ValueError: there is no file at all; and, when its image is asked for, a file is no image.
        OSError: a file or folder is not there or can't be read.
    """

    def __init__(self, paths: Sequence[Path]) -> None:
        self.names: list[str] = []
        for path in paths:
            if path.is_dir():
                self.names += [os.path.normpath(path / name) for name in _files(path, "")]
            elif path.exists():
                self.names.append(str(path))
            else:
                raise FileNotFoundError(f"images: there is no file {path}")
        if not self.names:
            raise ValueError(f"images: expected at least one, got none in {', '.join(map(str, paths))}")

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index: Any) -> Any:
        path = self.names[index]
        with _opened(path, "images") as file:
            return _image_in(file, path, "images")


def _unreadable(error: OSError) -> NoReturn:
    raise type(error)(f"data: {os.fspath(error.filename)} can't be read: {error.strerror}") from None


def _visible(name: str) -> bool:
    return not name.startswith(".") and name.lower() not in _NOT_DATA


def _folders(folder: Path) -> list[str]:
    """Names of the folders in a folder, sorted."""
    try:
        with os.scandir(folder) as entries:
            return sorted(entry.name for entry in entries if _visible(entry.name) and entry.is_dir())
    except OSError as error:
        _unreadable(error)


def _common_classes(parts: Sequence[Path]) -> list[str]:
    """The class folders of every part."""
    found = [_folders(part) for part in parts]
    for part, classes in zip(parts, found, strict=True):
        if not classes:
            raise ValueError(f"data: {part} has no class folders; expected a folder of images for each class")
    for part, classes in zip(parts, found, strict=True):
        for other, others in zip(parts, found, strict=True):
            missing = [name for name in others if name not in classes]
            if missing:
                raise ValueError(f"data: {part} has no class folder {missing[0]!r}, but {other} has")
    return found[0]


def _listed(root: Path, classes: Sequence[str]) -> tuple[list[str], list[int]]:
    """Paths inside `root` of all images, class by class, and their labels."""
    names: list[str] = []
    labels: list[int] = []
    for label, name in enumerate(classes):
        files = _files(root, name)
        if not files:
            raise ValueError(f"data: {root / name} has no images; expected at least one for each class")
        names += files
        labels += [label] * len(files)
    return names, labels


def _files(root: Path, name: str) -> list[str]:
    """Paths inside `root` of all files below a folder in it, folder by folder.

    torchvision's listing is not used because it passes over what it can't read: a class would lose images in silence.
    """
    found = []
    seen = set()
    for folder, inner, files in os.walk(root / name, onerror=_unreadable, followlinks=True):
        here = os.path.realpath(folder)
        if here in seen:  # a link that leads back
            inner.clear()
            continue
        seen.add(here)
        inner[:] = sorted(filter(_visible, inner))
        found.append((folder, sorted(filter(_visible, files))))
    paths: list[str] = []
    for folder, files in sorted(found):
        inside = os.path.relpath(folder, root)
        paths += [os.path.join(inside, file) for file in files]
    return paths


def _checked(root: Path, names: list[str], labels: list[int], track: Track) -> ImageSet:
    """The images of these files, after a look at each."""
    digest = hashlib.sha256()
    digests: list[bytes] = []
    paths = (os.path.join(root, name) for name in names)
    with warnings.catch_warnings(), ThreadPoolExecutor(_THREADS) as pool:
        # Set here, not in the threads, which share the filters. What decodes is good, whatever PIL says about its
        # metadata; but no picture has so many pixels by intention.
        warnings.simplefilter("ignore")
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        # Only so many ahead: a future for each of a million files would need a gigabyte.
        ahead = deque(pool.submit(_digest_of_image, path) for path in islice(paths, 4 * _THREADS))
        for name in track(names, "checking images"):
            digests.append(ahead.popleft().result())
            ahead.extend(pool.submit(_digest_of_image, path) for path in islice(paths, 1))
            digest.update(os.fsencode(name.replace(os.sep, "/")) + b"\0" + digests[-1])
    return ImageSet(_Files(root, names, digests), torch.tensor(labels), digest.hexdigest())


def _digest_of_image(path: str) -> bytes:
    """SHA-256 of a file, which must be an image that can be decoded."""
    with _opened(path, "data") as file:
        _image_in(file, path, "data")
        file.seek(0)
        digest = hashlib.sha256()
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
        return digest.digest()


@contextmanager
def _opened(path: str, argument: str) -> Iterator[BinaryIO]:
    if os.path.exists(path) and not os.path.isfile(path):  # opening a pipe would wait for a writer
        raise ValueError(f"{argument}: {path} is not an image that can be read: not a file")
    try:
        with open(path, "rb") as file:
            yield file
    except OSError as error:
        raise type(error)(f"{argument}: {path} can't be read: {error.strerror}") from None


def _image_in(file: BinaryIO, path: str, argument: str) -> Image.Image:
    try:
        return _decoded(file)
    # On damaged files PIL's decoders raise whatever they stumble over.
    except Exception as error:
        reason = "of no format that PIL knows" if isinstance(error, UnidentifiedImageError) else str(error)
        reason = " ".join(reason.split()) or type(error).__name__
        raise ValueError(f"{argument}: {path} is not an image that can be read: {reason}") from None


def _decoded(file: BinaryIO) -> Image.Image:
    """The image in a file, as `folder_source` returns it."""
    with Image.open(file) as image:
        image.load()
        with suppress(Exception):  # broken EXIF data say nothing about the picture
            ImageOps.exif_transpose(image, in_place=True)
        # 16-bit grey is I;16 in Pillow, but that of PNM, and in older versions of PNG, is I.
        if image.mode.startswith("I;16") or (image.mode == "I" and image.format in ("PNG", "PPM")):
            pixels = np.asarray(image).astype(np.int64)
            return Image.fromarray(((pixels + 128) // 257).astype(np.uint8))
        if image.mode in ("I", "F"):
            raise ValueError("32 bits per pixel have no known range; expected 8 or 16")
        mode = "L" if image.mode in ("1", "L", "LA", "La") else "RGB"
        if image.mode.endswith(("A", "a")) or "transparency" in image.info:
            picture = image.convert("RGBA")
            return Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture).convert(mode)
        return image.convert(mode)
