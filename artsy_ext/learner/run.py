"""Runs: from a `RunConfig` to a run folder, and from the folder back to what was learned.

`artsy train` and `artsy eval` are thin covers of `Run` and `FinishedRun`. Whatever can be wrong with a configuration
or a folder is found when one of these is made, before anything is trained.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from artsy_ext.data import BUILT_IN, FOLDER, Images, Source, Stream, Task, check_source, load_source
from artsy_ext.learner.backbones import Backbone, check_backbone, open_backbone
from artsy_ext.learner.classifier import ArtsyClassifier
from artsy_ext.learner.config import RunConfig, read_toml
from artsy_ext.learner.experiment import check_methods, evaluate, run_experiment
from artsy_ext.learner.features import Features
from artsy_ext.learner.methods import METHODS
from artsy_ext.learner.progress import Progress
from artsy_ext.learner.report import CHECKPOINT, CONFIG, DPI, check_output, read_results, write_run
from artsy_ext.learner.silence import silence_figure, spikes_figure, weights_figure
from artsy_ext.nn import RoutedViT

__all__ = ["FinishedRun", "Run", "Setup", "check_place", "open_classifier", "threads"]


@dataclass(frozen=True)
class Setup:
    """What a configuration names, found and opened, before anything is trained.

    Attributes:
        config: with absolute paths and the number of threads.
        source: the images.
        backbone: E0.
        class_order: the names from the file that the configuration names; None for an order by seed.
    """

    config: RunConfig
    source: Source
    backbone: Backbone
    class_order: list[str] | None

    @classmethod
    def open(cls, config: RunConfig, progress: Progress) -> Setup:
        """Raises ValueError or OSError where something is not known, not possible, not readable or not there."""
        check_source(config.data)
        check_backbone(config.backbone)
        class_order = None if config.class_order is None else _read_class_order(Path(config.class_order))
        config = replace(_with_absolute_paths(config), threads=config.threads or _default_threads(config.backbone))
        source = _load(config, progress)
        _stream(source, 0, None, config, class_order)  # fails where classes and tasks do not fit
        return cls(config, source, open_backbone(config.backbone), class_order)

    def stream(self, seed: int) -> Stream:
        """The tasks of a seed, images as the backbone takes them."""
        return _stream(self.source, seed, self.backbone, self.config, self.class_order)

    def facts(self) -> dict[str, Any]:
        """What else than the learner's settings and the package decides the results."""
        return {"run": self.config.to_mapping(learner=False), "images": _digests(self.source)}


class Run:
    """A run that can start: everything that its configuration names is there and fits together.

    Args:
        config: what to do.
        output: the folder to write.
        overwrite: replace an earlier run there.
        cache_dir: where E0's features are kept; None keeps them in memory.
        progress: where bars are shown.

    Raises:
        ValueError: something in the configuration is not known, not possible or not readable.
        OSError: data, weights or folder are not there, or can't be read or written.
    """

    def __init__(
        self,
        config: RunConfig,
        output: Path,
        *,
        overwrite: bool = False,
        cache_dir: Path | None = None,
        progress: Progress | None = None,
    ) -> None:
        self.output, self.overwrite, self.cache_dir = output, overwrite, cache_dir
        self.progress = progress or Progress.silent()
        methods = check_methods(config.methods or METHODS)
        check_output(output, overwrite)
        check_place(output, config.data)
        self.setup = Setup.open(replace(config, methods=methods), self.progress)
        self.config = self.setup.config

    def train(self) -> dict[str, Any]:
        """Learn the stream with every method and seed, and write the run folder.

        The folder holds results.json, pictures, the configuration as TOML and, where `artsy` is among the methods, the
        classifier of the first seed. It is written beside and renamed when all is done.

        Returns:
            The content of results.json.

        Raises:
            OSError: the folder can't be written.
        """
        config, backbone = self.config, self.setup.backbone
        with threads(config.threads):
            result = run_experiment(
                self.setup.stream,
                Features(RoutedViT(backbone.model), self.cache_dir, self.progress),
                backbone.statistics,
                config.methods,
                range(config.seeds),
                config.learner,
                self.progress,
                arguments=self.setup.facts(),
            )

        def write_more(folder: Path) -> None:
            (folder / CONFIG).write_text(config.to_toml(), encoding="utf-8")
            figures = {"silence": silence_figure(result.results)}
            if result.classifier is not None:
                result.classifier.save(folder / CHECKPOINT)
                figures |= {"weights": weights_figure(result.classifier), "spikes": spikes_figure(result.classifier)}
            for name, figure in figures.items():
                if figure is not None:
                    figure.savefig(folder / f"{name}.png", dpi=DPI, bbox_inches="tight")

        write_run(self.output, result.results, write_more, overwrite=self.overwrite)
        return result.results


