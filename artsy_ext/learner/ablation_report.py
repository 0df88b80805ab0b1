"""Shows an ablation to people: table, CSV and picture, all from the content of ablation.json."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from rich import box
from rich.console import Console
from rich.table import Table

from artsy_ext.learner.report import CORTEX

__all__ = ["csv_text", "figure", "print_table"]

Results = Mapping[str, Any]

# Where a figure stands in a row of ablation.json, what it is called, its factor and digits in the table.
_COLUMNS = (
    ("last_accuracy", "last\nacc %", 1, 1),
    ("difference", "differ-\nence", 1, 1),
    ("average_accuracy", "avg\nacc %", 1, 1),
    ("synapses.recall", "recall", 1, 2),
    ("synapses.precision", "preci-\nsion", 1, 2),
    ("synapses.mean_functional", "func-\ntional", 1, 2),
    ("synapses.silent_fraction", "silent\n%", 100, 0),
    ("parameters.statistics_bytes", "kept\nkB", 1e-3, 0),
    ("seconds.training", "train\ns", 1, 1),
    ("images_per_second.inference", "images\n/s", 1, 0),
)
_SPREAD = ("last_accuracy", "difference", "average_accuracy", "synapses.mean_functional")
_COLOR, _QUIET = "#D55E00", "#999999"
# Points below the first row's accuracy that a picture still spans.
_FAR = 20.0


def print_table(results: Results, console: Console) -> None:
    """Print a line per row of the ablation, mean ± standard deviation over the seeds where there are several."""
    seeds = results["seeds"]
    table = Table(box=box.SIMPLE_HEAD, padding=0, pad_edge=False, title=_title(results), title_justify="left")
    table.add_column("part", no_wrap=True)
    table.add_column("what is changed", no_wrap=True)
    for _, heading, _, _ in _COLUMNS:
        table.add_column(heading, justify="right")
    part = None
    for row in results["rows"].values():
        cells = []
        for path, _, scale, digits in _COLUMNS:
            metric, sign = _metric(row, path), "+" if path == "difference" else ""
            if metric is None:
                cells.append("–")
            elif path in _SPREAD and len(seeds) > 1:
                cells.append(f"{metric['mean']:{sign}.{digits}f} ± {metric['std']:.{digits}f}")
            else:
                cells.append(f"{scale * metric['mean']:{sign},.{digits}f}")
        table.add_row(row["part"] if row["part"] != part else "", row["label"], *cells)
        part = row["part"]
    console.print(table)
    for line in (
        "difference: of the last accuracy from the first row's, seed by seed; functional: sub-networks per sample",
        "kept: statistics of the data; train: with everything that a learner shares with others here",
    ):
        console.print(line, highlight=False, markup=False, soft_wrap=True)


def csv_text(results: Results) -> str:
    """A line per row and, per figure, a column with its mean, one with its standard deviation, one for each seed."""
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    seeds = results["seeds"]
    kinds = ["mean", "std", *(f"seed {seed}" for seed in seeds)]
    writer.writerow(
        ["part", "label", "method", "changes", *(f"{path} {kind}" for path, *_ in _COLUMNS for kind in kinds)]
    )
    for row in results["rows"].values():
        changes = " ".join(f"{name}={value}" for name, value in row["changes"].items())
        cells: list[Any] = [row["part"], row["label"], row["method"], changes]
        for path, *_ in _COLUMNS:
            metric = _metric(row, path)
            cells += [""] * len(kinds) if metric is None else [metric["mean"], metric["std"], *metric["values"]]
        writer.writerow(cells)
    return file.getvalue()


def figure(results: Results) -> Figure:
    """Accuracy, functional sub-networks and silent synapses of every row, seeds as dots; and accuracy against count."""
    rows = list(results["rows"].values())
    # A line for each row, and one above each part for its name.
    heights: list[float] = []
    headings: dict[str, float] = {}
    y = 0.0
    for row in rows:
        if row["part"] not in headings:
            headings[row["part"]] = y + 0.15
            y += 1
        heights.append(y)
        y += 1
    picture = Figure(figsize=(14.5, 1.6 + 0.25 * y), layout="constrained")
    accuracy, functional, silent, against = picture.subplots(1, 4, width_ratios=(1.8, 0.9, 0.9, 1.7))
    for axes, path, scale, label in (
        (accuracy, "last_accuracy", 1, "last accuracy (%)"),
        (functional, "synapses.mean_functional", 1, "functional sub-networks"),
        (silent, "synapses.silent_fraction", 100, "silent synapses (%)"),
    ):
        _dots(axes, [_metric(row, path) for row in rows], heights, scale)
        axes.set(xlabel=label, ylim=(y - 0.5, -0.7))
        axes.set_yticks(heights, [row["label"] for row in rows] if axes is accuracy else [""] * len(rows))
        axes.tick_params(axis="y", length=0)
        axes.grid(axis="x", color="#dddddd", linewidth=0.8)
    for part, height in headings.items():
        accuracy.text(
            -0.02, height, part, transform=accuracy.get_yaxis_transform(), ha="right", va="center", weight="bold"
        )
    functional.set_xlim(0, 1.1 * functional.get_xlim()[1])
    low, high = CORTEX
    silent.axvspan(low, high, color="#009E73", alpha=0.2, linewidth=0)
    silent.text((low + high) / 2, -0.8, "adult cortex", ha="center", va="bottom", color="#00664C", fontsize=9)
    silent.set_xlim(-3, 103)
    _accuracy_against_count(against, rows)
    for axes in (accuracy, functional, silent, against):
        axes.spines[["top", "right"]].set_visible(False)
        axes.set_axisbelow(True)
    picture.suptitle(_title(results))
    return picture


def _dots(axes: Axes, metrics: list[Any], heights: list[float], scale: float) -> None:
    """A row each: the seeds' values, their mean, and their standard deviation to both sides.

    Accuracies far below the first row's would leave the others no room to differ: an arrow points to them.
    """
    first = scale * metrics[0]["mean"] if metrics[0] is not None else None
    for place, (metric, height) in enumerate(zip(metrics, heights, strict=True)):
        if metric is None:
            continue
        color = _COLOR if place == 0 else "#0072B2"
        values = [scale * value for value in metric["values"]]
        mean, std = scale * metric["mean"], scale * metric["std"]
        if first is not None and scale == 1 and mean < first - _FAR:
            text = f"◂ {mean:.1f}"
            axes.text(0.01, height, text, transform=axes.get_yaxis_transform(), va="center", color=color)
            continue
        if len(values) > 1:
            axes.plot(values, [height] * len(values), "o", color=_QUIET, markersize=3.5, alpha=0.7, zorder=3)
        axes.errorbar(mean, height, xerr=std or None, fmt="o", color=color, markersize=6, capsize=3, zorder=4)
    if first is not None:
        axes.axvline(first, color=_COLOR, linewidth=1, linestyle=":")
    axes.margins(x=0.15)


def _accuracy_against_count(axes: Axes, rows: list[Any]) -> None:
    """What it brings to run more sub-networks: the learner as it is, and with other thresholds."""
    line = sorted(
        (row for row in rows if row is rows[0] or row["part"] == "threshold quantile"),
        key=lambda row: row["synapses"]["mean_functional"]["mean"],
    )
    for chosen, style in (
        (line, {"fmt": "o-", "color": "#0072B2"}),
        (rows[:1], {"fmt": "o", "color": _COLOR, "markersize": 8, "zorder": 5}),
    ):
        found = [(row["synapses"]["mean_functional"], row["last_accuracy"]) for row in chosen]
        axes.errorbar(
            [x["mean"] for x, _ in found],
            [y["mean"] for _, y in found],
            xerr=[x["std"] for x, _ in found],
            yerr=[y["std"] for _, y in found],
            linewidth=1.2,
            elinewidth=0.8,
            **style,
        )
    # Labels to the right, a line's height apart.
    low, high = axes.get_ylim()
    gap, last = 0.035 * (high - low), float("inf")
    for row in sorted(line, key=lambda row: -row["last_accuracy"]["mean"]):
        x, y = row["synapses"]["mean_functional"]["mean"], row["last_accuracy"]["mean"]
        last = min(y, last - gap)
        axes.annotate(
            row["label"] if row is not rows[0] else row["part"],
            (x, y),
            xytext=(1.02, last),
            textcoords=axes.get_yaxis_transform(),
            va="center",
            fontsize=8,
            annotation_clip=False,
            arrowprops={"arrowstyle": "-", "color": "#cccccc", "linewidth": 0.8},
        )
    axes.set(
        title="Accuracy against functional count, by threshold",
        xlabel="functional sub-networks per sample",
        ylabel="last accuracy (%)",
    )
    axes.grid(color="#dddddd", linewidth=0.8)


def _metric(row: Mapping[str, Any], path: str) -> Any:
    found: Any = row
    for key in path.split("."):
        found = None if found is None else found[key]
    return found


def _title(results: Results) -> str:
    seeds = len(results["seeds"])
    spread = f"mean ± standard deviation of {seeds} seeds" if seeds > 1 else "one seed"
    return f"What the parts of artsy contribute on the stream '{results['stream']}' ({spread})"
