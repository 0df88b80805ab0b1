"""How the learner's settings are chosen: on a quarter of each class's training images, held out. No test image is read.

    python bench/settings.py                                        # digits and domains
    python bench/settings.py --streams digits --seeds 3

One setting is changed at a time; printed is the accuracy on the held-out images after the last task, in percent, and
how many sub-networks are functional, as means over seeds. `joint` is trained for several numbers of epochs.
"""

import argparse
from collections.abc import Callable, Mapping
from dataclasses import replace
from statistics import mean
from typing import Any

import torch
from torch import Tensor

from artsy_ext.data import Images, Stream, Task, load_source
from artsy_ext.learner import Backbone, Features, LearnerConfig, SeedContext, open_backbone
from artsy_ext.learner.config import SUBNETWORK_SETTINGS
from artsy_ext.learner.experiment import measure
from artsy_ext.learner.progress import Progress
from artsy_ext.nn import RoutedViT

ROWS: tuple[tuple[str, Mapping[str, Any]], ...] = (
    ("artsy", {}),
    *(("artsy", {"statistics": kind}) for kind in ("full", "shared", "diagonal")),
    *(("artsy", {"statistics_rank": rank}) for rank in (2, 8, 16)),
    *(("artsy", {"covariance_shrinkage": share}) for share in (0.3, 0.5, 0.7, 0.9, 1.0)),
    *(("artsy", {"temperature": temperature}) for temperature in (1.0, 2.0, 8.0)),
    *(("artsy", {"highest_threshold": highest}) for highest in (0.005, 0.05, 1.0)),
    *(("qda", {"covariance_shrinkage": share}) for share in (0.3, 0.5, 0.7, 0.8, 0.9)),
    *(("first-session", {"covariance_shrinkage": share}) for share in (0.3, 0.5, 0.7, 0.8, 0.9)),
    ("artsy", {"rank": 16, "scale": 0.3, "learning_rate": 2e-2}),
    ("artsy", {"epochs": 10}),
    *(("joint", {"joint_epochs": epochs}) for epochs in (20, 40, 80)),
)


def held_out(stream: Stream, seed: int) -> Stream:
    """The stream with a quarter of each class's training images in the place of its test images."""
    random = torch.Generator().manual_seed(seed)

    def cut(task: Task) -> Task:
        images, labels = task.train.tensors
        rows = torch.zeros(len(labels), dtype=torch.bool)
        for c in task.classes:
            own = (labels == c).nonzero().flatten()
            rows[own[torch.randperm(len(own), generator=random)][: len(own) // 4]] = True
        part: Callable[[Tensor], Images] = lambda of: Images.of_tensors(images[of], labels[of])  # noqa: E731
        return replace(task, train=part(~rows), test=part(rows))

    return replace(stream, tasks=tuple(map(cut, stream.tasks)))


def measured(name: str, seed: int, backbone: Backbone) -> list[tuple[float, float | None]]:
    """Of each row the accuracy on the held-out images, and the functional sub-networks per image."""
    stream = held_out(load_source(name).stream(seed=seed, transform=backbone.transform).hold(), seed)
    features, trained, found = Features(RoutedViT(backbone.model)), dict[tuple[Any, ...], Any](), []
    for method, changes in ROWS:
        config = replace(LearnerConfig(), **changes)
        key = tuple(getattr(config, setting) for setting in SUBNETWORK_SETTINGS)
        context = SeedContext(
            stream,
            features,
            backbone.statistics,
            config,
            seed,
            Progress.silent(),
            subnetworks=trained.setdefault(key, {}),
        )
        figures = measure(context, [method])[method]
        synapses = figures["synapses"]
        found.append((figures["last_accuracy"], synapses and synapses["mean_functional"]))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--streams", nargs="+", default=["digits", "domains"])
    parser.add_argument("--seeds", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    backbone = open_backbone("demo")
    for name in arguments.streams:
        print(f"{name}, seeds 0 to {arguments.seeds - 1}", flush=True)
        seeds = [measured(name, seed, backbone) for seed in range(arguments.seeds)]
        for (method, changes), figures in zip(ROWS, zip(*seeds, strict=True), strict=True):
            counts = [count for _, count in figures if count is not None]
            changed = ", ".join(f"{setting} {value}" for setting, value in changes.items()) or "as it is"
            functional = f", {mean(counts):.2f} functional" if counts else ""
            print(
                f"  {method:<14} {changed:<50} {mean(accuracy for accuracy, _ in figures):.2f}{functional}", flush=True
            )


if __name__ == "__main__":
    main()
