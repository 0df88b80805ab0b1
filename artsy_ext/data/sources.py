"""Sources of labelled images, by the names that commands use, and how a source becomes a stream of tasks."""

from __future__ import annotations

import difflib
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from artsy_ext.data.images import Images, ImageSet, Track, Transform, untracked
from artsy_ext.data.streams import Stream, class_incremental, task_sizes

__all__ = ["BUILT_IN", "FOLDER", "SOURCES", "Source", "check_source", "load_source"]

TEST_FRACTION = 0.3


@dataclass(frozen=True, eq=False)
class Source:
    """Labelled images under a name, not yet cut into tasks.

    Attributes:
        name: what it is called in commands and tables.
        class_names: [C] in the order of the labels.
        train: the images to learn from; where there is no `test`, all images.
        test: the images to be asked about; None where they are split off `train` by seed.
        paired: `test` shows the objects of `train`, one for one, in another way: they are split by seed, too.
        renderings: where they are split by seed: the images are this many renderings of the same objects, all objects
            in one rendering after the other; those of an object stay together.
        domains: names of the domains, where the same classes come in each: all classes of one domain after the other,
            every domain's in the same order. An order by seed shuffles the domains, and the classes of each.
        increment: classes per task where the user says nothing; None if there is no usual number.
    """

    name: str
    class_names: tuple[str, ...]
    train: ImageSet
    test: ImageSet | None = None
    paired: bool = False
    renderings: int = 1
    domains: tuple[str, ...] = ()
    increment: int | None = None

    def split(self, seed: int) -> tuple[Tensor, Tensor]:
        """Indices [n] int64 of the training and of the test images, each in its own set.

        Where the test images are not given, 30 % of every class and at least one image, chosen by the seed.

        Raises:
            ValueError: seed is out of [0, 2**32), or a class has fewer than two images to split.
        """
        _check_seed(seed)
        if self.test is not None and not self.paired:
            return torch.arange(len(self.train)), torch.arange(len(self.test))
        from sklearn.model_selection import train_test_split

        counts = self.train.labels.bincount(minlength=len(self.class_names)).tolist()
        for name, count in zip(self.class_names, counts, strict=True):
            if count < 2:
                raise ValueError(
                    f"data: {self.name}: class {name!r} must have at least 2 images, one of them to test, got {count}"
                )
        objects = len(self.train) // self.renderings
        labels = self.train.labels[:objects]
        size = max(math.ceil(TEST_FRACTION * objects), len(labels.unique()))
        parts = train_test_split(range(objects), test_size=size, random_state=seed, stratify=labels.numpy())
        train, test = (torch.tensor(part) for part in parts)
        # Of classes with two or three images scikit-learn may take none.
        for label in sorted({*labels.tolist()} - {*labels[test].tolist()}):
            moved = train[labels[train] == label][0]
            train, test = train[train != moved], torch.cat([test, moved[None]])
        first = objects * torch.arange(self.renderings)[:, None]
        train, test = ((first + part).flatten() for part in (train, test))
        return train, test

    def stream(
        self,
        seed: int = 0,
        transform: Transform | None = None,
        *,
        tasks: int | None = None,
        base: int = 0,
        increment: int | None = None,
        sizes: Sequence[int] | None = None,
        class_order: Sequence[str] | None = None,
        by_label: bool = False,
    ) -> Stream:
        """The source as a stream of tasks, each of which brings classes that no task before it had.

        Args:
            seed: decides the order of the classes, and the split where test images are not given; 0 <= seed < 2**32.
            transform: from an image as it was found to what the backbone takes: its `transform`.
            tasks, base, increment: as in `task_sizes`; by default the source's own increment.
            sizes: how many classes each task brings, instead of these.
            by_label: the same class of another domain is the same answer (domain-incremental); else classes of
                different domains are told apart.
            class_order: all class names, in the order in which they are to be learned; None for one by seed.

        Raises:
            ValueError: an argument is out of its range, or the class names are not the source's.
        """
        _check_seed(seed)
        per_task = self.sizes(tasks=tasks, base=base, increment=increment, sizes=sizes)
        order = self.order(seed, class_order)
        train, test = self.split(seed)
        stream = class_incremental(
            self.name,
            Images(self.train, train, transform=transform),
            Images(self.test or self.train, test, transform=transform),
            class_names=self.class_names,
            class_order=order,
            sizes=per_task,
        )
        return replace(stream, answers=self.answers(order)) if by_label else stream

    def answers(self, order: Sequence[int]) -> tuple[int, ...]:
        """[C] for the classes in this order: the first class in it that has the same label, in whatever domain.

        Raises:
            ValueError: the source has no domains.
        """
        if not self.domains:
            raise ValueError(f"scenario: {self.name} has no domains, so no class comes again")
        count = len(self.class_names) // len(self.domains)
        labels = [c % count for c in order]
        return tuple(labels.index(label) for label in labels)

    def sizes(
        self,
        *,
        tasks: int | None = None,
        base: int = 0,
        increment: int | None = None,
        sizes: Sequence[int] | None = None,
    ) -> tuple[int, ...]:
        """How many classes each task brings: as given, or `task_sizes`, by default with the source's own increment."""
        if sizes is not None:
            if tasks is not None or increment is not None or base:
                raise ValueError(
                    "sizes: expected neither tasks, base nor increment with it, "
                    f"got tasks={tasks}, base={base}, increment={increment}"
                )
            if sum(sizes) != len(self.class_names) or min(sizes, default=0) < 1:
                raise ValueError(
                    f"sizes: expected numbers of at least 1 that add up to {len(self.class_names)}, the classes of "
                    f"{self.name}, got {','.join(map(str, sizes))}"
                )
            return tuple(sizes)
        if tasks is None and increment is None:
            increment = self.increment
            if increment is None:
                raise ValueError(f"tasks: {self.name} needs a number of tasks, or an increment")
        return task_sizes(len(self.class_names), tasks=tasks, base=base, increment=increment)

    def order(self, seed: int, names: Sequence[str] | None = None) -> list[int]:
        """The classes' indexes in the order of `names`, or in one by seed."""
        if names is None:
            # RandomState's streams are frozen by NumPy; torch.randperm and default_rng may change between versions.
            random = np.random.RandomState(seed)
            classes = np.arange(len(self.class_names)).reshape(max(len(self.domains), 1), -1)
            if self.domains:
                classes = classes[random.permutation(len(classes))]
            return [c for domain in classes.tolist() for c in random.permutation(domain).tolist()]
        unknown = [name for name in names if name not in self.class_names]
        missing = [name for name in self.class_names if name not in names]
        if unknown or missing or len(names) != len(self.class_names):
            trouble = (
                f"unknown class {unknown[0]!r}"
                if unknown
                else f"no class {missing[0]!r}"
                if missing
                else "a class more than once"
            )
            raise ValueError(f"class_order: expected each class of {self.name} once, got {trouble}")
        return [self.class_names.index(name) for name in names]