class FinishedRun:
    """A run folder, with the classifier in it and the images to ask it about.

    Without `data` these are the run's own test images. Of other data they are the test images too or, where these are
    not set apart, all images: that the run has not seen them is for the caller to know.

    Args:
        folder: as `Run.train` wrote it.
        data: other data with the same class names; by default those of the run.
        data_dir: where torchvision's data sets are, if they have moved.
        backbone: the run's, with a weight file that has moved.
        cache_dir, progress: as for `Run`.

    Raises:
        ValueError: the folder's files are damaged, of a newer version or of another backbone, or the data have other
            classes or, being the run's own, other images.
        OSError: the folder holds no run with a checkpoint, or data or weights are not there.
    """

    def __init__(
        self,
        folder: Path,
        *,
        data: str | None = None,
        data_dir: str | None = None,
        backbone: str | None = None,
        cache_dir: Path | None = None,
        progress: Progress | None = None,
    ) -> None:
        self.progress = progress or Progress.silent()
        if data is not None:
            check_source(data)
        results = read_results(folder)
        config, self.classifier, opened = open_classifier(folder, backbone)
        given: dict[str, Any] = {"data": data, "data_dir": data_dir}
        self.config = config = replace(config, **{name: value for name, value in given.items() if value is not None})
        source = _load(config, self.progress)
        self.same_images = _digests(source) == results["arguments"].get("images")
        if data is None and not self.same_images:
            raise ValueError(
                f"data: {config.data} has changed since the run, so its test images are not known any more"
            )
        self.stream = _test_stream(source, self.classifier, opened, config, every_image=not self.same_images)
        self.features = Features(self.classifier.vit, cache_dir, self.progress)

    def evaluate(self) -> dict[str, Any]:
        """Ask the classifier about the test images, as the run did at its end: the same images give the same answers.

        Returns:
            What `artsy_ext.learner.experiment.evaluate` returns, and: `data`, `same_images` (whether they are those of
            the run), `seed`, and of each task its `classes` by name.
        """
        with threads(self.config.threads):
            found = evaluate(self.classifier, self.stream, self.features, self.progress)
        names = self.stream.class_names
        return {
            "data": self.config.data,
            "same_images": self.same_images,
            "seed": self.classifier.seed,
            "classes": [[names[c] for c in task.classes] for task in self.stream.tasks],
            **found,
        }


def open_classifier(folder: Path, backbone: str | None = None) -> tuple[RunConfig, ArtsyClassifier, Backbone]:
    """The configuration of a run folder, its classifier, and the backbone under it.

    Args:
        folder: as `Run.train` wrote it.
        backbone: the run's, with a weight file that has moved.

    Raises:
        ValueError: the folder's files are damaged, of a newer version or of another backbone.
        OSError: the folder holds no run with a checkpoint, or the weights are not there.
    """
    read_results(folder)
    config = RunConfig.from_mapping(read_toml(folder / CONFIG))
    if not (folder / CHECKPOINT).is_dir():
        raise FileNotFoundError(f"{folder} has no checkpoint: artsy was not among the methods of the run")
    if backbone is not None:
        if backbone.partition(":")[0] != config.backbone.partition(":")[0]:
            raise ValueError(f"backbone: the run has {config.backbone}, only its weight file may move, got {backbone}")
        config = replace(config, backbone=backbone)
    check_backbone(config.backbone)
    opened = open_backbone(config.backbone)
    return config, ArtsyClassifier.load(folder / CHECKPOINT, opened.model), opened


