"""What an unfinished run has got so far, on disk, so that it can go on where it was stopped.

Kept are the sub-network of every task (what takes longest), and of every finished seed all that was measured, with the
first one's classifier. Whatever else a run computes follows from these and from its settings, and is computed again.
Each file is written beside and renamed, and says by a checksum whether it is what was written.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
import torch

from artsy_ext.learner._files import checksum, replacing_file, sha256
from artsy_ext.learner.classifier import ArtsyClassifier
from artsy_ext.learner.config import LearnerConfig
from artsy_ext.learner.training import new_bank
from artsy_ext.nn import RoutedViT, SubNetworkBank

__all__ = ["UNFINISHED", "Journal", "check_same", "is_unfinished"]

UNFINISHED = "unfinished"
"""Folder in a run's folder that holds the journal."""

_FORMAT = 1
"""Grows by one when an older package would read a journal wrongly."""


def is_unfinished(folder: Path) -> bool:
    """Whether a run's folder holds a journal."""
    return (folder / UNFINISHED / "run.json").is_file()


class Journal:
    """The journal of a run, in the folder UNFINISHED of its own.

    Args:
        folder: the run's, which exists.
        facts: all that decides the results: a journal of others is refused.

    Raises:
        ValueError: the journal there is damaged, of a newer version or of a run with other facts.
        OSError: it can't be read or written.
    """

    def __init__(self, folder: Path, facts: Mapping[str, Any]) -> None:
        self.folder = folder / UNFINISHED
        facts = json.loads(json.dumps(facts))
        if is_unfinished(folder):
            check_same(self._read("run.json")["facts"], facts)
        else:
            self._write("run.json", {"facts": facts})

    @property
    def is_empty(self) -> bool:
        """Whether nothing is kept yet."""
        return [path.name for path in self.folder.iterdir()] == ["run.json"]

    def measured(self, seed: int) -> dict[str, Any] | None:
        """What was kept of a seed; None of one that is not finished."""
        name = f"seed-{seed}.json"
        return self._read(name)["measured"] if (self.folder / name).exists() else None

    def keep_measured(self, seed: int, measured: Mapping[str, Any]) -> None:
        """Keep what a finished seed has given."""
        self._write(f"seed-{seed}.json", {"measured": measured})

    def classifier(self, vit: RoutedViT) -> ArtsyClassifier | None:
        """The classifier that was kept, over the same E0; None where there is none."""
        path = self.folder / "checkpoint"
        return ArtsyClassifier.load(path, vit.backbone) if path.exists() else None

    def keep_classifier(self, classifier: ArtsyClassifier) -> None:
        """Keep a classifier; there is one at most."""
        classifier.save(self.folder / "checkpoint")

    def subnetworks(self, seed: int, vit: RoutedViT, config: LearnerConfig) -> dict[int, tuple[SubNetworkBank, float]]:
        """The sub-networks of a seed by task, each with the seconds that its training took; new ones are kept."""
        return _Subnetworks(self.folder, seed, vit, config)

    def _read(self, name: str) -> dict[str, Any]:
        path = self.folder / name
        try:
            content = json.loads(path.read_bytes())
            intact = content["checksum"] == checksum(content)
        except (ValueError, KeyError, TypeError):
            intact = False
        if not intact:
            raise ValueError(f"resume: {path} is damaged: its checksum does not match")
        if content["format"] > _FORMAT:
            raise ValueError(
                f"resume: {path} has format {content['format']}, this version of artsy_ext reads up to {_FORMAT}"
            )
        return dict(content)

    def _write(self, name: str, content: Mapping[str, Any]) -> None:
        whole = {"format": _FORMAT, **content}
        whole["checksum"] = checksum(whole)
        with replacing_file(self.folder / name) as beside:
            beside.write_text(json.dumps(whole, allow_nan=False) + "\n", encoding="utf-8")


class _Subnetworks(dict[int, tuple[SubNetworkBank, float]]):
    """Each in a file of its own, whose name ends with the start of its SHA-256."""

    def __init__(self, folder: Path, seed: int, vit: RoutedViT, config: LearnerConfig) -> None:
        super().__init__()
        self.folder, self.seed = folder, seed
        for path in folder.glob(f"seed-{seed}-subnetwork-*.safetensors"):
            task, digest = path.stem.split("-")[-2:]
            content = path.read_bytes()
            if not sha256(content).startswith(digest):
                raise ValueError(f"resume: {path} is damaged: its checksum does not match")
            tensors = safetensors.torch.load(content)
            seconds = tensors.pop("seconds").item()
            bank = new_bank(vit, config, 1)
            bank.load_state_dict(tensors)
            super().__setitem__(int(task), (bank.requires_grad_(False), seconds))

    def __setitem__(self, task: int, trained: tuple[SubNetworkBank, float]) -> None:
        bank, seconds = trained
        tensors = {name: value.cpu().contiguous() for name, value in bank.state_dict().items()}
        content = safetensors.torch.save({**tensors, "seconds": torch.tensor(seconds, dtype=torch.float64)})
        name = f"seed-{self.seed}-subnetwork-{task}-{sha256(content)[:32]}.safetensors"
        with replacing_file(self.folder / name) as beside:
            beside.write_bytes(content)
        super().__setitem__(task, trained)


def check_same(found: Mapping[str, Any], facts: Mapping[str, Any], run: str = "the unfinished run") -> None:
    """Raises ValueError, naming the first difference, where two runs do not have the same facts.

    run: what those that were found belong to.
    """
    for name in {**found, **facts}:
        if found.get(name) != facts.get(name):
            raise ValueError(f"resume: {name} must be that of {run}, {found.get(name)!r}, got {facts.get(name)!r}")
