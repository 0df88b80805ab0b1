"""What a finished run's classifier says about images that nobody has labelled: the work behind `artsy predict`."""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from artsy_ext.data import Images, ImageSet
from artsy_ext.data.folder import ImageFiles
from artsy_ext.learner.classifier import ArtsyClassifier
from artsy_ext.learner.progress import Progress
from artsy_ext.learner.run import open_classifier, threads
from artsy_ext.learner.training import images_per_batch

__all__ = ["Answer", "ask", "predict", "to_csv", "to_list"]


class Answer(NamedTuple):
    """What the classifier says about an image."""

    image: str
    """Its path."""
    label: str
    """The name of the likeliest class."""
    probability: float
    """Of that class."""
    functional: list[int]
    """The sub-networks that ran, by the number of their task, counted from 1."""


def predict(
    folder: Path, paths: Sequence[Path], *, backbone: str | None = None, progress: Progress | None = None
) -> list[Answer]:
    """Ask the classifier in a run folder about image files.

    Args:
        folder: as `Run.train` wrote it.
        paths: image files, and folders of them.
        backbone: the run's, with a weight file that has moved.
        progress: where a bar is shown.

    Returns:
        An answer for every file, in the order of the paths; those in a folder in the order of their own.

    Raises:
        ValueError: the run's files are damaged, of a newer version or of another backbone, or a file is no image.
        OSError: the folder holds no run with a checkpoint, or a file is not there or can't be read.
    """
    files = ImageFiles(paths)
    config, classifier, opened = open_classifier(folder, backbone)
    with threads(config.threads):
        return ask(classifier, files, opened.transform, progress or Progress.silent())


def ask(
    classifier: ArtsyClassifier, files: ImageFiles, transform: Callable[[Any], Tensor], progress: Progress
) -> list[Answer]:
    """Ask a classifier that names its classes about every file.

    transform: from an image to the input of the classifier's backbone.
    """
    names = classifier.class_names_
    assert names is not None
    # Features are not kept of these images, so they need no digest; nor have they labels.
    unlabelled = ImageSet(files, torch.zeros(len(files), dtype=torch.int64), digest="")
    images = Images(unlabelled, torch.arange(len(files)), transform=transform)
    # With a generator of its own the loader does not draw from PyTorch's random state.
    loader = DataLoader(images, images_per_batch(classifier.vit), generator=torch.Generator())
    answers: list[Answer] = []
    for batch, _ in progress.track(loader, "images"):
        probabilities, mask = classifier.predict_with_mask(batch)
        highest, label = probabilities.max(1)
        for p, c, functional in zip(highest.tolist(), label.tolist(), mask.cpu(), strict=True):
            # Tables can't show a name that is not text.
            name = os.fsencode(files.names[len(answers)]).decode(errors="replace")
            answers.append(Answer(name, names[c], p, (functional.nonzero().flatten() + 1).tolist()))
    return answers


def to_list(answers: Iterable[Answer]) -> list[dict[str, Any]]:
    """The same for JSON: `image`, `class`, `probability` and `functional`."""
    return [
        {"image": a.image, "class": a.label, "probability": round(a.probability, 6), "functional": a.functional}
        for a in answers
    ]


def to_csv(answers: Iterable[Answer]) -> str:
    """A table with a heading: image, class, probability, functional (the numbers with spaces between them)."""
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow(["image", "class", "probability", "functional"])
    table.writerows([a.image, a.label, f"{a.probability:.6f}", " ".join(map(str, a.functional))] for a in answers)
    return text.getvalue()