def _load(config: RunConfig, progress: Progress) -> Source:
    return load_source(config.data, data_dir=config.data_dir, domains=config.domains, track=progress.track)


def _stream(
    source: Source, seed: int, backbone: Backbone | None, config: RunConfig, class_order: Sequence[str] | None
) -> Stream:
    return source.stream(
        seed,
        None if backbone is None else backbone.transform,
        tasks=config.tasks,
        base=config.base,
        increment=config.increment,
        sizes=config.sizes or None,
        class_order=class_order,
        by_label=config.scenario == "domain",
    )


def _test_stream(
    source: Source, classifier: ArtsyClassifier, backbone: Backbone, config: RunConfig, *, every_image: bool
) -> Stream:
    """The tasks of a classifier with a source's test images, and no training images.

    every_image: where test images are split off by seed, take all instead.
    """
    names = classifier.class_names_ or []
    for name in sorted({*names} ^ {*source.class_names}):
        lacking = "the run" if name in source.class_names else source.name
        raise ValueError(f"data: {source.name} must have the classes of the run, but {lacking} has no {name!r}")
    images = source.test or source.train
    indices = torch.arange(len(images)) if every_image else source.split(classifier.seed)[1]
    labels = torch.tensor([names.index(name) for name in source.class_names])[images.labels[indices]]
    none = Images(images, torch.arange(0), transform=backbone.transform)
    tasks = []
    for t in range(classifier.num_tasks):
        classes = tuple(c for c, task in enumerate(classifier.task_of_class_) if task == t)
        chosen = torch.isin(labels, torch.tensor(classes))
        tasks.append(Task(classes, none, Images(images, indices[chosen], labels[chosen], backbone.transform)))
    order = [source.class_names.index(name) for name in names]
    answers = source.answers(order) if config.scenario == "domain" else None
    return Stream(source.name, tuple(tasks), tuple(names), answers)


def _digests(source: Source) -> list[str]:
    return [images.digest for images in (source.train, source.test) if images is not None]


def _read_class_order(path: Path) -> list[str]:
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (UnicodeDecodeError, OSError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise ValueError(f"class_order: {path} can't be read as a text file: {reason}") from None
    return [line.strip() for line in lines if line.strip()]


def _folder_of(data: str) -> Path | None:
    """The path of folder:PATH."""
    return Path(data.removeprefix(FOLDER)).expanduser().resolve() if data.startswith(FOLDER) else None


def check_place(output: Path, data: str) -> None:
    """Raises ValueError where `output` lies in the folder that the images come from."""
    folder = _folder_of(data)
    if folder is not None and output.resolve().is_relative_to(folder):
        raise ValueError(f"output: {output} must not lie in the folder of the data")


def _with_absolute_paths(config: RunConfig) -> RunConfig:
    """The paths that a run folder notes mean the same wherever it is opened."""
    changes: dict[str, Any] = {}
    if folder := _folder_of(config.data):
        changes["data"] = f"{FOLDER}{folder}"
    elif config.data not in BUILT_IN:
        changes["data_dir"] = str(Path(config.data_dir).expanduser().resolve())
    if config.class_order is not None:
        changes["class_order"] = str(Path(config.class_order).resolve())
    name, _, weights = config.backbone.partition(":")
    if weights not in ("", "random"):
        changes["backbone"] = f"{name}:{Path(weights).expanduser().resolve()}"
    return replace(config, **changes)


def _default_threads(backbone: str) -> int:
    # The demo's network is too small to gain much from more, and loses much where cores are shared.
    return 1 if backbone == "demo" else torch.get_num_threads()


@contextmanager
def threads(count: int | None) -> Iterator[None]:
    """PyTorch computes with so many CPU threads inside, with as many as it would for None."""
    before = torch.get_num_threads()
    torch.set_num_threads(count or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)
