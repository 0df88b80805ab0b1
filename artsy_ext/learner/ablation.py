"""What the parts of the learner contribute: `artsy ablate` changes one thing at a time and compares.

A row of the table is what is changed; each is measured with every seed. What is measured is written at once, so that
an ablation that was stopped goes on with the rows that are missing.
"""

from __future__ import annotations

import difflib
import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from artsy_ext.info import versions
from artsy_ext.learner._files import replacing_file
from artsy_ext.learner.ablation_report import csv_text, figure
from artsy_ext.learner.config import SUBNETWORK_SETTINGS, LearnerConfig, RunConfig, read_toml
from artsy_ext.learner.experiment import measure
from artsy_ext.learner.features import Features
from artsy_ext.learner.methods import SeedContext
from artsy_ext.learner.progress import Progress
from artsy_ext.learner.report import CONFIG, DPI, check_output
from artsy_ext.learner.results import aggregate, build_results, metric, to_json
from artsy_ext.learner.run import Setup, check_place, threads
from artsy_ext.nn import RoutedViT

__all__ = ["BASE", "ROWS", "Ablation", "Row"]

_MEASURED = "rows"


@dataclass(frozen=True)
class Row:
    """One thing that is changed.

    Attributes:
        part: of the learner; rows of a part stand together.
        label: what is changed about it.
        changes: settings of the learner (`LearnerConfig`) and their values.
        method: which of the methods looks at the learner then.
    """

    part: str
    label: str
    changes: Mapping[str, Any] = field(default_factory=dict)
    method: str = "artsy"

    @property
    def name(self) -> str:
        """Of its file."""
        return ",".join([self.method, *(f"{name}={value}" for name, value in self.changes.items())])


BASE = Row("artsy", "as it is")
ROWS = (
    Row("synapse kind", "two layers, by gradient descent", method="artsy-mlp"),
    *(Row("threshold quantile", f"q = {q:g}", {"quantile": q}) for q in (0.0, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.4)),
    Row("silent synapses", "none: all transmit", {"consolidate": False}),
    *(
        Row(
            "silent synapses",
            f"on from |W| = {on:g}, off below {off:g}",
            {"consolidate_on": on, "consolidate_off": off},
        )
        for on, off in ((0.06, 0.04), (0.12, 0.08), (0.24, 0.16), (0.36, 0.24), (0.48, 0.32), (0.72, 0.48))
    ),
    Row("sub-networks", "none run: synapses' units answer", method="synapses"),
    Row("sub-networks", "random ones, as many", method="random"),
    Row("sub-networks", "the true one, told", method="oracle"),
)