class _Named(NamedTuple):
    summary: str
    load: Callable[[Path, Track], Source]


def _digits(data_dir: Path, track: Track) -> Source:
    from artsy_ext.data.digits import digits

    return digits()


def _rotated(data_dir: Path, track: Track) -> Source:
    from artsy_ext.data.digits import rotated

    return rotated()


def _domains(data_dir: Path, track: Track) -> Source:
    from artsy_ext.data.digits import domains

    return domains()


def _long(data_dir: Path, track: Track) -> Source:
    from artsy_ext.data.digits import long

    return long()


def _torchvision(name: str) -> Callable[[Path, Track], Source]:
    def load(data_dir: Path, track: Track) -> Source:
        from artsy_ext.data.vision import torchvision_source

        return torchvision_source(name, data_dir, track)

    return load


SOURCES: dict[str, _Named] = {
    "digits": _Named("scikit-learn's handwritten digits, 10 classes; built in", _digits),
    "rotated": _Named("the digits, and each turned by 90 degrees as 10 more classes; built in", _rotated),
    "domains": _Named("the digits in four domains, 10 classes each; built in", _domains),
    "long": _Named("the digits in 20 domains, 100 tasks of 2 classes or --tasks as you like; built in", _long),
    "cifar10": _Named("photographs of 10 kinds of things", _torchvision("cifar10")),
    "cifar100": _Named("photographs of 100 kinds of things", _torchvision("cifar100")),
    "mnist": _Named("60,000 + 10,000 handwritten digits", _torchvision("mnist")),
    "fashionmnist": _Named("60,000 + 10,000 pictures of clothes, 10 classes", _torchvision("fashionmnist")),
}

FOLDER = "folder:"
"""What stands before the path of a user's own images."""

BUILT_IN = ("digits", "rotated", "domains", "long")
"""Sources that need no files."""


def check_source(name: str) -> None:
    """Raises ValueError, with the nearest known ones, if there is no source of this name."""
    if name in SOURCES or (name.startswith(FOLDER) and name != FOLDER):
        return
    nearest = difflib.get_close_matches(name, SOURCES)
    suggestion = f"did you mean {' or '.join(nearest)}? " if nearest else ""
    raise ValueError(f"data: {name!r} is not known; {suggestion}(known: {', '.join(SOURCES)}, {FOLDER}PATH)")


def load_source(
    name: str, *, data_dir: str | Path = "data", domains: Sequence[str] = (), track: Track = untracked
) -> Source:
    """The source of a name, every image of it checked.

    Args:
        name: a key of `SOURCES`, or "folder:PATH" for class folders under PATH, or for PATH/train and PATH/test (or
            val) with class folders.
        data_dir: where torchvision's data sets are, and where they are downloaded to if they are not there.
        domains: with "folder:PATH": the folders in PATH that are domains. Each holds what PATH would hold without them,
            and all have the same classes.
        track: wraps the loops over files, to be checked or downloaded, for a progress bar.

    Raises:
        ValueError: the name is not known, a class has no image, a file is no image or damaged, or domains differ.
        OSError: the data are not there and can't be downloaded, or can't be read.
    """
    check_source(name)
    if name.startswith(FOLDER):
        from artsy_ext.data.folder import domains_source, folder_source

        path = Path(name.removeprefix(FOLDER))
        return domains_source(path, domains, track) if domains else folder_source(path, track)
    if domains:
        raise ValueError(f"domains: expected with folder:PATH alone, got {', '.join(domains)} with {name}")
    return SOURCES[name].load(Path(data_dir), track)


def _check_seed(seed: int) -> None:
    if not 0 <= seed < 2**32:
        raise ValueError(f"seed must be in [0, 2**32), got {seed}")