class Ablation:
    """An ablation that can start, or go on.

    Args:
        config: what is learned, with how many seeds, and the settings from which the rows depart; no methods.
        output: the folder to write, or one with the same ablation, which goes on.
        parts: of `ROWS`, to compare these alone; all by default.
        overwrite: start an ablation in that folder anew.
        cache_dir: where E0's features are kept; None keeps them in memory.
        progress: where bars are shown.

    Raises:
        ValueError: something in the configuration is not known, not possible or not readable, or the folder holds an
            ablation with other settings.
        OSError: data, weights or folder are not there, or can't be read or written.
    """

    def __init__(
        self,
        config: RunConfig,
        output: Path,
        *,
        parts: Sequence[str] = (),
        overwrite: bool = False,
        cache_dir: Path | None = None,
        progress: Progress | None = None,
    ) -> None:
        self.output, self.cache_dir, self.progress = output, cache_dir, progress or Progress.silent()
        if config.methods:
            raise ValueError(
                f"methods: expected none, an ablation has rows of its own, got {', '.join(config.methods)}"
            )
        self.rows = [BASE, *_rows(parts, config.learner)]
        check_place(output, config.data)
        self.overwrite = overwrite and _is_ablation(output)
        if not _is_ablation(output):
            check_output(output)
        self.setup = Setup.open(config, self.progress)
        if _is_ablation(output) and not overwrite:
            _check_same(output, self.setup.config)

    def run(self) -> dict[str, Any]:
        """Measure what is missing, and write ablation.json, ablation.csv and ablation.png.

        Returns:
            The content of ablation.json.

        Raises:
            OSError: the folder can't be written.
        """
        setup, measured = self.setup, self.output / _MEASURED
        if self.overwrite:
            shutil.rmtree(measured)
        measured.mkdir(parents=True, exist_ok=True)
        with replacing_file(self.output / CONFIG) as path:
            path.write_text(setup.config.to_toml(), encoding="utf-8")
        features = Features(RoutedViT(setup.backbone.model), self.cache_dir, self.progress)
        with threads(setup.config.threads):
            for seed in self.progress.track(range(setup.config.seeds), "seeds"):
                self._measure(seed, features)
        results = self._results()
        for name, write in (
            ("ablation.json", lambda path: path.write_text(to_json(results) + "\n", encoding="utf-8")),
            ("ablation.csv", lambda path: path.write_text(csv_text(results), encoding="utf-8")),
            ("ablation.png", lambda path: figure(results).savefig(path, dpi=DPI, bbox_inches="tight")),
        ):
            with replacing_file(self.output / name) as path:
                write(path)
        return results

    def _measure(self, seed: int, features: Features) -> None:
        """Measure with one seed what is missing."""
        missing = [row for row in self.rows if self._found(row, seed) is None]
        if not missing:
            return
        stream = self.setup.stream(seed).hold(track=self.progress.track)
        # A learner of the same settings is trained once, a sub-network of the same settings of its own likewise.
        learners: dict[LearnerConfig, list[Row]] = {}
        for row in missing:
            learners.setdefault(self._config(row), []).append(row)
        subnetworks: dict[tuple[Any, ...], dict[int, Any]] = {}
        for config, rows in self.progress.track(list(learners.items()), "learners"):
            context = SeedContext(
                stream,
                features,
                self.setup.backbone.statistics,
                config,
                seed,
                self.progress,
                subnetworks=subnetworks.setdefault(tuple(getattr(config, s) for s in SUBNETWORK_SETTINGS), {}),
            )
            figures = measure(context, [row.method for row in rows])
            for row in rows:
                with replacing_file(self._path(row, seed)) as path:
                    content = {"facts": self._facts(row), "figures": figures[row.method]}
                    path.write_text(json.dumps(content, allow_nan=False), encoding="utf-8")

    def _config(self, row: Row) -> LearnerConfig:
        return replace(self.setup.config.learner, **row.changes)

    def _path(self, row: Row, seed: int) -> Path:
        return self.output / _MEASURED / f"{row.name},seed={seed}.json"

    def _facts(self, row: Row) -> dict[str, Any]:
        """Everything that what is measured depends on, but for the seed."""
        config = replace(self.setup.config, learner=self._config(row), seeds=1)
        facts = {**self.setup.facts(), "run": config.to_mapping(), "method": row.method, "versions": versions()}
        plain: dict[str, Any] = json.loads(json.dumps(facts))
        return plain

    def _found(self, row: Row, seed: int) -> dict[str, Any] | None:
        """What was measured before, if it is there and nothing has changed since."""
        try:
            content = json.loads(self._path(row, seed).read_text(encoding="utf-8"))
            figures: dict[str, Any] = content["figures"]
            return figures if content["facts"] == self._facts(row) else None
        except (OSError, ValueError, TypeError, KeyError):
            return None

    def _results(self) -> dict[str, Any]:
        seeds = range(self.setup.config.seeds)
        measured = [[self._found(row, seed) or {} for seed in seeds] for row in self.rows]
        rows = {}
        for row, figures in zip(self.rows, measured, strict=True):
            rows[row.name] = {
                "part": row.part,
                "label": row.label,
                "changes": dict(row.changes),
                "method": row.method,
                **aggregate(figures),
                "difference": metric(
                    [f["last_accuracy"] - base["last_accuracy"] for f, base in zip(figures, measured[0], strict=True)]
                ),
            }
        results = build_results(self.setup.source.name, seeds, {**self.setup.facts()}, {})
        del results["methods"]
        return {**results, "rows": rows}


def _rows(parts: Sequence[str], config: LearnerConfig) -> list[Row]:
    """Those of some parts; without those that change nothing."""
    known = tuple(dict.fromkeys(row.part for row in ROWS))
    for part in parts:
        if part not in known:
            nearest = difflib.get_close_matches(part, known)
            suggestion = f"did you mean {' or '.join(nearest)}? " if nearest else ""
            raise ValueError(f"parts: {part!r} is not known; {suggestion}(known: {', '.join(known)})")
    chosen = [row for row in ROWS if not parts or row.part in parts]
    return [row for row in chosen if row.method != BASE.method or replace(config, **row.changes) != config]


def _is_ablation(folder: Path) -> bool:
    return (folder / _MEASURED).is_dir() and (folder / CONFIG).is_file()


def _check_same(folder: Path, config: RunConfig) -> None:
    """Raises ValueError where the ablation in a folder has other settings; it may have more or fewer seeds."""
    then = RunConfig.from_mapping(read_toml(folder / CONFIG)).to_mapping()
    now = config.to_mapping()
    for name in sorted((then.keys() | now.keys()) - {"seeds"}):
        if then.get(name) != now.get(name):
            raise ValueError(
                f"output: {folder} holds an ablation with {name} {then.get(name)}, got {now.get(name)}; "
                "it goes on with the same settings, and is replaced only by overwriting"
            )
